"""One launch of a run, from the command line to its summary."""
