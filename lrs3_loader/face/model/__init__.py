"""Face models, and how they are made of other people's files."""
