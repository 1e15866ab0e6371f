"""Fit a face model to landmarks."""
