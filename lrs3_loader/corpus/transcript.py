"""Reads LRS3 transcript files (``.txt``): text, face boxes, and the time of each word.

The format, sections separated by blank lines::

    Text:  THE QUICK BROWN FOX
    Conf:  5
    Ref:   MayAddr0001

    FRAME   X     Y     W     H
    001000  0.312 0.105 0.251 0.446

    WORD START END ASDSCORE
    THE 0.00 0.68 4.2

``Conf``, ``Ref`` and either table may be missing, such as the FRAME table in LRS2.
"""

from __future__ import annotations

import math
import stat
from array import array
from pathlib import Path

import numpy as np

from lrs3_loader.errors import BadTranscriptError
from lrs3_loader.types import Transcript

#: Two hours of rows at 25 fps take about 6 MB; a much larger file is not the transcript of a clip.
MAX_BYTES = 8 * 2**20
MAX_WORDS = 50_000  # four hours of fast speech; a word takes far more memory than its line in the file

_FRAME_HEADER = ["FRAME", "X", "Y", "W", "H"]
_WORD_HEADER = ["WORD", "START", "END", "ASDSCORE"]
_MAX_SHOWN = 60  # characters of an offending line that go into a message


def read_transcript(path: Path) -> Transcript:
    """Parse an LRS3 ``.txt`` file.

    Blank lines, tabs, CRLF and a byte order mark are accepted; header lines ``Name: value`` of other names are skipped.

    Raises:
        BadTranscriptError: the file cannot be read, is larger than ``MAX_BYTES``, is not UTF-8, has no ``Text:`` line,
            or has a line that does not belong in its section (the message names the line).
    """
    header: dict[str, str] = {}
    boxes = array("d")  # flat, 5 numbers per row: far smaller than a list of lists
    words: list[tuple[str, float, float, float]] = []
    section = "header"
    for number, line in enumerate(_read_lines(path), start=1):
        fields = line.split()
        heading = [field.upper() for field in fields] if section != "words" else None
        try:
            if not fields:
                continue
            if heading == _WORD_HEADER:
                section = "words"
            elif heading == _FRAME_HEADER and section == "header":
                section = "frames"
            elif section == "header":
                name, value = _header_line(line)
                if name in header:
                    raise ValueError("expected 'Text:', 'Conf:', 'Ref:' or a table")
                header[name] = value
            elif section == "frames":
                if len(fields) != 5:
                    raise ValueError("expected FRAME X Y W H")
                boxes.extend(_numbers(fields))
                if boxes[-5] < 0 or not boxes[-5].is_integer():
                    raise ValueError("the frame number must be a whole number")
            else:
                word, *times = line.rsplit(maxsplit=3)
                if len(times) != 3:
                    raise ValueError("expected WORD START END ASDSCORE")
                start, end, score = _numbers(times)
                words.append((word.strip(), start, end, score))
                if len(words) > MAX_WORDS:
                    raise ValueError(f"more than {MAX_WORDS} words, not the transcript of a clip")
        except ValueError as error:
            found = f"found {line.strip()[:_MAX_SHOWN]!r}"
            raise BadTranscriptError(f"{path}, line {number}: {error}, {found}") from None
    if "text" not in header:
        raise BadTranscriptError(f"{path}: no 'Text:' line, so not a transcript")
    conf = header.get("conf")
    return Transcript(
        text=header["text"],
        conf=int(conf) if conf else None,
        ref=header.get("ref") or None,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 5),
        words=tuple(words),
    )


def _read_lines(path: Path) -> list[str]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe may block
            raise BadTranscriptError(f"{path}: not a regular file")
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadTranscriptError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise BadTranscriptError(f"{path}: larger than {MAX_BYTES} bytes, not the transcript of a clip")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadTranscriptError(f"{path}: not UTF-8 text (byte {error.start})") from None
    # str.splitlines() would also split at U+2028 and the like, which may be part of a text.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _header_line(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    name, value = name.strip().lower(), value.strip()
    if not colon or not name.isalpha():
        raise ValueError("expected 'Text:', 'Conf:', 'Ref:' or a table")
    if name == "conf" and value and not (value.isdecimal() and len(value) < 10):
        raise ValueError("Conf must be a whole number")
    return name, value


def _numbers(fields: list[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        raise ValueError("not a number") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("not a finite number")
    return numbers
