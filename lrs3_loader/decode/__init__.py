"""Decoding of clips to frames and audio, in worker processes."""
