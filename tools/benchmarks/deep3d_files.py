"""Files of Deep3DFaceRecon's names and layout with seeded weights: as much work as the real ones, nothing licensed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from torch import Tensor
from torchvision.models import resnet50

from lrs3_loader.assets.locate import DEEP3D, STANDARD_FACE
from lrs3_loader.demo import demo_head

HEADS = (80, 64, 80, 3, 27, 2, 1)


def make_deep3d(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint and its standard face (the demo head's landmarks); returns the checkpoint's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / DEEP3D, make_weights(seed))
    write_standard_face(folder / STANDARD_FACE, demo_head().landmark_mean.numpy())
    return folder / DEEP3D


@torch.no_grad()
def make_weights(seed: int = 0) -> dict[str, Tensor]:
    """Seeded weights under the checkpoint's names; normalisations are set by what noise pictures give.

    Residual branches are weak (gain 0.1 to 0.5), as in trained networks: else rounding errors grow from block to block.
    """
    with torch.random.fork_rng(devices=[]):
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
    network.train()(torch.nn.functional.interpolate(pictures, size=96, mode="bicubic").clamp(0, 1))
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
