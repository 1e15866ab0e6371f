"""Everything worth knowing about a GPU, by one command within ten minutes: ``bench.py gpu --out FOLDER``."""
