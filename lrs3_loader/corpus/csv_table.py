"""Reads a corpus from a csv file with one row per clip. Several clips may be parts of one video.

The columns, in any order: ``path`` (relative to the folder of the csv file, or absolute), and optionally ``split``,
``speaker``, ``start`` and ``end`` (seconds within the video) and ``text``. Columns whose names begin with ``_`` are
ignored; other names are refused, because a misspelt ``speaker`` would go unnoticed.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lrs3_loader.corpus.layouts import NO_NAME, Found, file_size, names_from_path
from lrs3_loader.errors import RunError
from lrs3_loader.io.storage import Location, RemoteStore, Url
from lrs3_loader.types import printable

COLUMNS = ("path", "split", "speaker", "start", "end", "text")


def read_clip_table(path: Location) -> list[Found]:
    """Read the clips that a csv file lists.

    The default for ``split`` is ``all``, and for ``speaker`` the first folder of the path below the folder of the csv
    file (or, if a path leads out of that, below the folder that all paths share). The utterance is the rest of the
    path, with start and end in milliseconds if given.

    Raises:
        RunError: the file cannot be read as UTF-8 csv, has no ``path`` column or an unknown one, a row is malformed
            (the message names the line), or none of the listed files exists.
    """
    if isinstance(path, Url):
        rows, known_sizes = _read_remote(path)
        sizes = {row.video_path: known_sizes.get(row.video_path, 0) for row in rows}
        root = "/"
    else:
        rows, root = list(_read_rows(path, str(path))), os.path.abspath(path.parent)
        sizes = {row.video_path: file_size(path.parent / row.video_path) for row in rows}
    if not rows:
        raise RunError(f"{path} lists no clips")
    # Names come from normalized paths below one folder, so that "a.mp4", "./a.mp4" and an absolute path agree.
    absolute = [os.path.normpath(os.path.join(root, row.video_path)) for row in rows]
    base = os.path.commonpath([root, *absolute])
    if base != root:
        base = os.path.commonpath([os.path.dirname(video) for video in absolute])
    if not any(sizes.values()):
        raise RunError(f"none of the files that {path} lists is there, such as {printable(rows[0].video_path)}")
    return [
        dataclasses.replace(_named(path, row, os.path.relpath(video, base)), num_bytes=sizes[row.video_path])
        for row, video in zip(rows, absolute, strict=True)
    ]


def _named(table: Location, row: Found, below_base: str) -> Found:
    """Fill in the names that the row does not give, from the path of its video below the common folder."""
    if below_base == os.curdir:
        raise RunError(f"{table}, line {row.line} names a folder, not a video: {printable(row.video_path)}")
    speaker, utterance = names_from_path(below_base)
    if row.speaker and row.speaker != speaker and speaker != NO_NAME:
        utterance = f"{speaker}_{utterance}"
    for seconds in (row.start_seconds, row.end_seconds):
        if seconds is not None:
            utterance += f"_{round(seconds * 1000):07d}"
    return dataclasses.replace(row, split=row.split or NO_NAME, speaker=row.speaker or speaker, utterance=utterance)


def _read_remote(path: Url) -> tuple[list[Found], dict[str, int]]:
    """Read a table on object storage: its rows with normalized paths, and the sizes of all files below its folder."""
    root, _, name = path.rpartition("/")
    store = RemoteStore(Url(root))
    with store.local_copy(name) as folder:
        rows = list(_read_rows(folder / name, str(path)))
    for row in rows:
        if os.path.isabs(row.video_path) or os.path.normpath(row.video_path).startswith(os.pardir):
            raise RunError(f"{path}, line {row.line}: {printable(row.video_path)} does not lie below {root}")
    return [dataclasses.replace(row, video_path=os.path.normpath(row.video_path)) for row in rows], store.tree()


def _read_rows(path: Path, where: str) -> Iterator[Found]:
    """Parse a csv file; rows have neither sizes nor names of utterances yet."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            if "path" not in reader.fieldnames:
                names = printable(", ".join(reader.fieldnames)) or "none"
                raise RunError(f"{where} has no column 'path'; it has {names}")
            _check_columns(reader.fieldnames, where)
            for fields in reader:
                yield _parse_row(fields, reader.line_num)
    except OSError as error:
        raise RunError(f"cannot read {where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{where} is not UTF-8 text (byte {error.start})") from None
    except (csv.Error, ValueError) as error:
        raise RunError(f"{where}, line {reader.line_num}: {error}") from None


def _check_columns(names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS and not name.startswith("_"):
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COLUMNS)};"
            ignored = "columns that begin with _ are ignored"
            raise RunError(f"{where} has an unknown column '{printable(name)}'; {hint} ({ignored})")
        if names.count(name) > 1:
            raise RunError(f"{where} has two columns {name!r}")


def _parse_row(fields: dict[str, str | None], line: int) -> Found:
    if None in fields:
        raise ValueError("more fields than columns")
    values = {name: (value or "").strip() for name, value in fields.items()}
    if not values["path"] or "\0" in values["path"]:
        raise ValueError("no path")
    start, end = (_seconds(name, values.get(name)) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"end {end} does not lie after start {start or 0.0}")
    names = (values.get("split", ""), values.get("speaker", ""), "")
    text = values.get("text") or None
    return Found(*names, values["path"], 0, text=text, start_seconds=start, end_seconds=end, line=line)


def _seconds(name: str, value: str | None) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds, got {value!r}")
    return seconds
