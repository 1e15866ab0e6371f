"""The checkpoint of a training of the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lrs3_loader.audio2motion.model import MotionModel, network_size
from lrs3_loader.train.checkpoint import Checkpoint

_AVERAGE = "average.module."  # of the names of the averaged weights


@dataclass(frozen=True)
class Audio2MotionCheckpoint(Checkpoint):
    """The state of a training; ``features`` names the speech encoder and the face model it was trained on."""

    training: ClassVar[str] = "audio2motion"

    @property
    def target(self) -> str:
        """Field that the network generates: ``idexp_lm3d`` [T, 204], decimetres x 10, or ``exp`` [T, E]."""
        return str(self.config["target"])

    @property
    def speech(self) -> str:
        """Name of the field that the speech features come from: ``hubert``, ``mel``, ``hubert_2`` ..."""
        return str(self.config["speech"])

    def network(self, device: torch.device | str = "cpu") -> MotionModel:
        """Return the trained network, of averaged weights, in evaluation mode."""
        weights = {
            name.removeprefix(_AVERAGE): value for name, value in self.model.items() if name.startswith(_AVERAGE)
        }
        widths = len(weights["speech_deviation"]), len(weights["reference_mean"])
        model = MotionModel(*widths, network_size(self.config["size"]))
        model.load_state_dict(weights)
        return model.to(device).eval()
