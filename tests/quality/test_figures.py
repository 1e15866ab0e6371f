from __future__ import annotations

import re

import pytest

from lrs3_loader.quality.figures import FIGURES, figure_numbers, rounded
from support.paths import REPO


def test_the_document_defines_every_figure() -> None:
    """Each with its unit, a definition, and the level of its section."""
    levels: dict[str, str] = {}
    rows: dict[str, tuple[str, str]] = {}
    level = "none"
    text = (REPO / "docs" / "quality.md").read_text(encoding="utf-8").partition("\n## In every run\n")[2]
    for line in text.splitlines():
        if line.startswith("## "):
            level = found[1] if (found := re.search(r"\(`(\w+)`\)", line)) else "none"
        elif row := re.match(r"\| `(\w+)` \| ([^|]+) \| (.+) \|$", line):
            rows[row[1]], levels[row[1]] = (row[2].replace("²", "^2"), row[3]), level
    assert list(rows) == list(FIGURES)
    for name, figure in FIGURES.items():
        assert rows[name][0] == figure.unit, name
        assert len(rows[name][1]) > 10, name
        assert levels[name] == figure.level, name


def test_five_digits_are_kept_and_what_has_no_value_is_left_out() -> None:
    found = rounded({"a": 123.456789, "b": float("nan"), "c": float("inf"), "d": 7.0, "e": 0.000123456})
    assert found == {"a": 123.46, "d": 7, "e": 0.00012346}
    assert isinstance(found["d"], int)


def test_numbers_of_a_json() -> None:
    quality = {"converged": True, "face_size_px": 3.5, "scene_cuts": [[3, 14.0]], "odd": "x", "none": None}
    assert figure_numbers({"quality": quality}) == pytest.approx({"converged": 1, "face_size_px": 3.5})
