"""The options by which commands choose clips; imports nothing heavy, so that command lines are quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lrs3_loader.errors import RunError
from lrs3_loader.selection.presets import PRESETS

if TYPE_CHECKING:
    from lrs3_loader.selection.expression import Expression


@dataclass(frozen=True)
class Choice:
    """Choice of clips by their figures (docs/quality.md)."""

    where: str | None = None
    """Only clips for which this condition is true: "face_size_px > 150 and abs(yaw_p95) < 40"."""
    preset: Literal["latentsync", "talkvid", "hallo"] | None = None
    """Only clips that pass the published rule of this project; with --where both must hold."""

    def expression(self) -> Expression | None:
        """Return the condition, or None if all clips are chosen; raises ``RunError`` if it is none."""
        from lrs3_loader.selection.expression import ExpressionError, parse_where

        try:
            return parse_where([PRESETS[self.preset].where if self.preset else None, self.where])
        except ExpressionError as error:
            raise RunError(f"--where: {error}") from error

    @property
    def text(self) -> str | None:
        """The condition as text."""
        expression = self.expression()
        return None if expression is None else expression.text
