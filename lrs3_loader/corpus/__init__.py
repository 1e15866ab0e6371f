"""Finds the clips of a corpus, sorted by key, and divides them into shards."""
