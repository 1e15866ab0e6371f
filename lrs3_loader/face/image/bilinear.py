"""Exact bilinear interpolation of u8 images on a CPU, by PyTorch's ``grid_sample``.

``grid_sample`` takes positions as fractions of an image's sides, which are exact for sides of 2^k + 1 pixels. It is
told that images have such sides. Nothing is read of what would lie beyond their own, except with a weight of 0.

Letters: H W image size, R C rows and columns of positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Bilinear:
    """Interpolates between the pixels of one image after the other, whose sides are at most ``longest`` pixels.

    Converted pixels are kept in memory that is used again, so that they stay in the cache.
    """

    def __init__(self, longest: int) -> None:
        self._last = 1 << max(longest - 1, 1).bit_length()
        self._memory = torch.empty(0)
        self.pixel = 2.0 / self._last  # from one pixel to the next in a grid, where the first is at -1

    def sample(self, image: Tensor, grid: Tensor) -> Tensor:
        """Sample an image.

        Args:
            image: u8 [H, W, 3].
            grid: f32 [2, R, C], x and y of the positions, none outside of the image: columns and rows, times
                ``pixel``, minus 1.

        Returns:
            f32 [3, R, C], rounded nowhere if positions are multiples of 2^-8 pixels.
        """
        height, width, _ = image.shape
        used, row = 3 * height * width, 3 * (width + 1)
        if self._memory.numel() < self._last * row + 3:
            self._memory = torch.empty(self._last * row + 3)
        self._memory[:used].view(height, width, 3).copy_(image)
        self._memory[used : used + row].zero_()  # read with a weight of 0, but by chance it might be NaN
        sides = (1, 3, self._last + 1, self._last + 1)
        source = self._memory.as_strided(sides, (0, 1, 3 * width, 3))
        return F.grid_sample(source, grid.permute(1, 2, 0)[None], padding_mode="border", align_corners=True)[0]


def pixel_pairs(image: Tensor, first: Tensor) -> Tensor:
    """Collect pixels and their neighbours to the right, side by side: u8 [R, 2 C, 3].

    Args:
        image: u8 [H, W, 3], contiguous.
        first: i32 [R, C], number of each pixel in the image, row by row; not the last one.
    """
    # Neighbours are adjacent in memory: six bytes from each pixel, in overlapping rows.
    pairs = image.view(-1).as_strided((image.numel() // 3 - 1, 6), (3, 1), image.storage_offset())
    return pairs.index_select(0, first.view(-1)).view(len(first), 2 * first.shape[1], 3)


def write_levels(values: Tensor, out: Tensor) -> None:
    """Round f32 [3, R, C] of 0..255, halves up, into u8 [R, C, 3]. The values are changed."""
    target = out.numpy()  # NumPy converts and interleaves in one pass, and drops fractions
    for channel, plane in enumerate(values.add_(0.5).numpy()):
        target[..., channel] = plane
