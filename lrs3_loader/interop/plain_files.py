"""Writes the samples of a run as plain files, for programs that read no tars.

Of each clip: ``KEY.npz`` (its arrays), ``KEY.json``, and where the run holds them ``KEY.wav`` (32-bit float, 16 kHz),
``KEY.face.mp4`` and ``KEY.mouth.mp4``, in folders ``split/speaker``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import REPAIR
from lrs3_loader.run.tar import DamagedError, decode_sample
from lrs3_loader.types import MEDIA_FIELDS, SAMPLE_RATE, field_of_member


def export_files(
    folder: RunFolder,
    dest: Path,
    select: Callable[[str], bool] | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> int:
    """Write all published samples, or those whose key ``select`` admits, and return their number.

    A file that is there is replaced, each whole or not at all.

    Raises:
        RunError: a tar is damaged.
    """
    num_clips = 0
    published = folder.published()
    for shard in folder.shards:
        if shard.name not in published:
            continue
        try:
            with folder.open_tar(shard) as tar:
                for index, found in enumerate(tar.samples):
                    if select is None or select(found.key):
                        _write_clip(dest, found.key, tar.read_members(index))
                        num_clips += 1
                        progress()
        except DamagedError as error:
            raise RunError(f"{error}; {REPAIR}") from error
    return num_clips


def _write_clip(dest: Path, key: str, members: Mapping[str, bytearray]) -> None:
    sample = decode_sample(str(dest), key, {name: data for name, data in members.items() if not _is_video(name)}, None)
    place = dest / key
    if not place.resolve().is_relative_to(dest.resolve()):
        raise DamagedError(f"{key} is no key of a clip")
    os.makedirs(place.parent, exist_ok=True)
    meta, audio = sample.pop("json"), sample.pop("audio", None)
    with atomic_write(place.with_name(f"{place.name}.json")) as file:
        file.write(json.dumps(meta, indent=1, sort_keys=True, ensure_ascii=False).encode())
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in sample.items() if not name.startswith("__")})
    with atomic_write(place.with_name(f"{place.name}.npz")) as file:
        file.write(buffer.getvalue())
    if audio is not None:
        buffer = io.BytesIO()
        wavfile.write(buffer, SAMPLE_RATE, audio)
        with atomic_write(place.with_name(f"{place.name}.wav")) as file:
            file.write(buffer.getvalue())
    for name, data in members.items():
        if _is_video(name):
            with atomic_write(place.with_name(f"{place.name}.{name}")) as file:
                file.write(data)


def _is_video(member: str) -> bool:
    return field_of_member(member) in MEDIA_FIELDS and member.endswith(".mp4")
