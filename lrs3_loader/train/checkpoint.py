"""The checkpoint of a training, a file that is written atomically."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import write_result
from lrs3_loader.io.safe_load import load_plain
from lrs3_loader.run.record import differences

CHECKPOINT_FILE = "checkpoint.pt"  # the latest state
BEST_FILE = "best.pt"  # the state at the best evaluation

Some = TypeVar("Some", bound="Checkpoint")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training: plain values and tensors, so that loading unpickles nothing else.

    Each training has a subclass, which says its name, and makes the network of ``config`` and ``model``.
    """

    training: ClassVar[str]  # the command is train-<training>

    model: dict[str, Any]  # state_dict of the network
    optimizer: dict[str, Any]  # state_dict of AdamW
    stream: dict[str, Any]  # state_dict of the ``ShardStream``
    step: int  # optimiser steps so far
    evaluated_step: int  # step of the last evaluation, or -1
    config: dict[str, Any]  # ``TrainingConfig``
    features: dict[str, Any]  # see ``Objective.features``
    speakers: list[str]  # speakers of the training clips, sorted
    best: dict[str, Any] | None = None  # ``BestSoFar``; None before the first evaluation

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        buffer = io.BytesIO()
        torch.save({"format": self._format(), **{item.name: getattr(self, item.name) for item in fields(self)}}, buffer)
        with write_result(path) as file:
            file.write(buffer.getbuffer())

    @classmethod
    def load(cls: type[Some], path: Path) -> Some:
        """Load a checkpoint onto the CPU.

        Raises:
            RunError: the file is missing, damaged or not a checkpoint of this training.
        """
        try:
            plain = load_plain(path)
        except OSError as error:
            raise RunError(f"cannot read the checkpoint {path}: {error.strerror}") from error
        except ValueError as error:
            raise RunError(f"{path} is damaged or not a checkpoint of train-{cls.training}") from error
        if not isinstance(plain, dict) or plain.get("format") != cls._format():
            raise RunError(f"{path} is not a checkpoint of train-{cls.training} (of this version)")
        known = {item.name for item in fields(cls)}  # those of earlier versions have others, too
        return cls(**{name: value for name, value in plain.items() if name in known})

    @classmethod
    def _format(cls) -> str:
        return f"lrs3_loader {cls.training} 1"


def feature_models(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the models in ``run.json`` that must be those of the training when a network is used on a run."""
    models = record.get("models", {})
    speech, face = models.get("speech", {}), models.get("face_model", {})
    regression = record.get("config", {}).get("regression", {})
    return {
        "speech": {name: speech.get(name) for name in ("model", "sha256", "layer", "width")},
        "face_model": {name: face.get(name) for name in ("name", "sha256")},
        "idexp": regression.get("idexp", "fit"),
    }


def feature_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare what ``feature_models`` returned for two runs; a speech encoder of equal weights may have another name.

    Returns:
        a line for each difference.
    """
    speech, other = then.get("speech"), now.get("speech")
    if isinstance(speech, dict) and isinstance(other, dict) and speech.get("sha256") == other.get("sha256") is not None:
        now = {**now, "speech": {**other, "model": speech.get("model")}}
    return differences(dict(then), dict(now))
