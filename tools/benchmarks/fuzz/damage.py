"""Changes bytes of a file in the ways in which disks, networks and attackers do."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_SIZES = (1, 8, 60, 400, 3000)
_SECTOR = 512


def damage(data: bytes, draw: random.Random, tokens: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """Return the bytes with one to three changes, and what was done.

    Args:
        tokens: words of the format, which are put in at random places.
    """
    ways = [*_WAYS, "token"] if tokens else list(_WAYS)
    done = [draw.choice(ways) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    changed = bytearray(data)
    for way in done:
        if not changed:
            break
        at, size = draw.randrange(len(changed)), draw.choice(_SIZES)
        if way == "token":
            changed[at : at + draw.choice((0, 1, 4))] = draw.choice(tokens)
        else:
            _WAYS[way](changed, at, size, draw)
    return bytes(changed), "+".join(done)


def _flip(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 20))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _zero(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    data[at : at + size] = bytes(len(data[at : at + size]))


def _noise(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    data[at : at + size] = draw.randbytes(len(data[at : at + size]))


def _lose(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    del data[at : at + size]


def _insert(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    data[at:at] = draw.randbytes(size)


def _repeat(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    data[at:at] = data[at : at + size]


def _swap(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    """Swap two sectors, as a damaged file system does."""
    first, second = (draw.randrange(0, len(data), _SECTOR) for _ in range(2))
    one, other = data[first : first + _SECTOR], data[second : second + _SECTOR]
    if len(one) == len(other):
        data[first : first + _SECTOR], data[second : second + _SECTOR] = other, one


def _cut(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    del data[at:]


def _extreme(data: bytearray, at: int, size: int, draw: random.Random) -> None:
    """Put a number in that programs seldom expect."""
    number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF))
    width = draw.choice((1, 2, 4, 8))
    field = (number & ((1 << 8 * width) - 1)).to_bytes(width, draw.choice(("big", "little")))
    data[at : at + width] = field[: len(data[at : at + width])]


_WAYS: dict[str, Callable[[bytearray, int, int, random.Random], None]] = {
    "flip": _flip,
    "zero": _zero,
    "noise": _noise,
    "lose": _lose,
    "insert": _insert,
    "repeat": _repeat,
    "swap": _swap,
    "cut": _cut,
    "extreme": _extreme,
}
