"""Feature extraction: decoded clips of one shard -> features."""
