"""The loop that trains a network on the shards of a run: what all trainings of this package share."""
