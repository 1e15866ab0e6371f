#!/usr/bin/env python3
"""``lrs3-loader preview`` from a checkout."""

from lrs3_loader import cli
from lrs3_loader.commands.preview import main

if __name__ == "__main__":
    cli.main(main)
