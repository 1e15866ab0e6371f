"""Trains a lip-sync discriminator on the shards of a run, and measures audio-video offsets with it.

model        the network
speakers     chooses the held-out speakers
evaluate     scores windows at all offsets
scalars      writes the metrics of a training
checkpoint   saves and loads a training
settings     the options of a training
train        the training loop
measure      the audio-video offset of each clip
"""
