"""Readers for untrusted JSON, ``.npy`` and ``torch.save`` files: nothing in them is executed.

numpy's own reader allocates an array as large as the header says before it checks that so much data follows.
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
import pickletools
import re
import reprlib
import warnings
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrs3_loader.io.zip_files import ZIP_DAMAGE, check_zip, read_zip

_MAGIC = b"\x93NUMPY"
OBJECT_HEADER = b"{'descr': '|O'"  # how the header of an array of Python objects begins
_MAX_OPCODES = 300_000  # of a torch.save file; one of a thousand tensors has 40,000
#: The header of an array of plain numbers or texts, as numpy writes it (Python 2 wrote an L behind large sizes).
_HEADER = re.compile(
    rb"\{'descr': '([<>=|]?(?:b1|\?|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,6}))', "
    rb"'fortran_order': (True|False), 'shape': \(((?:\d{1,18}L?, ?){0,31}(?:\d{1,18}L?)?)\),? *\} {0,1000}\n?"
)

_LAST_CODE_POINT = 0x10FFFF
MAX_JSON_DEPTH = 32
_MAX_DIGITS = 18  # of an integer, which then has less than 64 bits
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def decode_json(raw: bytes | bytearray, *, surrogates: bool = False) -> Any:
    """Decode JSON that may hold anything.

    Args:
        surrogates: admit strings with single surrogates, by which Python writes file names that are not UTF-8.

    Raises:
        ValueError: not JSON in UTF-8, over ``MAX_JSON_DEPTH`` deep, a name twice in one object, an integer of more than
            18 digits, or a number that is not finite.
    """
    try:
        text = raw.decode("utf-8")
        value = _JSON.decode(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    level, depth = [value], 0
    while level := [entry for entry in level if type(entry) in (dict, list)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError("too deep")
        level = [inner for entry in level for inner in (entry.values() if type(entry) is dict else entry)]
    if not surrogates and _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # raises for half of a pair
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS + digits.startswith("-"):
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number that is not finite: {digits[:20]}")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_finite)


def check_types(value: Any, expected: Any, name: str = "") -> None:
    """Check the types of decoded JSON.

    Args:
        expected: a type (``float`` admits integers); ``[expected]``, a list; a tuple of them, a list of that length;
            or a dict of them by name, an object, in which names that end in ``?`` may be missing and others may be
            added, and ``str`` stands for all names.
        name: of the value, for messages.

    Raises:
        ValueError: a type differs, or a name is missing; the message names the place.
    """
    try:
        _check_types(value, expected)
    except _MisfitError as error:
        place = name + "".join(reversed(error.place))
        raise ValueError(f"{place.lstrip('.')}{error.problem}" if place else f"it{error.problem}") from None


class _MisfitError(Exception):
    """A value is not as expected; its place is built only then, from the innermost name outwards."""

    def __init__(self, problem: str, *place: str):
        super().__init__(problem)
        self.problem = problem
        self.place = list(place)


def _check_types(value: Any, expected: Any) -> None:
    kind: Any = expected if isinstance(expected, type) else list if isinstance(expected, tuple) else type(expected)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _MisfitError(f" must be {_NAMES.get(kind, kind.__name__)}, got {reprlib.repr(value)}")
    if type(expected) is tuple:
        if len(value) != len(expected):
            raise _MisfitError(f" must have {len(expected)} entries, got {len(value)}")
        _check_entries(enumerate(zip(value, expected, strict=True)), "[{}]")
    elif type(expected) is list:
        _check_entries(enumerate((entry, expected[0]) for entry in value), "[{}]")
    elif type(expected) is dict:
        for key, inner in expected.items():
            if key is str:
                _check_entries(((other, (entry, inner)) for other, entry in value.items()), ".{}")
            elif (plain := key.removesuffix("?")) in value:
                _check_entries([(plain, (value[plain], inner))], ".{}")
            elif plain == key:
                raise _MisfitError(" is missing", f".{key}")


def _check_entries(entries: Iterable[tuple[Any, tuple[Any, Any]]], place: str) -> None:
    """Check (name, (entry, its expected type)) of a list or an object."""
    for name, (entry, expected) in entries:
        if type(entry) is expected or (type(entry) is list and tuple(map(type, entry)) == expected):
            continue  # most entries of large files
        try:
            _check_types(entry, expected)
        except _MisfitError as error:
            error.place.append(place.format(name))
            raise


_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def decode_npy(raw: bytes | bytearray) -> np.ndarray:
    """Decode the bytes of a ``.npy`` file, four times as fast as numpy's reader.

    Returns:
        The array. It shares the memory of ``raw``, so it is writable if ``raw`` is.

    Raises:
        ValueError: the bytes are damaged, hold Python objects, or hold less data than their header says.
    """
    header, start = npy_offsets(raw)
    dtype, fortran, shape = _parse_header(bytes(raw[header:start]))
    count = math.prod(shape)
    if count * dtype.itemsize > len(raw) - start:
        raise ValueError(f"not a sound .npy file: {count} x {dtype} and {max(len(raw) - start, 0)} bytes do not agree")
    array = np.frombuffer(raw, dtype, count, start)
    if dtype.kind == "U" and (array.view(f"{dtype.byteorder}u4") > _LAST_CODE_POINT).any():
        raise ValueError("not a sound .npy file: it holds texts of characters that do not exist")
    return array.reshape(shape, order="F" if fortran else "C")


def read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file, which may unpack to ``max_bytes``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, too large, or holds Python objects.
    """
    return {name.removesuffix(".npy"): decode_npy(data) for name, data in read_zip(path, max_bytes=max_bytes).items()}


