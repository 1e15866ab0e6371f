"""Rotations, the camera, mesh topology and mesh surfaces."""
