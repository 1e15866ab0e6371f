"""The model of a GPU's speed adds up, knows its limits, and agrees with what has been measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.options import BenchOptions
from benchmarks.results import Figure, Remark
from benchmarks.roofline import validation
from benchmarks.roofline.cards import CARDS, Card, Efficiency, find_card, price
from benchmarks.roofline.measure import measure
from benchmarks.roofline.rehearsal import stage_of
from benchmarks.stand_in import Kernel, why_not

CARD = Card("test", 1e12, 100e12, 50e12, 10e12, 5e12, 50e9, 16)


def kernel(num_bytes: int, num_flops: int, arithmetic: str = "float32") -> Kernel:
    return Kernel("mm", "here", arithmetic, True, num_bytes, num_flops)  # type: ignore[arg-type]


def test_each_kernel_takes_what_is_longest() -> None:
    efficiency = Efficiency(memory=0.5, arithmetic=0.1, launch_seconds=1e-6)
    found = price([kernel(10**9, 0), kernel(0, 10**10), kernel(0, 10**10, "half"), kernel(1, 1)], CARD, efficiency)
    assert found.seconds == pytest.approx({"memory": 2e-3, "arithmetic": 1e-2 + 1e-3, "launches": 1e-6})
    assert found.bound_by == "arithmetic 85 %"
    assert (found.num_kernels, found.num_bytes, found.num_flops) == (4, 10**9 + 1, 2 * 10**10 + 1)


def test_cards_come_by_name_or_from_a_file(tmp_path: Path) -> None:
    assert find_card("H200") is CARDS["h200"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(dataclasses.asdict(CARD)))
    assert find_card(str(path)) == CARD
    path.write_text(json.dumps({**dataclasses.asdict(CARD), "half": -1}))
    with pytest.raises(ValueError, match="half must be positive"):
        find_card(str(path))
    path.write_text(json.dumps({"name": "x"}))
    with pytest.raises(ValueError, match="must hold bytes_per_second"):
        find_card(str(path))
    with pytest.raises(ValueError, match="no card h300: give h200"):
        find_card("h300")


def test_lines_of_the_package_belong_to_stages() -> None:
    assert stage_of("lrs3_loader/face/image/warp.py:40 crop") == "crops"
    assert stage_of("lrs3_loader/face/image/spans.py:40 crop") == "crops"
    assert stage_of("lrs3_loader/face/deep3d/align.py:40 align") == "alignment"
    assert stage_of("lrs3_loader/face/deep3d/regressor.py:40 forward") == "regression"
    assert stage_of("lrs3_loader/extraction/extractor.py:1 x") == "other"


def test_the_model_is_near_published_speeds() -> None:
    """It should be faster than a GPU, which never reaches it, and not by more than twice."""
    for figure in validation.published_figures():
        assert 1 <= figure.value < 2, figure


def test_an_extraction_is_modelled_on_every_card(assets: Path | None, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    options = BenchOptions(assets=assets, quick=True)
    items = list(measure(options, CARDS["h200"], tmp_path))
    figures = {(item.group, item.name): item for item in items if isinstance(item, Figure)}
    remarks = [item.text for item in items if isinstance(item, Remark)]
    stages = {name: figure for (group, name), figure in figures.items() if group == "roofline"}
    assert {"crops", "landmarks", "alignment", "regression", "mel", "HuBERT", "fit", "all"} <= set(stages)
    whole = stages.pop("all")
    assert sum(figure.value for figure in stages.values()) == pytest.approx(whole.value)
    assert figures["modelled", "device"].value == pytest.approx(1e6 / whole.value)
    assert 224 * 224 * 3 <= figures["feeding", "to the device"].value * 1e9 / figures["modelled", "device"].value < 2e5
    assert figures["host", "dispatch"].value > 0
    assert "MODEL" in remarks[0]
    assert any("all of LRS3" in text for text in remarks)


def test_the_model_is_held_against_this_cpu(assets: Path | None, tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    options = BenchOptions(assets=assets, quick=True, repeats=1)
    figures = [item for item in validation.cpu_figures(options, tmp_path) if isinstance(item, Figure)]
    assert [figure.name.partition(",")[0] for figure in figures] == ["landmarks", "regression", "mel", "HuBERT", "fit"]
    assert all(figure.value > 0 for figure in figures)