def npy_offsets(raw: bytes | bytearray) -> tuple[int, int]:
    """Return where the header and the data of a ``.npy`` file begin; raises ``ValueError`` for other bytes."""
    if raw[:6] != _MAGIC:
        raise ValueError("no .npy file")
    header = 10 if raw[6:7] == b"\x01" else 12  # the size of the header takes 2 bytes in version 1, else 4
    return header, header + int.from_bytes(raw[8:header], "little")


@lru_cache(maxsize=4096)  # clips of one length share their headers
def _parse_header(text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError(f"not a sound .npy file: it does not hold plain numbers, its header begins with {text[:60]!r}")
    return np.dtype(found[1].decode()), found[2] == b"True", tuple(int(size) for size in re.findall(rb"\d+", found[3]))


def _check_pickles(path: Path) -> None:
    """Raise ``ValueError`` if a ``torch.save`` file is compressed, or has pickles that take long or much to load."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"PK\x03\x04":  # the format before torch 1.6 begins with five pickles
            for _ in range(5):
                _check_opcodes(data)
            return
    with zipfile.ZipFile(path) as archive:
        check_zip(archive, path.stat().st_size)  # torch compresses nothing
        for member in archive.infolist():
            if member.filename.endswith("/data.pkl"):
                _check_opcodes(archive.open(member))


def _check_opcodes(stream: Any) -> None:
    for number, _ in enumerate(pickletools.genops(stream)):
        if number > _MAX_OPCODES:
            raise ValueError(f"a pickle of more than {_MAX_OPCODES} opcodes")


#: What torch's restricted unpickler raises over damaged files: it lets through the errors of their instructions.
_DAMAGE = (AssertionError, AttributeError, LookupError, MemoryError, TypeError, pickle.UnpicklingError, *ZIP_DAMAGE)


def load_plain(path: Path) -> Any:
    """Load plain values and tensors from a ``torch.save`` file onto the CPU, without executing anything in it.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or was not written by ``torch.save``; the message is one line.
    """
    try:
        _check_pickles(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise ValueError(lines[0][:300] if lines else type(error).__name__) from error
