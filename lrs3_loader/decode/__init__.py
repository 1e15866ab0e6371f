"""Clips -> frames and sound, in worker processes."""
