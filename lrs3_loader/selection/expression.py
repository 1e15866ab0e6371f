"""A small language for choosing clips: ``face_size_px > 150 and abs(yaw_p95) < 40 and split != "test"``.

An expression is parsed by Python's own grammar, of which only conditions over the columns of a ``FigureTable`` are
admitted; nothing is executed. It has comparisons (also ``a < b < c``, ``in (...)``), ``and``, ``or``, ``not``,
``+ - * /`` and the functions of ``FUNCTIONS``. A comparison with a figure that a clip does not have is neither true nor
false (Kleene's logic of three values, as in SQL): the clip is not chosen, not even by ``not``; ``known(x)`` asks.

Letters: n clips.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.quality.figures import FIGURES
from lrs3_loader.run.figure_table import TEXT_COLUMNS, FigureTable

MAX_LENGTH = 10_000
MAX_NODES = 2_000
MAX_DEPTH = 60
OFFSET_COLUMNS = {"sync_offset": "frames; positive: the audio is late", "sync_confidence": "0..2"}
FUNCTIONS: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "log10": (1, np.log10),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
Kind = Literal["number", "text", "condition"]
_A: dict[Kind, str] = {"number": "a number", "text": "a text", "condition": "a condition"}


class ExpressionError(ValueError):
    """An expression that is no condition over the columns of a table; the message says what is wrong and where."""


@dataclass(frozen=True)
class _Value:
    """An intermediate result: f64 or object [n], or for a condition bool [n]; and where it is known."""

    kind: Kind
    data: Any
    known: Any  # bool [n], or True


@dataclass(frozen=True)
class Expression:
    """A condition over the columns of a table. ``parse`` checks it; two of equal text are equal."""

    text: str

    def __post_init__(self) -> None:
        tree = _parse(self.text)
        empty = {name: np.zeros(0, object if name in TEXT_COLUMNS else np.float64) for name in _names(tree)}
        kind = _Evaluation(self.text, empty, 0).value(tree).kind
        if kind != "condition":
            raise ExpressionError(f"{self.text!r} is {_A[kind]}, not a condition; compare it, as in {self.text} > 0")

    @property
    def names(self) -> list[str]:
        """The columns that it reads, sorted."""
        return sorted(_names(_parse(self.text)))

    @property
    def conditions(self) -> list[Expression]:
        """The conditions that ``and`` joins at its top level, in their order."""
        tree = _parse(self.text)
        parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
        return [Expression(ast.unparse(part)) for part in parts]

    def require(self, table: FigureTable) -> None:
        """Check that a table has all columns that the expression reads.

        Raises:
            RunError: it does not; the message says which, and what to do.
        """
        for name in self.names:
            if name not in table.columns:
                raise RunError(f"in {self.text!r}: {_why_missing(name, table)}")

    def chooses(self, columns: Mapping[str, np.ndarray], num_clips: int) -> np.ndarray:
        """Return the mask [n] of the clips for which the expression is true; a column that is missing has no values."""
        tree = _parse(self.text)
        missing = {name: np.full(num_clips, np.nan) for name in _names(tree) if name not in columns}
        result = _Evaluation(self.text, {**columns, **missing}, num_clips).value(tree)
        return np.array(np.broadcast_to(result.data & result.known, num_clips))


def parse_where(texts: Iterable[str | None]) -> Expression | None:
    """Join expressions by ``and``; None if there is none.

    Raises:
        ExpressionError: one is no condition.
    """
    given = [Expression(text) for text in texts if text]
    if not given:
        return None
    return given[0] if len(given) == 1 else Expression(" and ".join(f"({each.text})" for each in given))


def known_names() -> dict[str, str]:
    """Return all names that an expression may use, with their units."""
    fixed = {**dict.fromkeys(TEXT_COLUMNS, "text"), "num_frames": "frames at 25 fps", "duration_seconds": "s"}
    return {**fixed, **{name: figure.unit for name, figure in FIGURES.items()}, **OFFSET_COLUMNS}


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression of {len(text)} characters, {MAX_LENGTH} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "40and" without a space, which Python still takes
            tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"{text!r} is no expression ({error.msg})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text[:80]!r} is no expression ({error or 'too deep'})") from error
    level: list[ast.AST] = [tree]
    depth = count = 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise ExpressionError(f"{text[:80]!r}... is too large")
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return tree


def _names(tree: ast.expr) -> set[str]:
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in called}


class _Evaluation:
    """Computes the nodes of one expression over columns [n]."""

    def __init__(self, text: str, columns: Mapping[str, np.ndarray], num_clips: int):
        self._text = text
        self._columns = columns
        self._num_clips = num_clips

    def value(self, node: ast.expr) -> _Value:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self._error(node, "is not part of the language")
        with np.errstate(all="ignore"):
            return method(node)

    def _error(self, node: ast.AST, problem: str) -> ExpressionError:
        return ExpressionError(f"in {self._text!r}: {ast.unparse(node)!r} {problem}")

    def _number(self, data: Any) -> _Value:
        return _Value("number", data, ~np.isnan(data))

    def _typed(self, node: ast.expr, kind: Kind) -> _Value:
        value = self.value(node)
        if value.kind != kind:
            hint = (
                f"; compare it, as in {ast.unparse(node)} > 0" if (value.kind, kind) == ("number", "condition") else ""
            )
            raise self._error(node, f"is {_A[value.kind]}, {_A[kind]} is needed{hint}")
        return value

    def _constant(self, node: ast.Constant) -> _Value:
        if isinstance(node.value, str):
            return _Value("text", node.value, True)
        if isinstance(node.value, (bool, int, float)):
            try:
                return self._number(np.float64(node.value))
            except OverflowError as error:
                raise self._error(node, "is too large") from error
        raise self._error(node, "is neither a number nor a text")

    def _name(self, node: ast.Name) -> _Value:
        if node.id not in self._columns:
            raise self._error(node, "is no figure")
        column = self._columns[node.id]
        return _Value("text", column, True) if column.dtype == object else self._number(column.astype(np.float64))

    def _unaryop(self, node: ast.UnaryOp) -> _Value:
        if isinstance(node.op, ast.Not):
            value = self._typed(node.operand, "condition")
            return _Value("condition", ~value.data, value.known)
        if isinstance(node.op, (ast.USub, ast.UAdd)):
            data = self._typed(node.operand, "number").data
            return self._number(-data if isinstance(node.op, ast.USub) else data)
        raise self._error(node, "is not part of the language")

    def _binop(self, node: ast.BinOp) -> _Value:
        if type(node.op) not in ARITHMETIC:
            raise self._error(node, "is not part of the language (+ - * / are)")
        left, right = (self._typed(side, "number").data for side in (node.left, node.right))
        return self._number(ARITHMETIC[type(node.op)](left, right))

    def _call(self, node: ast.Call) -> _Value:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "known" and len(node.args) == 1 and not node.keywords:
            value = self._typed(node.args[0], "number")
            return _Value("condition", value.known, True)
        if name not in FUNCTIONS:
            raise self._error(node, f"calls no function of the language: {', '.join([*FUNCTIONS, 'known'])}")
        count, function = FUNCTIONS[name]
        if len(node.args) != count or node.keywords:
            raise self._error(node, f"has {len(node.args)} arguments, {name} takes {count}")
        return self._number(function(*(self._typed(argument, "number").data for argument in node.args)))

    def _boolop(self, node: ast.BoolOp) -> _Value:
        values = [self._typed(part, "condition") for part in node.values]
        is_and = isinstance(node.op, ast.And)
        data, known = values[0].data, values[0].known
        for value in values[1:]:
            # The result is known where both are, or where one alone decides it: false for "and", true for "or".
            decided = [
                each_known & (~each if is_and else each)
                for each, each_known in ((data, known), (value.data, value.known))
            ]
            known = (known & value.known) | decided[0] | decided[1]
            data = ~(decided[0] | decided[1]) if is_and else decided[0] | decided[1]
        return _Value("condition", data, known)

    def _compare(self, node: ast.Compare) -> _Value:
        left, data, known = node.left, np.bool_(True), np.bool_(True)
        for sign, right in zip(node.ops, node.comparators, strict=True):
            result = self._one_comparison(node, left, sign, right)
            false = (result.known & ~result.data) | (known & ~data)
            known = (known & result.known) | false
            data, left = ~false & data & result.data, right
        return _Value("condition", data, known)

    def _one_comparison(self, node: ast.Compare, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> _Value:
        if isinstance(sign, (ast.In, ast.NotIn)):
            return self._membership(node, left, right, isinstance(sign, ast.NotIn))
        if type(sign) not in _COMPARISONS:
            raise self._error(node, "is not part of the language")
        first, second = self.value(left), self.value(right)
        if first.kind != second.kind or first.kind == "condition":
            raise self._error(node, f"compares {_A[first.kind]} with {_A[second.kind]}")
        if first.kind == "text" and not isinstance(sign, (ast.Eq, ast.NotEq)):
            raise self._error(node, "orders texts; they can be equal (==), different (!=) or in a list")
        data = np.asarray(_COMPARISONS[type(sign)](first.data, second.data), bool)
        return _Value("condition", data, np.bool_(True) & first.known & second.known)

    def _membership(self, node: ast.Compare, left: ast.expr, right: ast.expr, negated: bool) -> _Value:
        if not isinstance(right, (ast.Tuple, ast.List, ast.Set)):
            raise self._error(node, "needs a list on its right, as in split in ('test', 'trainval')")
        one = self.value(left)
        data, known = np.zeros(self._num_clips, bool), np.bool_(True) & one.known
        for entry in right.elts:
            other = self._typed(entry, one.kind)
            data, known = data | np.asarray(one.data == other.data, bool), known & other.known
        return _Value("condition", ~data if negated else data, known)


def _why_missing(name: str, table: FigureTable) -> str:
    if name in OFFSET_COLUMNS:
        return f"{name} was not measured; run lrs3-loader verify RUN --sync CHECKPOINT first"
    if table.missing and not table.has_figures.all() and name in FIGURES:
        return f"{name} is not there: {table.missing}"
    if name in FIGURES:
        return f"{name} was not measured in {table.name} ({FIGURES[name].meaning}); see docs/quality.md"
    return unknown_name(name, table.columns)


def unknown_name(name: str, names: Iterable[str]) -> str:
    """Say that a name is unknown, which ones are close, and which ones there are."""
    names = sorted(names)
    parts = [word for word in name.lower().split("_") if len(word) > 2]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close += [other for other in names if other not in close and parts and all(word in other for word in parts)][:3]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"there is no figure {name}; {hint}there are {', '.join(names)}"
