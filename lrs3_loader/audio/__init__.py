"""Sound features: mel spectrogram, F0, speech encoder."""
