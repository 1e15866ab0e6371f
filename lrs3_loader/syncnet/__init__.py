"""Trains a lip-sync discriminator on the shards of a run, and measures audio-video offsets with it."""
