"""One run on disk: manifest, shards, ledgers."""
