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
    parser = _Parser(path)
    for number, line in enumerate(_read_lines(path), start=1):
        parser.number = number
        parser.feed(line)
    return parser.finish()


def _read_lines(path: Path) -> list[str]:
    try:
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


class _Parser:
    """State of the parser between two lines: the current section, and the values read so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0  # of the line being fed, from 1
        self.feed = self._header
        self.header: dict[str, str] = {}
        self.boxes = array("d")  # flat, 5 numbers per row: far smaller than a list of lists
        self.words: list[tuple[str, float, float, float]] = []

    def finish(self) -> Transcript:
        if "text" not in self.header:
            raise BadTranscriptError(f"{self.path}: no 'Text:' line, so not a transcript")
        conf = self.header.get("conf")
        return Transcript(
            text=self.header["text"],
            conf=int(conf) if conf else None,
            ref=self.header.get("ref") or None,
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 5),
            words=tuple(self.words),
        )

    def _header(self, line: str) -> None:
        if self._starts_table(line) or not line.strip():
            return
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or not name.isalpha() or name in self.header:
            raise self._wrong(line, "expected 'Text:', 'Conf:', 'Ref:' or a table")
        if name == "conf" and value and not (value.isdecimal() and len(value) < 10):
            raise self._wrong(line, "Conf must be a whole number")
        self.header[name] = value

    def _frame_row(self, line: str) -> None:
        fields = line.split()
        if len(fields) == 5:
            numbers = self._numbers(fields, line)
            if numbers[0] < 0 or not numbers[0].is_integer():
                raise self._wrong(line, "the frame number must be a whole number")
            self.boxes.extend(numbers)
        elif fields and not self._starts_table(line):
            raise self._wrong(line, "expected FRAME X Y W H")

    def _word_row(self, line: str) -> None:
        fields = line.rsplit(maxsplit=3)
        if len(fields) == 4:
            start, end, score = self._numbers(fields[1:], line)
            if len(self.words) >= MAX_WORDS:
                raise self._wrong(line, f"more than {MAX_WORDS} words, not the transcript of a clip")
            self.words.append((fields[0].strip(), start, end, score))
        elif fields:
            raise self._wrong(line, "expected WORD START END ASDSCORE")

    def _starts_table(self, line: str) -> bool:
        """Enter the section whose heading this line is, if it is one. Each table occurs once, FRAME first."""
        fields = line.upper().split()
        if fields == _WORD_HEADER:
            self.feed = self._word_row
        elif fields == _FRAME_HEADER and self.feed == self._header:
            self.feed = self._frame_row
        else:
            return False
        return True

    def _numbers(self, fields: list[str], line: str) -> list[float]:
        try:
            numbers = [float(field) for field in fields]
        except ValueError:
            raise self._wrong(line, "not a number") from None
        if not all(map(math.isfinite, numbers)):
            raise self._wrong(line, "not a finite number")
        return numbers

    def _wrong(self, line: str, why: str) -> BadTranscriptError:
        return BadTranscriptError(f"{self.path}, line {self.number}: {why}, found {line.strip()[:_MAX_SHOWN]!r}")
