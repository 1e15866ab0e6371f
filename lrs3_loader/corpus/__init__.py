"""Files on disk -> clips, sorted by key -> shards."""
