"""Chooses the samples of a shard by their figures, as its ledger is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrs3_loader.io.storage import Store
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.offsets import read_offsets
from lrs3_loader.selection.expression import OFFSET_COLUMNS, Expression


class Where:
    """The condition of a stream; it remembers which figures the ledgers had."""

    def __init__(self, expression: Expression):
        self.expression = expression
        self._names = frozenset(expression.names)
        self._offsets: dict[str, Sequence[Mapping[str, Any]] | None] = {}  # by run
        self._seen = FigureTable.of_ledgers([], only=self._names)

    def mask(self, store: Store, ledger: Ledger) -> np.ndarray:
        """Return the mask [n] of the samples of a ledger, in the run of this store, that are chosen.

        Raises:
            RunError: its figures, or the offsets of its run, are damaged.
        """
        table = FigureTable.of_ledgers([ledger], str(store.root), only=self._names)
        if self._names & OFFSET_COLUMNS.keys():
            root = str(store.root)
            if root not in self._offsets:
                self._offsets[root] = read_offsets(store)
            if (offsets := self._offsets[root]) is not None:
                table = table.with_offsets(offsets)
        empty = dict.fromkeys(ledger.figures, np.zeros(0))
        columns = {**self._seen.columns, **empty, **{name: column[:0] for name, column in table.columns.items()}}
        has = np.concatenate([self._seen.has_figures, table.has_figures])
        self._seen = FigureTable(columns, has, table.name)
        return self.expression.chooses(table.columns, len(table))

    def require(self) -> None:
        """Check that some ledger had each figure that the condition reads; raises ``RunError`` otherwise."""
        self.expression.require(self._seen)
