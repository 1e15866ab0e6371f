"""Expressions against Python's own evaluation of them, row by row, with three values of truth."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrs3_loader.errors import RunError
from lrs3_loader.run.figure_table import FigureTable
from lrs3_loader.selection.expression import Expression, ExpressionError, known_names, parse_where
from lrs3_loader.selection.presets import PRESETS
from lrs3_loader.selection.waterfall import describe_waterfall, waterfall

VALUES = [-2.0, 0.0, 1.0, 3.5, float("nan")]


def make_table(rows: list[tuple[float, float, str]]) -> FigureTable:
    size, yaw, split = zip(*rows, strict=True)
    keys = [f"{name}/speaker/{number:05d}" for number, name in enumerate(split)]
    columns = {
        "key": np.array(keys, object),
        "split": np.array(split, object),
        "num_frames": np.arange(len(rows)) + 10,
        "duration_seconds": (np.arange(len(rows)) + 10) / 25,
        "face_size_px": np.array(size),
        "yaw_p95": np.array(yaw),
    }
    return FigureTable(columns, np.ones(len(rows), bool))


TABLE = make_table([(a, b, c) for a in VALUES for b in VALUES for c in ("pretrain", "test")])


def rows() -> list[dict[str, object]]:
    return [{name: column[i] for name, column in TABLE.columns.items()} for i in range(len(TABLE))]


def chosen(text: str) -> list[bool]:
    return Expression(text).chooses(TABLE.columns, len(TABLE)).tolist()


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("face_size_px > 0", lambda a, b, s: a > 0),
        ("face_size_px != 1", lambda a, b, s: a == a and a != 1),
        ("not face_size_px > 0", lambda a, b, s: a <= 0),
        ("-1 < face_size_px <= 1", lambda a, b, s: -1 < a <= 1),
        ("0 < face_size_px < yaw_p95", lambda a, b, s: 0 < a < b),
        ("not (0 < face_size_px < yaw_p95)", lambda a, b, s: a <= 0 or b <= a),
        ("abs(yaw_p95) < 3 and split == 'test'", lambda a, b, s: abs(b) < 3 and s == "test"),
        ("split in ('test', 'val') or face_size_px > 3", lambda a, b, s: s == "test" or a > 3),
        ("split not in ['test']", lambda a, b, s: s != "test"),
        ("face_size_px in (1, 3.5)", lambda a, b, s: a in (1, 3.5)),
        ("face_size_px not in (1, 3.5)", lambda a, b, s: a == a and a not in (1, 3.5)),
        ("(face_size_px + yaw_p95) / 2 > 1 - 0.5 * yaw_p95", lambda a, b, s: (a + b) / 2 > 1 - 0.5 * b),
        ("max(face_size_px, yaw_p95) - min(face_size_px, yaw_p95) > 2", lambda a, b, s: abs(a - b) > 2),
        ("face_size_px > 0 or yaw_p95 > 0", lambda a, b, s: a > 0 or b > 0),
        ("not (face_size_px > 0 or yaw_p95 > 0)", lambda a, b, s: a <= 0 and b <= 0),
        ("not (face_size_px > 0 and yaw_p95 > 0)", lambda a, b, s: a <= 0 or b <= 0),
        ("known(yaw_p95) and not known(face_size_px)", lambda a, b, s: b == b and a != a),
        ("sqrt(face_size_px) > 1", lambda a, b, s: a > 1),
        ("num_frames >= 20 and face_size_px == +1", lambda a, b, s: a == 1),
        ("True == 1", lambda a, b, s: True),
        ("face_size_px / 0 > 1", lambda a, b, s: a > 0),
    ],
)
def test_expressions_choose_what_they_say(text: str, test) -> None:  # type: ignore[no-untyped-def]
    expected = [bool(test(row["face_size_px"], row["yaw_p95"], row["split"])) for row in rows()]
    if "num_frames" in text:
        expected = [each and row["num_frames"] >= 20 for each, row in zip(expected, rows(), strict=True)]  # type: ignore[operator]
    assert chosen(text) == expected


NUMBERS = st.sampled_from(["face_size_px", "yaw_p95", "1", "0", "-2.5", "(yaw_p95 - 1)"])
COMPARISONS = st.builds("{} {} {}".format, NUMBERS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), NUMBERS)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=6,
)


def slow(text: str, row: dict[str, object]) -> bool | None:
    """Kleene's logic on one row, on the syntax tree, in plain Python."""
    import ast

    def run(node: ast.expr) -> object:
        if isinstance(node, ast.BoolOp):
            found = [run(value) for value in node.values]
            stop = not isinstance(node.op, ast.And)
            return stop if stop in found else None if None in found else not stop
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = run(node.operand)
            return None if inner is None else not inner
        value = eval(compile(ast.Expression(node), "", "eval"), {}, dict(row))
        return None if any(row[n.id] != row[n.id] for n in ast.walk(node) if isinstance(n, ast.Name)) else bool(value)

    return run(ast.parse(text, mode="eval").body)  # type: ignore[return-value]


