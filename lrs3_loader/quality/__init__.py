"""Figures of every clip, by which clips are chosen; docs/quality.md defines each of them."""
