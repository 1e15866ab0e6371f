from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrs3_loader.types import Clip, DecodedChunk, shape_repr
from support.factory import make_features


@dataclass(frozen=True)
class Payload:
    name: str
    values: Any

    __repr__ = shape_repr


def test_payloads_print_shapes_instead_of_values() -> None:
    assert repr(Payload("a", torch.zeros(2, 3, dtype=torch.uint8))) == "Payload(name='a', values=u8[2, 3])"
    assert repr(Payload("a", np.zeros((0, 4), np.float32))) == "Payload(name='a', values=f32[0, 4])"
    parts = (torch.zeros(1, dtype=torch.bfloat16), [np.zeros(2, bool), 3], {"x": np.zeros((), np.int64), "y": None})
    assert (
        repr(Payload("a", parts)) == "Payload(name='a', values=tuple(bf16[1], list(bool[2], 3), {x: i64[], y: None}))"
    )


def test_the_payloads_of_a_run_do() -> None:
    clip = Clip("a/b/c", "c.mp4", 1)
    chunk = DecodedChunk(clip, 200, 100, torch.zeros(4, 6, 8, 3, dtype=torch.uint8), None)
    assert (
        repr(chunk)
        == f"DecodedChunk(clip={clip!r}, num_frames=200, start=100, frames=u8[4, 6, 8, 3], head=None, damaged=tuple())"
    )
    assert "mel: f32[" in repr(make_features(clip))
