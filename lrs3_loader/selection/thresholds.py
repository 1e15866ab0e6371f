"""Finds the bounds that a condition sets for single figures, to mark them on a distribution."""

from __future__ import annotations

import ast
from itertools import pairwise
from typing import NamedTuple

from lrs3_loader.selection.expression import ARITHMETIC, Expression

_SIGNS: dict[type, str] = {ast.Lt: "<", ast.LtE: "≤", ast.Gt: ">", ast.GtE: "≥", ast.Eq: "=", ast.NotEq: "≠"}
_MIRRORED = {"<": ">", "≤": "≥", ">": "<", "≥": "≤", "=": "=", "≠": "≠"}


class Threshold(NamedTuple):
    """A bound of one figure: ``sign`` (< ≤ > ≥ = ≠) and ``value`` of ``figure``, or of its magnitude."""

    figure: str
    sign: str
    value: float
    is_magnitude: bool = False  # of abs(figure): the bound holds on both sides of 0

    @property
    def places(self) -> tuple[float, ...]:
        """The values of the figure at which the condition changes."""
        return (-self.value, self.value) if self.is_magnitude else (self.value,)

    def __str__(self) -> str:
        bars = "|" if self.is_magnitude else ""
        return f"{bars}{self.figure}{bars} {self.sign} {self.value:.4g}"


def thresholds(where: Expression) -> list[Threshold]:
    """Return the bounds among the conditions that ``and`` joins.

    A bound compares a figure, its ``abs`` or its ``sqrt`` with a number: ``abs(yaw_p95) < 40`` and ``30 < x <= 50 / 2``
    have bounds, ``x < y`` and conditions in ``or`` or ``not`` have none.
    """
    found = []
    for condition in where.conditions:
        tree = ast.parse(condition.text, mode="eval").body
        if isinstance(tree, ast.Compare):
            sides = [tree.left, *tree.comparators]
            for (left, right), sign in zip(pairwise(sides), tree.ops, strict=True):
                found.append(_bound(left, _SIGNS.get(type(sign), ""), right))
    return [bound for bound in found if bound is not None]


def _bound(left: ast.expr, sign: str, right: ast.expr) -> Threshold | None:
    number = _number(right)
    if number is None:
        left, sign, number = right, _MIRRORED.get(sign, ""), _number(left)
    if number is None or not sign:
        return None
    if isinstance(left, ast.Name):
        return Threshold(left.id, sign, number)
    if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and isinstance(left.args[0], ast.Name):
        if left.func.id == "abs" and number >= 0:
            return Threshold(left.args[0].id, sign, number, is_magnitude=True)
        if left.func.id == "sqrt" and number >= 0:
            return Threshold(left.args[0].id, sign, number**2)
    return None


def _number(node: ast.expr) -> float | None:
    """The value of an expression of numbers; None if it is something else, or has none."""
    if isinstance(node, ast.Constant):
        return float(node.value) if isinstance(node.value, (int, float)) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _number(node.operand)
        return -inner if inner is not None and isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        first, second = _number(node.left), _number(node.right)
        if first is not None and second is not None and not (isinstance(node.op, ast.Div) and second == 0):
            return float(ARITHMETIC[type(node.op)](first, second))
    return None
