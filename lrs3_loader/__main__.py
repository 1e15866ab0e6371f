"""``lrs3-loader COMMAND ...`` and ``python -m lrs3_loader COMMAND ...``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lrs3_loader import __version__

#: Name -> what it does. The module in ``lrs3_loader.commands`` has the name with ``_`` for ``-``.
COMMANDS = {
    "extract": "extract a corpus of talking-face clips into shards",
    "doctor": "check that a run can work, and say how to fix what cannot",
    "verify": "check every shard of a run, and list missing or damaged ones",
    "select": "choose clips of a run by their figures",
    "filter": "write the chosen clips of a run as a smaller run",
    "report": "write a run as one self-contained HTML page",
    "preview": "draw landmarks, mesh and curves of one clip",
    "export": "convert a run to GeneFace's format, and back",
    "bundle": "pack a run into an archive in parts, and unpack it",
    "assets": "check, download and convert model files",
    "train-syncnet": "train a lip-sync network on a run",
    "train-audio2motion": "train a generator of facial motion from speech on a run",
    "animate": "draw the motion that a trained generator makes of a sound",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command that ``argv`` (``sys.argv[1:]`` when not given) names, and end the process with its exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if name == "--version":
        print(f"lrs3_loader {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}"
        print(f"error: no command {name}; {hint}", file=sys.stderr)
        sys.exit(2)

    from lrs3_loader.launch import cli  # takes a moment to import, which the help above need not wait for

    command = importlib.import_module(f"lrs3_loader.commands.{name.replace('-', '_')}")
    cli.main(lambda: command.main(rest))


def _help() -> str:
    program = "python -m lrs3_loader" if Path(sys.argv[0]).name == "__main__.py" else "lrs3-loader"
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            "Talking-face clips in, training-ready WebDataset shards out.",
            "",
            *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
            "",
            f"{program} COMMAND --help lists the options of a command; --version prints the version.",
            "On several GPUs or cores (extract, train-...): torchrun --nproc_per_node N -m lrs3_loader COMMAND ...",
        ]
    )


if __name__ == "__main__":
    main()
