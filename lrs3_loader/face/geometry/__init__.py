"""Rotations, the camera, and what belongs to a mesh: its points and its surface."""
