"""Argument parsing and logging of all commands; errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro

from lrs3_loader.config import with_current_flags
from lrs3_loader.errors import RunError
from lrs3_loader.io.files import disk_failure

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_USAGE = 2
EXIT_REJECTS = 3
RANK_0_SECONDS = 60.0  # by then rank 0 has printed its error
PATIENCE_SECONDS = 3.0

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_COMMAND = re.compile(r"(lrs3-loader|-m lrs3_loader) ([a-z]+(?:-[a-z0-9]+)*)")

Args = TypeVar("Args")

_FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


class UsageError(Exception):
    """Arguments that are valid one by one, but not together."""


class Interrupted(KeyboardInterrupt):
    """Raised when the process is asked to end, by Ctrl-C or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def parse(
    kind: type[Args],
    description: str,
    command: str | None = None,
    argv: Sequence[str] | None = None,
    default: Any = tyro.MISSING_NONPROP,
) -> Args:
    """Parse a command line into a dataclass. Wrong values end the program with exit code 2; only rank 0 prints why.

    Args:
        kind: a dataclass, or a union of dataclasses, one per subcommand.
        description: the first paragraph of the help. Commands in it are spelled the way this program was called.
        command: name of the command that is parsed (the program itself when not given).
        argv: the words to parse (``sys.argv[1:]`` when not given).
    """
    prog = as_called(f"lrs3-loader {command}") if command else None
    description = as_called(description)
    words = with_current_flags(sys.argv[1:] if argv is None else argv)
    with contextlib.ExitStack() as stack:
        if _rank() != 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            return tyro.cli(kind, prog=prog, args=words, description=description, config=_FLAT, default=default)
        except ValueError as error:  # tyro catches those of nested dataclasses only
            raise UsageError(str(error)) from error
        except BrokenPipeError:  # help into ``| head``: the rest goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_OK)


def tool_name(command: str) -> str:
    """Return the name of a command's script in ``tools``.

    A ``select.py`` there would hide Python's own module of that name from all scripts beside it.
    """
    return f"{'select_clips' if command == 'select' else command.replace('-', '_')}.py"


def as_called(text: str) -> str:
    """Spell the commands that ``text`` names the way this program was called.

    The package's texts name a command as ``lrs3-loader verify``, and ``torchrun ... -m lrs3_loader extract`` on several
    ranks. A user who called ``tools/extract.py`` reads ``python tools/verify.py``, and so on.
    """
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return text.replace("lrs3-loader ", "python -m lrs3_loader ")
    if program.parent.name != "tools" or program.suffix != ".py":
        return text

    def spell(match: re.Match[str]) -> str:
        tool = program.with_name(tool_name(match[2]))
        return f"{tool}" if match[1].startswith("-m") else f"python {tool}"

    return _COMMAND.sub(spell, text)


def main(body: Callable[[], int]) -> NoReturn:
    """Run a command with log lines on stderr, and end the process with its exit code.

    Errors that the user can fix are printed as one line: exit code 2 for arguments, 1 for anything else.
    """
    _configure_logging()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _kill_on_parent_exit()
    _raise_on_signals()
    try:
        code = body()
    except UsageError as error:
        code = _complain(error, EXIT_USAGE) if _rank() == 0 else _end_after_rank_0(EXIT_USAGE)
    except RunError as error:
        code = _complain(error, EXIT_PROBLEM)
    except OSError as error:
        failure = disk_failure(error)
        if failure is None:
            raise
        code = _complain(failure, EXIT_PROBLEM)
    except Interrupted as request:
        code = request.exit_code
    except SystemExit as request:  # the arguments do not parse, or rank 0 reports for all
        if _rank() == 0 or not request.code:
            raise
        code = _end_after_rank_0(EXIT_USAGE if request.code == EXIT_USAGE else EXIT_PROBLEM)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _complain(error: Exception, code: int) -> int:
    print(f"error: {as_called(str(error))}", file=sys.stderr)
    return code


def _end_after_rank_0(code: int) -> int:
    """Wait, on another rank than 0, until torchrun ends this process; return ``code`` after a minute.

    All ranks find the same error and rank 0 prints it. torchrun ends every rank as soon as one has failed, so a rank
    that failed before rank 0 could print would suppress the message.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(Interrupted):
            time.sleep(RANK_0_SECONDS)
    return code


def _kill_on_parent_exit() -> None:
    """End this process when torchrun is killed.

    Otherwise a rank would wait for a store that is gone, or write into a run that has been started again.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _raise_on_signals() -> None:
    """Raise ``Interrupted`` at the first SIGINT or SIGTERM.

    A terminal and torchrun each pass on one Ctrl-C, so signals that follow at once belong to the same request. A signal
    more than ``PATIENCE_SECONDS`` later is a second request, and kills the process.
    """
    asked_at: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
            raise Interrupted(number)
        if now - asked_at > PATIENCE_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say, on rank 0, that the same command resumes if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if is_rank_0():
            logger.info("interrupted; the same command resumes")
        raise


def _configure_logging() -> None:
    rank = _rank()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    package = logging.getLogger("lrs3_loader")
    handler.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


def is_rank_0() -> bool:
    """Return whether this process reports for all ranks of its launch."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
