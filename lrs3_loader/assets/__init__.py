"""Model files: find, download, convert and check them."""
