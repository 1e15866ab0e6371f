"""The checkpoint of a lip-sync training."""

from __future__ import annotations

import torch

from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.train.checkpoint import Checkpoint


class SyncNetCheckpoint(Checkpoint):
    """The state of a training by ``train-syncnet``."""

    training = "syncnet"

    def network(self, device: torch.device | str = "cpu") -> SyncNetModel:
        """Return the trained network in evaluation mode."""
        model = SyncNetModel(len(self.model["hubert_mean"]), int(self.config["width"]))
        model.load_state_dict(self.model)
        return model.to(device).eval()
