"""Refine a fitted face model on the pixels of video frames."""
