"""Deep3DFaceRecon's regression, one frame at a time and step by step, and a checkpoint of its layout.

The steps are the original's: landmarks turned upside down, a 10-row least-squares problem solved by LAPACK, Pillow's
resize and crop, and the network spelled out layer by layer. Nothing here uses ``lrs3_loader``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision.models import resnet50

HEADS = (80, 64, 80, 3, 27, 2, 1)
BLOCKS = (3, 4, 6, 3)


def five_of_68(landmarks: np.ndarray) -> np.ndarray:
    left = np.mean(landmarks[[36, 39]], 0)
    right = np.mean(landmarks[[42, 45]], 0)
    return np.stack([left, right, landmarks[30], landmarks[48], landmarks[54]])


def weak_perspective(points: np.ndarray, standard: np.ndarray) -> tuple[np.ndarray, float]:
    """Projected origin [2] and scale of the standard face [5, 3] that come closest to points [5, 2]."""
    rows, values = [], []
    for (x, y), corner in zip(points, standard, strict=True):
        rows.append([*corner, 1, 0, 0, 0, 0])
        rows.append([0, 0, 0, 0, *corner, 1])
        values += [x, y]
    k = np.linalg.lstsq(np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64), rcond=None)[0]
    return k[[3, 7]], (np.linalg.norm(k[0:3]) + np.linalg.norm(k[4:7])) / 2


def placement(landmarks: np.ndarray, standard: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Width and height after resizing, left and top of the crop."""
    points = five_of_68(landmarks.astype(np.float32))
    points[:, 1] = height - 1 - points[:, 1]
    centre, scale = weak_perspective(points, standard)
    scale = 102.0 / scale
    new_width, new_height = int(width * scale), int(height * scale)
    left = int(new_width / 2 - 112 + (centre[0] - width / 2) * scale)
    top = int(new_height / 2 - 112 + (height / 2 - centre[1]) * scale)
    return new_width, new_height, left, top


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


@torch.no_grad()
def make_weights(seed: int = 0) -> dict[str, Tensor]:
    """Seeded weights under the checkpoint's names; normalisations are set by what noise pictures give.

    Residual branches are weak (gain 0.1 to 0.5), as in trained networks: else rounding errors grow from block to block.
    """
    torch.manual_seed(seed)
    network = resnet50(num_classes=1)
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain average
            low, span = (0.1, 0.4) if name.endswith("bn3") else (0.5, 1.0)
            module.weight.copy_(low + span * torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
    pictures = torch.rand(4, 3, 8, 8, generator=generator)
    network.train()(F.interpolate(pictures, size=96, mode="bicubic").clamp(0, 1))
    weights = {f"backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    for i, width in enumerate(HEADS):
        weights[f"final_layers.{i}.weight"] = torch.randn(width, 2048, 1, 1, generator=generator) * 0.02
        weights[f"final_layers.{i}.bias"] = torch.randn(width, generator=generator) * 0.1
    return weights


def write_checkpoint(path: Path, weights: Mapping[str, Tensor]) -> None:
    """As the original saves it: the network beside the state of its optimiser."""
    optimiser = {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
    torch.save({"net_recon": dict(weights), "opt_00": optimiser}, path)


def write_standard_face(path: Path, landmarks: np.ndarray) -> None:
    """landmarks: [68, 3]."""
    savemat(path, {"lm": landmarks.astype(np.float32)})
