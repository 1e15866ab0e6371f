"""A fixed number of rows drawn at random from all rows of a field, for percentiles; any two such samples can be merged.

Every row gets a random number that depends on its clip's key alone, and those with the lowest numbers are kept. So the
result is the same in any order of clips and parts, and it is all rows where there are no more than are kept.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

NUM_ROWS = 4096
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class RowSample:
    """Rows in parts, and the random numbers that they were drawn by; up to twice as many as are kept in the end."""

    parts: tuple[tuple[np.ndarray, np.ndarray], ...]  # (numbers [n] f64, rows [n, K])
    bound: float = math.inf  # rows with higher numbers are not among those kept

    @classmethod
    def of(cls, rows: np.ndarray, key: str, name: str) -> RowSample:
        """Draw from the rows [N, K] of a field of one clip."""
        seed = [zlib.crc32(key.encode(errors="surrogateescape")), zlib.crc32(name.encode())]
        return cls(((np.random.default_rng(seed).random(len(rows)), rows),)).merge(cls(()))

    def merge(self, other: RowSample) -> RowSample:
        """Return a sample of both sets of rows together."""
        bound = min(self.bound, other.bound)
        parts = []
        for numbers, rows in self.parts + other.parts:
            low = numbers <= bound
            if low.any():
                parts.append((numbers, rows) if low.all() else (numbers[low], rows[low]))
        merged = RowSample(tuple(parts), bound)
        return merged._lowest() if sum(len(numbers) for numbers, _ in parts) > 2 * NUM_ROWS else merged

    def rows(self) -> np.ndarray:
        """Return the rows that are kept, [at most NUM_ROWS, K]."""
        return np.concatenate([rows for _, rows in self._lowest().parts])

    def _lowest(self) -> RowSample:
        """Keep the ``NUM_ROWS`` rows with the lowest numbers, in the order of these."""
        numbers, rows = (np.concatenate(found) for found in zip(*self.parts, strict=True))
        kept = np.argsort(numbers, kind="stable")[:NUM_ROWS]
        bound = self.bound if len(kept) < NUM_ROWS else float(numbers[kept[-1]])
        return RowSample(((numbers[kept], rows[kept]),), bound)

    def percentiles(self) -> dict[str, list[float]]:
        """Return the percentiles of ``PERCENTILES`` of each of the K numbers, linearly interpolated."""
        found = np.percentile(self.rows().astype(np.float64), PERCENTILES, axis=0)
        return {str(percent): row.tolist() for percent, row in zip(PERCENTILES, found, strict=True)}
