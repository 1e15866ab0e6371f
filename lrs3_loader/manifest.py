"""A plan on disk: one line of JSON per clip, sorted by key, with the shard it belongs to.

A run is planned once; its manifest is what every later launch works from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.types import Clip, Shard

_TYPES: dict[str, type] = {
    "shard": str,
    "key": str,
    "video_path": str,
    "num_bytes": int,
    "sound_path": str,
    "transcript_path": str,
    "text": str,
    "start_seconds": float,
    "end_seconds": float,
}
_SHARD_NAME = re.compile(r"[^/\0]+-\d{6,}")
_REQUIRED = ("shard", "key", "video_path", "num_bytes")


def manifest_lines(shards: Iterable[Shard]) -> Iterator[str]:
    """One line of ASCII JSON a clip, newline included; absent fields left out."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    for shard in shards:
        for clip in shard.clips:
            values = {name: getattr(clip, name) for name in _TYPES if name != "shard"}
            known = {name: value for name, value in values.items() if value is not None}
            yield encode({"shard": shard.name, **known}) + "\n"


def plan_sha256(shards: Iterable[Shard]) -> str:
    """Hash of a plan: the hash of its manifest."""
    digest = hashlib.sha256()
    for line in manifest_lines(shards):
        digest.update(line.encode("ascii"))
    return digest.hexdigest()


def read_manifest(path: Path) -> tuple[Shard, ...]:
    """Read back what ``manifest_lines`` wrote.

    Raises:
        RunError: the file cannot be read, or a line is not exactly such a line (unknown, missing or mistyped
            fields, a cut-off end, keys out of order or twice); the message names the line.
    """
    clips: list[tuple[str, Clip]] = []
    try:
        with open(path, encoding="ascii", newline="\n") as lines:
            for line in lines:
                shard, clip = _parse_line(line)
                if clips and clip.key <= clips[-1][1].key:
                    raise ValueError(f"key {clip.key} does not sort after {clips[-1][1].key}")
                clips.append((shard, clip))
    except OSError as error:
        raise RunError(f"cannot read the manifest {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}, line {len(clips) + 1}: not a manifest line: {error}") from error
    return tuple(
        Shard(name, tuple(clip for _, clip in members)) for name, members in groupby(clips, key=lambda pair: pair[0])
    )


def _parse_line(line: str) -> tuple[str, Clip]:
    if not line.endswith("\n"):
        raise ValueError("cut off before its end")
    values: Any = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    for name in _REQUIRED:
        if name not in values:
            raise ValueError(f"no {name}")
    for name, value in values.items():
        if name not in _TYPES:
            raise ValueError(f"unknown field {name}")
        if type(value) is not _TYPES[name]:
            raise ValueError(f"{name} must be {_TYPES[name].__name__}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if not _SHARD_NAME.fullmatch(values["shard"]):  # it becomes the name of a file
        raise ValueError(f"{values['shard']!r:.200} is no name of a shard")
    return values.pop("shard"), Clip(**values)
