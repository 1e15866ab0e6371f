"""Linear 3D face models, and their conversion from published files."""
