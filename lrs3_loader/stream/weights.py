"""How often each sample comes in an epoch: weights of clips, speakers in balance, and shares of several runs.

A weight is the expected number of times per epoch. A clip of weight w comes ``floor(w)`` or ``ceil(w)`` times: with
weight 1 exactly once, with 2 exactly twice, with 0.5 in every second epoch on average, with 0 never. The number of
samples of an epoch is the sum of the weights, rounded up or down. What comes is a function of seed and epoch, so ranks,
workers and resumed trainings agree.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.stream.catalog import Catalog

Weights = Mapping[str, float] | Callable[[str], float] | Literal["speakers"]
_STREAM = 2  # tells these random numbers from those of shuffling and cropping


class SampleWeights:
    """The weights of all samples of a catalog.

    Args:
        catalog: the samples.
        weights: by key (clips that are not named have weight 1), a function of the key, ``"speakers"`` (all speakers
            come equally often, and an epoch has as many samples as clips), or None (1).
        mix: the share of each location in an epoch, which then has as many samples as clips; None: as it is.

    Raises:
        ValueError: a weight is negative or not finite, or there are not as many shares as locations.
        RunError: all weights of a location (with ``mix``), or of all samples, are 0.
    """

    def __init__(self, catalog: Catalog, weights: Weights | None, mix: Sequence[float] | None) -> None:
        keys = [catalog.key(sample_id) for sample_id in range(len(catalog))]
        speakers = np.unique([key.split("/")[-2] if "/" in key else key for key in keys], return_inverse=True)[1]
        self._groups = np.zeros(len(keys), np.int64)
        if weights == "speakers":
            self.values, self._groups = len(keys) / (speakers.max() + 1) / np.bincount(speakers)[speakers], speakers
        else:
            self.values = _by_key(keys, weights)
        if mix is not None:
            self.values = _mixed(self.values, catalog.locations(), mix)
            self._groups = self._groups + catalog.locations() * len(keys)
        if not self.values.sum() > 0:
            raise RunError("the weights of all clips are 0: nothing would be read")
        self.sha256 = hashlib.sha256(self.values.tobytes()).hexdigest()

    @property
    def max_samples(self) -> int:
        """The most samples of an epoch."""
        return math.ceil(self.values.sum()) + 1

    def counts(self, seed: int, epoch: int) -> np.ndarray:
        """Return how often each sample comes in an epoch: i64 [n].

        Systematic sampling: the weights, in random order within each location and balanced speaker, are laid end to
        end, and a sample comes once for each of the points u, u + 1, u + 2 ... that fall into its piece. So the samples
        of a location or balanced speaker are as many as its weights add up to, rounded up or down.
        """
        random = np.random.default_rng([seed, epoch, _STREAM])
        order = np.lexsort((random.random(len(self.values)), self._groups))
        stops = np.floor(np.cumsum(self.values[order]) + random.random()).astype(np.int64)
        counts = np.empty(len(order), np.int64)
        counts[order] = np.diff(stops, prepend=0)
        return counts


def _by_key(keys: Sequence[str], weights: Weights | None) -> np.ndarray:
    if weights is None:
        return np.ones(len(keys))
    if isinstance(weights, str):
        raise ValueError(f"weights must be 'speakers', a table by key or a function of the key, got {weights!r}")
    values = [weights.get(key, 1.0) if isinstance(weights, Mapping) else weights(key) for key in keys]
    for key, value in zip(keys, values, strict=True):
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"the weight of {key} must be a number of at least 0, got {value!r}")
    return np.array(values, dtype=np.float64)


def _mixed(values: np.ndarray, locations: np.ndarray, mix: Sequence[float]) -> np.ndarray:
    """Scale weights [n] so that each location (numbers [n]) has its share of as many samples as there are clips."""
    shares = np.array(mix, dtype=np.float64)
    if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"mix must be shares of at least 0, not all 0, got {list(mix)}")
    totals = np.bincount(locations, values, len(shares))
    for number, (share, total) in enumerate(zip(shares, totals, strict=True)):
        if share > 0 and not total > 0:
            raise RunError(f"mix gives location {number} a share of {share:g}, but none of its clips is selected")
    scale = np.divide(shares / shares.sum() * len(values), totals, out=np.zeros_like(shares), where=totals > 0)
    return values * scale[locations]
