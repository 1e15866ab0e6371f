"""Crops and letterboxes of all frames of a batch, which come as spans of several clips and sizes.

On a GPU each of them can be an operator of one kernel per span. The operators' definitions, which run everywhere, are
those of ``image.warp``; both give the same levels.

Letters: n frames of a span, N of all spans, B frames of a batch, H W source size, S side of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrs3_loader.face.image.resample import resize_crop_spans
from lrs3_loader.face.image.warp import crop, letterbox
from lrs3_loader.kernels.trust import FastPath
from lrs3_loader.runtime.transfer import to_device


def plain_crop_spans(frames: Sequence[Tensor], matrix: Tensor, size: int, batch: int) -> Tensor:
    """Crop all frames, see ``warp.crop``.

    Args:
        frames: u8 [n, H, W, 3] of each span.
        matrix: f32 [N, 2, 3].
        size: S.
        batch: B, at least N; images beyond N are black.

    Returns:
        u8 [B, S, S, 3].
    """
    out, parts = _batch(frames, size, batch)
    for part, own, into in zip(frames, matrix.split([len(part) for part in frames]), parts, strict=True):
        crop(part, own, size, into)
    return out


def plain_letterbox_spans(frames: Sequence[Tensor], size: int, batch: int) -> Tensor:
    """Resize all frames into black squares, see ``warp.letterbox``: u8 [B, S, S, 3], arguments as above."""
    out, parts = _batch(frames, size, batch)
    for part, into in zip(frames, parts, strict=True):
        letterbox(part, size, into)
    return out


def _batch(frames: Sequence[Tensor], size: int, batch: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Make room for a batch of images, black beyond the frames: u8 [B, S, S, 3], and the part of each span."""
    out = frames[0].new_empty(batch, size, size, 3)
    lengths = [len(part) for part in frames]
    out[sum(lengths) :] = 0
    return out, out[: sum(lengths)].split(lengths)


crop_spans = torch.library.custom_op("lrs3_loader::crop_spans", plain_crop_spans, mutates_args=())
letterbox_spans = torch.library.custom_op("lrs3_loader::letterbox_spans", plain_letterbox_spans, mutates_args=())


@crop_spans.register_fake
def _(frames: Sequence[Tensor], matrix: Tensor, size: int, batch: int) -> Tensor:
    return matrix.new_empty(batch, size, size, 3, dtype=torch.uint8)


@letterbox_spans.register_fake
def _(frames: Sequence[Tensor], size: int, batch: int) -> Tensor:
    return frames[0].new_empty(batch, size, size, 3)


@crop_spans.register_kernel("cuda")
def _(frames: Sequence[Tensor], matrix: Tensor, size: int, batch: int) -> Tensor:
    from lrs3_loader.kernels.on_gpu import sampling

    out = frames[0].new_zeros(batch, size, size, 3)
    lengths = [len(part) for part in frames]
    for part, own, into in zip(frames, matrix.split(lengths), out[: sum(lengths)].split(lengths), strict=True):
        sampling.crop(part.contiguous(), own, into)
    return out


@letterbox_spans.register_kernel("cuda")
def _(frames: Sequence[Tensor], size: int, batch: int) -> Tensor:
    from lrs3_loader.kernels.on_gpu import sampling

    out = frames[0].new_zeros(batch, size, size, 3)
    lengths = [len(part) for part in frames]
    for part, into in zip(frames, out[: sum(lengths)].split(lengths), strict=True):
        sampling.letterbox(part.contiguous(), into)
    return out


class SpanSampler:
    """Samples the frames of batches on one device: at first by PyTorch's own operations, see ``fast_path``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_fused = False

    def crop(self, frames: Sequence[Tensor], matrix: Tensor, size: int, batch: int) -> Tensor:
        """See ``plain_crop_spans``."""
        make = crop_spans if self.is_fused else plain_crop_spans
        return make(list(frames), matrix, size, batch)

    def letterbox(self, frames: Sequence[Tensor], size: int, batch: int) -> Tensor:
        """See ``plain_letterbox_spans``."""
        make = letterbox_spans if self.is_fused else plain_letterbox_spans
        return make(list(frames), size, batch)

    def resize_crop(self, frames: Sequence[Tensor], resized: Tensor, corner: Tensor, size: int) -> Tensor:
        """See ``resample.resize_crop_spans``."""
        return resize_crop_spans(frames, resized, corner, size, is_fused=self.is_fused)

    def fast_path(self) -> FastPath:
        """Return the way by one kernel per span, whose levels must be the same."""

        def use(wanted: bool) -> None:
            self.is_fused = wanted

        return FastPath("sampling of frames", use, self._trial, max_difference=0.0)

    def _trial(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((3, 90, 120, 3), (2, 64, 48, 3))
        frames = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
        frames = [to_device(part, self.device) for part in frames]
        matrix = torch.randn(5, 2, 3, generator=generator) * torch.tensor([1.0, 1.0, 30.0])
        resized = torch.tensor([[140, 110]] * 3 + [[30, 40]] * 2)
        corner = torch.tensor([[40, -9]] * 3 + [[-3, 5]] * 2)
        return [
            self.crop(frames, to_device(matrix, self.device), 64, 6),
            self.letterbox(frames, 64, 6),
            self.resize_crop(frames, resized, corner, 48),
        ]
