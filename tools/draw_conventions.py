#!/usr/bin/env python3
"""Draw the figure of docs/face-conventions.md from the demo head.

python tools/draw_conventions.py docs/face-conventions.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lrs3_loader.launch import cli


@dataclass(frozen=True)
class Args:
    picture: Annotated[Path, tyro.conf.Positional]
    """The .png to write."""


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    from lrs3_loader import demo  # torch takes seconds to import: not before the arguments are right
    from lrs3_loader.viz import preview
    from lrs3_loader.viz.preview.conventions import draw_conventions

    preview.check_output(args.picture)
    preview.write_picture(args.picture, draw_conventions(demo.demo_head()), small=True)
    print(args.picture)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.main(main)
