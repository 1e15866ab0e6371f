"""Model files: where they are, how they are fetched, whether they are sound."""
