"""How golden landmarks are stored: whole numbers of a stated step, as differences, compressed.

xy: 1/64 pixel, every frame; z: 1/8 pixel, every 5th frame; blendshapes: 1/4096, every frame. The error of storing is
at most half a step (0.008 px in x and y).
"""

from __future__ import annotations

import io
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

XY_STEPS, Z_STEPS, SCORE_STEPS = 64, 8, 4096
Z_STRIDE = 5


@dataclass(frozen=True)
class GoldenLandmarks:
    """What MediaPipe found in every frame of one clip."""

    about: dict[str, Any]  # versions, hashes, which frames
    xy: np.ndarray  # f64 [T, L, 2], pixels of the source
    z: np.ndarray  # f64 [ceil(T / 5), L], pixels; of frames 0, 5, 10...
    blendshapes: np.ndarray  # f64 [T, 52]; [T, 0] for a model without


def write_golden(path: Path, about: dict[str, Any], points: np.ndarray, blendshapes: np.ndarray) -> None:
    """points: [T, L, 3], all finite; blendshapes: [T, 52] or [T, 0]."""
    arrays = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    arrays |= _pack("xy", points[..., :2].transpose(2, 1, 0) * XY_STEPS)
    arrays |= _pack("z", points[::Z_STRIDE, :, 2].T * Z_STEPS)
    arrays |= _pack("blendshapes", blendshapes.T * SCORE_STEPS)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9))


def read_golden(path: Path) -> GoldenLandmarks:
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as stored:
        arrays = dict(stored)
    return GoldenLandmarks(
        json.loads(arrays["about"].tobytes()),
        _unpack("xy", arrays).transpose(2, 1, 0) / XY_STEPS,
        _unpack("z", arrays).T / Z_STEPS,
        _unpack("blendshapes", arrays).T / SCORE_STEPS,
    )


def _pack(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """First values, and steps along the last axis (time) as i16, low bytes before high ones: u8 [2, *shape]."""
    whole = np.rint(values).astype(np.int32)
    steps = np.diff(whole, axis=-1)
    if np.abs(steps).max(initial=0) >= 1 << 15:
        raise ValueError(f"{name} moves too far between two frames to be stored")
    planes = np.stack([steps & 255, steps >> 8 & 255]).astype(np.uint8)
    return {f"{name}_first": whole[..., :1], f"{name}_steps": planes}


def _unpack(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    low, high = arrays[f"{name}_steps"].astype(np.uint16)
    steps = (low | high << 8).astype(np.int16)
    return np.concatenate([arrays[f"{name}_first"], steps], -1, dtype=np.int64).cumsum(-1)
