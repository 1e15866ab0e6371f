"""This process and its device: memory, transfers, threads."""
