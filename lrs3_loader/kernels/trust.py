"""Fast kernels are used only where they have proven themselves: once, at start-up, on the device in question.

Each model with a fast path runs a small batch by it and by plain PyTorch. All paths must prove equal, or none is used:
a run is made either with fast kernels or with plain ones, which its ``run.json`` says and which a resumed run keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lrs3_loader.errors import RunError

Choice = Literal["auto", "fast", "plain"]
Kernels = Literal["fast", "plain"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FastPath:
    """A model's faster way to the same numbers.

    Args:
        name: of the model, for messages.
        use: makes the model take its fast path, or the plain one.
        trial: runs the model on a small batch, always the same, and returns all results.
        max_difference: of the results by both paths: root mean square over the deviation of the plain ones.
    """

    name: str
    use: Callable[[bool], None]
    trial: Callable[[], Sequence[Tensor]]
    max_difference: float

    def problem(self) -> str:
        """Try the fast path; returns why it cannot be used, or nothing if it can. The model takes the plain path then.

        An error that leaves the GPU unusable, such as an illegal access, ends the process at its next use.
        """
        self.use(False)
        with torch.inference_mode():
            plain = self.trial()
            try:
                self.use(True)
                difference = max(map(_difference, self.trial(), plain))
            except Exception as error:  # whatever compilers, linkers and drivers raise: there is the plain path
                lines = str(error).strip().splitlines()
                return f"{self.name}: {type(error).__name__}: {lines[0] if lines else 'without a message'}"
            finally:
                self.use(False)
        if difference <= self.max_difference:
            return ""
        return f"{self.name}: results are off by {difference:.2g} of the deviation, more than {self.max_difference:g}"


def _difference(fast: Tensor, plain: Tensor) -> float:
    """Root mean square of the difference over the deviation of the plain results; nan where either has one."""
    off, spread = (fast.double() - plain.double()).square().mean().sqrt(), plain.double().std(correction=0)
    return float("nan") if fast.shape != plain.shape else float(off / spread.clamp_min(1e-6))


def choose_kernels(wanted: Choice, paths: Sequence[FastPath], device: torch.device) -> Kernels:
    """Decide which kernels a run uses, and make its models use them.

    Args:
        wanted: ``auto`` uses fast ones if they prove equal, and warns if they do not.
        paths: of all models that have one.
        device: that the models are on.

    Raises:
        RunError: ``fast`` is wanted, and they cannot be used; the message says why.
    """
    if device.type != "cuda":
        if wanted == "fast":
            raise RunError("--kernels fast needs a GPU; give --kernels auto")
        return "plain"
    problem = next(filter(None, (path.problem() for path in paths)), "") if wanted != "plain" else ""
    if wanted == "fast" and problem:
        raise RunError(f"--kernels fast cannot be used on this machine ({problem}); a new run can have --kernels plain")
    if problem:
        logger.warning(
            "plain kernels are used, which are slower, because fast ones cannot be trusted here: %s", problem
        )
    chosen: Kernels = "plain" if problem or wanted == "plain" else "fast"
    for path in paths:
        path.use(chosen == "fast")
    return chosen
