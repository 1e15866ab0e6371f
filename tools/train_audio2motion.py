#!/usr/bin/env python3
"""``lrs3-loader train-audio2motion`` from a checkout."""

from lrs3_loader.commands.train_audio2motion import main
from lrs3_loader.launch import cli

if __name__ == "__main__":
    cli.main(main)
