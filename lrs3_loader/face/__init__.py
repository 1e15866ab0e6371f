"""Landmarks of video frames, 3D morphable face models, and fitting one to the other; see README.md."""