@settings(max_examples=150, deadline=None)
@given(CONDITIONS)
def test_any_expression_equals_its_slow_evaluation(text: str) -> None:
    assert chosen(text) == [slow(text, row) is True for row in rows()]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "face_size_px.__class__ == 1",
        "(lambda: 1)() > 0",
        "[x for x in (1,)] == 1",
        "open('/etc/passwd') == 1",
        "face_size_px[0] > 1",
        "face_size_px ** 999999999 > 1",
        "9 ** 9 ** 9 > 1",
        "f'{face_size_px}' == '1'",
        "face_size_px if 1 else 2",
        "(face_size_px := 3) > 1",
        "face_size_px is 1",
        "~face_size_px > 1",
        "abs(face_size_px, 2) > 1",
        "abs(x=face_size_px) > 1",
        "b'x' == split",
        "None == face_size_px",
        "1e999 ** 2 > 0",
        "1j > face_size_px",
        "*face_size_px",
        "print > 1 if print() else 2",
        "(" * 5000 + "1" + ")" * 5000 + " > 0",
        "-" * 3000 + "1 > 0",
        " + ".join(["1"] * 3000) + " > 0",
        "9" * 9000 + " > 0",
        "x" * 20_000,
        "",
        "face_size_px >",
        "face_size_px > 1; 2",
        "import os",
        "a\0b",
    ],
)
def test_what_is_no_condition_is_refused_and_runs_nothing(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 30_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("face_size_px", "is a number, not a condition; compare it, as in face_size_px > 0"),
        ("face_size_px and yaw_p95 > 1", "'face_size_px' is a number, a condition is needed"),
        ("split > 1", "compares a text with a number"),
        ("split < 'test'", "orders texts"),
        ("split == face_size_px", "compares a text with a number"),
        ("abs(split) > 1", "'split' is a text, a number is needed"),
        ("face_size_px in (1, 'x')", "'x'"),
        ("split in 'test'", "needs a list"),
        ("median(face_size_px) > 1", "calls no function of the language: abs, sqrt, log10, min, max, known"),
    ],
)
def test_mistakes_are_named(text: str, problem: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(problem)):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("face_sise_px > 1", "did you mean face_size_px? there are "),
        ("yaw > 1", "did you mean yaw_p95?"),
        ("size > 1", "did you mean face_size_px?"),
        ("qqqq > 1", "there is no figure qqqq; there are duration_seconds, face_size_px, key"),
        ("sync_confidence > 1", "verify RUN --sync"),
        ("speech_fraction > 1", "speech_fraction was not measured in the run"),
    ],
)
def test_names_are_completed_and_listed(text: str, problem: str) -> None:
    with pytest.raises(RunError, match=re.escape(problem)):
        Expression(text).require(TABLE)


def test_a_table_without_figures_says_what_to_do() -> None:
    old = FigureTable({"key": np.array(["a/b/c"], object)}, np.zeros(1, bool), "runs/old")
    with pytest.raises(RunError, match=r"1 of 1 clips of runs/old have no figures.*--add-figures"):
        Expression("face_size_px > 1").require(old)


def test_expressions_are_joined_and_taken_apart() -> None:
    assert parse_where([None, ""]) is None
    assert parse_where([None, "face_size_px > 1"]) == Expression("face_size_px > 1")
    both = parse_where(["face_size_px > 1 or yaw_p95 > 1", "split == 'test'"])
    assert both is not None
    assert [part.text for part in both.conditions] == ["face_size_px > 1 or yaw_p95 > 1", "split == 'test'"]
    assert both.names == ["face_size_px", "split", "yaw_p95"]


def test_presets_are_expressions_over_names_that_exist() -> None:
    assert set(PRESETS) == {"latentsync", "talkvid", "hallo"}
    for preset in PRESETS.values():
        where = Expression(preset.where)
        assert [part.text for part in where.conditions] == list(preset.conditions)
        assert set(where.names) <= set(known_names())


def test_a_waterfall_counts_what_each_condition_takes() -> None:
    where = Expression("face_size_px > 0 and yaw_p95 > 0 and split == 'test'")
    mask, steps = waterfall(TABLE, where)
    left = rows()
    for step, test in zip(
        steps,
        (lambda r: r["face_size_px"] > 0, lambda r: r["yaw_p95"] > 0, lambda r: r["split"] == "test"),
        strict=True,
    ):
        passing = [row for row in left if test(row)]
        assert step.num_taken == len(left) - len(passing)
        assert step.num_left == len(passing)
        assert step.seconds_left == pytest.approx(sum(row["duration_seconds"] for row in passing))
        assert step.num_alone == sum(not test(row) for row in rows())
        left = passing
    assert TABLE.columns["key"][mask].tolist() == [row["key"] for row in left]
    lines = describe_waterfall(TABLE, steps)
    assert len(lines) == 5
    assert lines[1].split()[:3] == ["all", "clips", "50"]
    assert lines[-1].split()[-5] == str(len(left))
