"""GeneFace's binarised sets: writing and reading them."""
