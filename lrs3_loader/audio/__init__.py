"""Audio features: mel spectrogram, F0, speech encoder."""
