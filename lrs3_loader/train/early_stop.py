"""Remembers the best evaluation of a training, and how many have followed that are no better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BestSoFar:
    """The best evaluation so far, by one figure."""

    value: float
    step: int  # optimiser steps before it
    num_since: int = 0  # evaluations since then; none of them was better

    def then(self, value: float, step: int, good: Literal["highest", "lowest"]) -> BestSoFar:
        """Return the best after another evaluation. NaN is worse than any number."""
        ahead = value > self.value if good == "highest" else value < self.value
        better = ahead or (math.isnan(self.value) and not math.isnan(value))
        return BestSoFar(value, step) if better else BestSoFar(self.value, self.step, self.num_since + 1)

    def is_over(self, patience: int | None) -> bool:
        """Return whether the training has lasted long enough."""
        return patience is not None and self.num_since >= patience
