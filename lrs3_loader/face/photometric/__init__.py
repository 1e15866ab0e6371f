"""A face model fitted to the colours of pictures."""
