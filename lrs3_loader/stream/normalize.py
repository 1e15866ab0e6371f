"""Normalisation of arrays by the means and deviations that ``lrs3-loader export stats`` wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import location, store_at
from lrs3_loader.run.tar import Sample
from lrs3_loader.stream.sources import Locations, split_locations
from lrs3_loader.types import MEDIA_FIELDS, field_spec

STATS_FILE = "stats.json"
LOG_F0 = "log_f0"
#: Fields that are never normalised: flags, scores whose sign has a meaning, the pose, whose angles some tasks turn into
#: quaternions, pixels and audio.
KEPT = ("valid", "speaking", "pose", "face_to_frame", "mouth_to_frame", *sorted(MEDIA_FIELDS))
_STATS = {"version": int, "fields": {str: {"mean": [float], "deviation": [float]}}}


class Normalizer:
    """Makes every number of an array ``(x - mean) / deviation``; where the deviation is 0, ``x - mean``.

    ``f0`` becomes the normalised natural logarithm of the voiced rows, by the moments ``log_f0``; unvoiced rows stay 0,
    which is the mean. Arrays become f32. The fields in ``KEPT`` stay as they are.

    Args:
        source: ``"stats"`` for the ``stats.json`` of the run, or the path of such a file.
        locations: what the stream reads.
        fields: arrays that the task reads; None: all.

    Raises:
        RunError: there is no such file (the message tells the command that writes it), it is damaged, or lacks a field.
        ValueError: ``"stats"`` of several runs, or of a tar.
    """

    def __init__(self, source: Literal["stats"] | str | Path, locations: Locations, fields: tuple[str, ...] | None):
        where, data = _read(source, locations)
        try:
            plain = decode_json(data)
            check_types(plain, _STATS)
            table = {name: _Scale(name, entry) for name, entry in plain["fields"].items()}
        except ValueError as error:
            raise RunError(f"{where} is damaged ({error}); write it again: lrs3-loader export stats RUN") from error
        self.where = where
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._scales = {name: scale for name, scale in table.items() if name not in KEPT}
        for name in fields or ():
            if field_spec(name) and name not in KEPT and _stats_name(name) not in self._scales:
                raise RunError(
                    f"{where} has no figures of {_stats_name(name)}; write it again: lrs3-loader export stats RUN"
                )

    def __call__(self, sample: Sample) -> Sample:
        """Return a sample with normalised arrays.

        Raises:
            RunError: an array has another width than the statistics (another speech encoder or face model).
        """
        changed: Sample = {}
        for name, value in sample.items():
            scale = self._scales.get(_stats_name(name))
            fits = scale is not None and isinstance(value, np.ndarray)
            changed[name] = self._scaled(name, value, scale) if scale is not None and fits else value
        return changed

    def _scaled(self, name: str, array: np.ndarray, scale: _Scale) -> np.ndarray:
        rows = array.reshape(1 if name == "id" else len(array), -1).astype(np.float32)
        if rows.shape[1] != len(scale.mean):
            raise RunError(f"{self.where} has {len(scale.mean)} numbers per row of {name}, the samples {rows.shape[1]}")
        if name != "f0":
            return ((rows - scale.mean) / scale.deviation).reshape(array.shape)
        voiced = rows > 0
        normalized = (np.log(np.where(voiced, rows, 1)) - scale.mean) / scale.deviation
        return np.where(voiced, normalized, np.float32(0)).reshape(array.shape)


class _Scale:
    """Mean and deviation of the K numbers of a row, f32 [K] each; deviations of 0 become 1."""

    def __init__(self, name: str, entry: dict[str, Any]) -> None:
        mean, deviation = (np.array(entry[part], dtype=np.float32) for part in ("mean", "deviation"))
        if mean.shape != deviation.shape or not (deviation >= 0).all():
            raise ValueError(f"{name}: {len(mean)} means and {len(deviation)} deviations, or some below 0")
        self.mean, self.deviation = mean, np.where(deviation > 0, deviation, np.float32(1))


def _stats_name(field: str) -> str:
    return LOG_F0 if field == "f0" else field


def _read(source: str | Path, locations: Locations) -> tuple[str, bytes]:
    """Return where the file is, and its contents."""
    if str(source) != "stats":
        place, name = location(str(Path(source).parent)), Path(source).name
    else:
        found = split_locations(locations)
        if len(found) != 1 or found[0].startswith("pipe:") or found[0].endswith(".tar"):
            raise ValueError("normalize='stats' takes one run; of several, name the file: normalize='RUN/stats.json'")
        place, name = location(found[0]), STATS_FILE
    store = store_at(place)
    where = store.where(name)
    try:
        return where, store.read(name)
    except FileNotFoundError as error:
        raise RunError(f"there is no {where}; write it with: lrs3-loader export stats RUN") from error
