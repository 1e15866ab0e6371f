"""Deep3DFaceRecon's regression, one frame at a time and step by step.

The steps are the original's: landmarks turned upside down, a 10-row least-squares problem solved by LAPACK, Pillow's
resize and crop, and the network spelled out layer by layer. Nothing here uses what it
is the reference for: the placement of crops is the benchmark's, which spells it out point by point.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.pillow_alignment import five_of_68, placement

__all__ = ["five_of_68", "pillow_crop", "placement", "reference_coefficients"]

BLOCKS = (3, 4, 6, 3)


def pillow_crop(frame: np.ndarray, width: int, height: int, left: int, top: int, size: int = 224) -> np.ndarray:
    """Columns first, then rows, which Pillow from version 13 on does not do for every shape by itself."""
    image = Image.fromarray(frame)
    image = image.resize((width, image.height), Image.Resampling.BICUBIC)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def reference_crop(frame: np.ndarray, landmarks: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """u8 [H, W, 3], f32 [68, 2] (pixels, y down), f32 [5, 3] -> u8 [224, 224, 3]."""
    return pillow_crop(frame, *placement(landmarks, standard, *frame.shape[:2]))


def reference_network(weights: Mapping[str, Tensor], crop: np.ndarray) -> np.ndarray:
    """u8 [224, 224, 3] -> f32 [257], with plain f32 layers."""

    def normed(x: Tensor, conv: str, norm: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, weights[f"backbone.{conv}.weight"], stride=stride, padding=padding)
        mean, var = weights[f"backbone.{norm}.running_mean"], weights[f"backbone.{norm}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"backbone.{norm}.weight"], weights[f"backbone.{norm}.bias"])

    x = torch.from_numpy((crop / 255.0).astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    x = F.max_pool2d(F.relu(normed(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    for stage, num_blocks in enumerate(BLOCKS, start=1):
        for block in range(num_blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            y = F.relu(normed(x, f"{name}.conv1", f"{name}.bn1"))
            y = F.relu(normed(y, f"{name}.conv2", f"{name}.bn2", stride, 1))
            y = normed(y, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = normed(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = F.relu(x + y)
    x = F.adaptive_avg_pool2d(x, 1)
    heads = [F.conv2d(x, weights[f"final_layers.{i}.weight"], weights[f"final_layers.{i}.bias"]) for i in range(7)]
    return torch.cat(heads, 1)[0, :, 0, 0].numpy()


@torch.no_grad()
def reference_coefficients(
    weights: Mapping[str, Tensor], standard: np.ndarray, frame: np.ndarray, landmarks: np.ndarray
) -> np.ndarray:
    """f32 [257] of one frame."""
    return reference_network(weights, reference_crop(frame, landmarks, standard))
