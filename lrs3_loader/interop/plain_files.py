"""Writes the samples of a run as plain files, for programs that read no tars.

Of each clip: ``KEY.npz`` (its arrays), ``KEY.json``, and where the run holds them ``KEY.wav`` (32-bit float, 16 kHz),
``KEY.face.mp4`` and ``KEY.mouth.mp4``, in folders ``split/speaker``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import atomic_write, clear_unfinished, make_folder
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import REPAIR
from lrs3_loader.run.tar import DamagedError, decode_sample
from lrs3_loader.types import MEDIA_FIELDS, SAMPLE_RATE, field_of_member

_ENDINGS = (".json", ".npz", ".wav", ".mp4")


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
    folders: set[Path] = set()
    for shard in folder.shards:
        if shard.name not in published:
            continue
        try:
            with folder.open_tar(shard) as tar:
                for index, found in enumerate(tar.samples):
                    if select is None or select(found.key):
                        place = _place(dest, found.key)
                        if place.parent not in folders:
                            make_folder(place.parent)
                            clear_unfinished(place.parent, lambda name: name.endswith(_ENDINGS))
                            folders.add(place.parent)
                        _write_clip(place, found.key, tar.read_members(index))
                        num_clips += 1
                        progress()
        except DamagedError as error:
            raise RunError(f"{error}; {REPAIR}") from error
    return num_clips


def _place(dest: Path, key: str) -> Path:
    """Return the path of a clip's files, without their endings."""
    place = dest / key
    if not place.resolve().is_relative_to(dest.resolve()):
        raise DamagedError(f"{key} is no key of a clip")
    return place


def _write_clip(place: Path, key: str, members: Mapping[str, bytearray]) -> None:
    sample = decode_sample(str(place), key, {name: data for name, data in members.items() if not _is_video(name)}, None)
    meta, audio = sample.pop("json"), sample.pop("audio", None)
    arrays, sound = io.BytesIO(), io.BytesIO()
    np.savez(arrays, **{name: array for name, array in sample.items() if not name.startswith("__")})
    text = json.dumps(meta, indent=1, sort_keys=True, ensure_ascii=False).encode()
    files: dict[str, bytes | bytearray] = {"json": text, "npz": arrays.getvalue()}
    if audio is not None:
        wavfile.write(sound, SAMPLE_RATE, audio)
        files["wav"] = sound.getvalue()
    files |= {name: data for name, data in members.items() if _is_video(name)}
    for ending, data in files.items():
        with atomic_write(place.with_name(f"{place.name}.{ending}")) as file:
            file.write(data)


def _is_video(member: str) -> bool:
    return field_of_member(member) in MEDIA_FIELDS and member.endswith(".mp4")
