#!/usr/bin/env python3
"""``lrs3-loader animate`` from a checkout."""

from lrs3_loader.commands.animate import main
from lrs3_loader.launch import cli

if __name__ == "__main__":
    cli.main(main)
