"""A run on disk: manifest, shards and ledgers.

``tar.TarIndex`` reads any sample of a local tar, ``shards.read_shard`` all samples of a published one in order.
"""
