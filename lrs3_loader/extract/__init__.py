"""One shard's clips -> features."""
