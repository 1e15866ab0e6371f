"""Frames -> landmarks, by the networks of MediaPipe's face landmarker."""
