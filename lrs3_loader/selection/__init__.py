"""Choosing clips by their figures: expressions, published presets, and runs made of chosen clips."""
