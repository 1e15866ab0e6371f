"""Cropping, warping and resampling of video frames."""
