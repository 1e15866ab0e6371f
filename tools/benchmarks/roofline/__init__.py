"""A model of how fast an extraction would be on a GPU: what it asks of the stand-in device, priced for a card."""
