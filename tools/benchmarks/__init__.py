"""Measurements behind ``tools/bench.py``: one module per subcommand."""
