"""Sends figures of a running extraction or training to TensorBoard and Weights & Biases, where a user asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError

TENSORBOARD = "pip install 'lrs3_loader[train]'"
WANDB = "pip install 'lrs3_loader[wandb]'"


@dataclass(frozen=True)
class BoardConfig:
    """Where figures are sent beside the program's own files; nowhere unless it is asked for."""

    tensorboard: Path | None = None
    """Folder for TensorBoard's event files; figures of this launch are written there."""
    wandb: str | None = None
    """Project of Weights & Biases to send figures to (with WANDB_MODE=offline they are kept in the folder wandb)."""

    @property
    def is_on(self) -> bool:
        """Return whether figures are sent to any of the two."""
        return self.tensorboard is not None or self.wandb is not None

    def require(self) -> None:
        """Check, before anything is loaded, that the packages are installed; raises ``RunError`` if one is not."""
        for option, place, install in (("tensorboard", self.tensorboard, TENSORBOARD), ("wandb", self.wandb, WANDB)):
            if place is not None and find_spec(option) is None:
                raise RunError(f"--{option} needs the package {option}; {install}")

    def inside(self, folder: str) -> BoardConfig:
        """Return the same for one of several trainings, whose event files lie in a folder of their own."""
        return self if self.tensorboard is None else replace(self, tensorboard=self.tensorboard / folder)


class Boards:
    """Writes named figures to every board that is asked for; without any it does nothing.

    Args:
        name: of the run, as it is displayed.
        identity: of the run: a later launch with the same continues the same run on Weights & Biases.
        settings: of the run, displayed beside it.
        first_step: TensorBoard forgets what earlier launches wrote of later steps.

    Raises:
        RunError: a package is missing, or a board cannot be opened.
    """

    def __init__(
        self, config: BoardConfig, *, name: str, identity: str, settings: Mapping[str, Any], first_step: int = 0
    ) -> None:
        config.require()
        self._writer = None if config.tensorboard is None else _open_tensorboard(config.tensorboard, first_step)
        self._run = None if config.wandb is None else _open_wandb(config.wandb, name, identity, settings)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures of one step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def __enter__(self) -> Boards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)


def _open_tensorboard(folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder), purge_step=first_step + 1)
    except OSError as error:
        raise RunError(f"cannot write for TensorBoard to {folder}: {error.strerror}") from error


def _open_wandb(project: str, name: str, identity: str, settings: Mapping[str, Any]) -> Any:
    import wandb

    try:
        return wandb.init(project=project, name=name, id=identity, resume="allow", config=dict(settings))
    except (wandb.errors.Error, OSError) as error:
        raise RunError(f"Weights & Biases cannot be opened: {error}; WANDB_MODE=offline needs no network") from error
