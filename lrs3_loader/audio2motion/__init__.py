"""Generates facial motion from speech: a conditional generator trained on the shards, its evaluation and baselines."""
