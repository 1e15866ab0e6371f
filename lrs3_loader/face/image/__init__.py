"""Pieces cut out of pictures, warped and resampled."""
