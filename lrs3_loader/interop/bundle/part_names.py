"""Orders the parts of an archive by the names that many tools give them."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from pathlib import Path

from lrs3_loader.errors import RunError

#: ``X.zip.part_aa``, ``X.zip_part_aa``, ``X.zip.part-01``, ``X.zip.part1``, ``X.zip.001``, ``X.zip.aa``, ``X.zipaa``
_PART_NAME = re.compile(r"(?P<base>.+\.(?:zip|tar))(?P<joint>[._-]?part[._-]?|[._-]?)(?P<number>\d+|[a-z]{2,})")
_WHOLE_NAME = re.compile(r".+\.(?:zip|tar)")


def order_parts(paths: Sequence[Path]) -> list[Path]:
    """Sort the parts of one archive, given in any order.

    Raises:
        RunError: names that do not tell an order, parts of different archives, one part twice, or a gap; the
            message names what is missing.
    """
    if not paths:
        raise RunError("no parts given")
    if len(paths) == 1 and _WHOLE_NAME.fullmatch(paths[0].name):
        return list(paths)
    matches = {path: _PART_NAME.fullmatch(path.name) for path in paths}
    stems, texts = set(), {}
    for path, match in matches.items():
        if match is None:
            raise RunError(f"{path.name} is not named like a part (X.zip.part_aa, X.zip_part_aa, X.zip.001, ...)")
        stems.add(match["base"] + match["joint"])
        texts[path] = match["number"]
    if len(stems) > 1:
        raise RunError(f"parts of different archives: {', '.join(sorted(stems))}")
    numbers = _part_numbers(set(texts.values()))
    by_number: dict[int, Path] = {}
    for path in paths:
        other = by_number.setdefault(numbers[texts[path]], path)
        if other != path:
            raise RunError(f"one part twice: {other} and {path}")
    _check_gaps(by_number, stems.pop(), {number: text for text, number in numbers.items()})
    return [by_number[number] for number in sorted(by_number)]


def _part_numbers(texts: set[str]) -> dict[str, int]:
    """The place of each suffix: letters and digits as ``split`` counts, or plain numbers."""
    if len({text.isdigit() for text in texts}) > 1:
        raise RunError(f"parts numbered in different ways: {', '.join(sorted(texts)[:4])}")
    compressed = texts & {"gz", "xz", "bz", "zst", "lzma"}
    if compressed and len(texts) == 1:
        raise RunError(
            f"a compressed archive (.{compressed.pop()}); unpack that layer first: zip and tar are read here"
        )
    is_numeric = min(texts).isdigit()
    alphabet = string.digits if is_numeric else string.ascii_lowercase
    width = min(map(len, texts))
    wider = {text for text in texts if len(text) > width}
    if is_numeric and not all(text[0] == "9" and (len(text) - width) % 2 == 0 for text in wider):
        wider = set()  # plain numbers, padded or not
    return {text: _split_number(text, alphabet, width) if wider else _digits(text, alphabet) for text in texts}


def _digits(text: str, alphabet: str) -> int:
    return functools.reduce(lambda value, letter: value * len(alphabet) + alphabet.index(letter), text, 0)


def _split_number(text: str, alphabet: str, width: int) -> int:
    """GNU ``split`` widens as it goes: aa ... yz, zaaa ... zyzz, zzaaaa ..."""
    base, last = len(alphabet), alphabet[-1]
    level, excess = divmod(len(text) - width, 2)
    if excess or not text.startswith(last * level) or text[level] == last:
        raise RunError(f"parts numbered in a way that is not known: ...{text}")
    before = sum((base - 1) * base ** (width - 1 + step) for step in range(level))
    return before + _digits(text[level:], alphabet)


def _check_gaps(by_number: dict[int, Path], stem: str, texts: dict[int, str]) -> None:
    first, last = min(by_number), max(by_number)
    start = first if first in (0, 1) else 0
    missing = [number for number in range(start, min(last, start + len(by_number) + 1)) if number not in by_number]
    if not missing:
        return
    if first not in (0, 1):
        raise RunError(f"the first parts are missing: the lowest given is {stem}{texts[first]}")
    before, after = missing[0] - 1, min(number for number in by_number if number > missing[0])
    count = after - before - 1
    raise RunError(
        f"a gap in the numbering: {count} part{'s' * (count > 1)} missing between {by_number[before].name} "
        f"and {by_number[after].name}"
    )
