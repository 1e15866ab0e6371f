"""The figures of a training: lines of JSON, means over steps, and what counts as the best evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from lrs3_loader.train import meter
from lrs3_loader.train.early_stop import BestSoFar
from lrs3_loader.train.meter import Meter
from lrs3_loader.train.scalars import SCALARS_FILE, Scalars, read_scalars
from lrs3_loader.train.settings import TrainingConfig, TrainLaunch


def test_figures_after_the_checkpoint_are_dropped_when_going_on(tmp_path: Path) -> None:
    with Scalars(tmp_path, 0) as scalars:
        scalars.write(10, {"loss": 0.5})
        scalars.write(20, {"loss": 0.4})
    with (tmp_path / SCALARS_FILE).open("ab") as file:
        file.write(b'{"step": 30, "lo')
    with Scalars(tmp_path, 10) as scalars:
        scalars.write(20, {"loss": 0.3})
    assert read_scalars(tmp_path) == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.3}]


def test_a_meter_gives_means_and_the_share_of_time_spent_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)

    def slow_batches() -> Iterator[int]:
        nonlocal now
        for batch in range(4):
            now += 1.0
            yield batch

    gauge = Meter()
    assert gauge.read() == {}
    for batch in gauge.timed(slow_batches()):
        now += 3.0
        gauge.add({"loss": torch.tensor(float(batch))})
    assert gauge.read() == {"loss": 1.5, "steps_per_second": 0.25, "waiting": 0.25}
    assert gauge.read() == {}


@pytest.mark.parametrize(
    ("good", "values", "best", "num_since"),
    [
        ("highest", [1.0, 3.0, 2.0, 3.0], 1, 2),
        ("lowest", [1.0, 3.0, 0.5, 2.0], 2, 1),
        ("highest", [math.nan, math.nan, 2.0, math.nan], 2, 1),
        ("lowest", [math.nan, math.nan], 0, 1),
    ],
)
def test_the_best_evaluation_is_the_first_of_equals_and_never_nan(
    good: Literal["highest", "lowest"], values: list[float], best: int, num_since: int
) -> None:
    found = BestSoFar(values[0], 0)
    for step, value in enumerate(values[1:], 1):
        found = found.then(value, step, good)
    assert (found.step, found.num_since) == (best, num_since)
    assert found.is_over(num_since)
    assert not found.is_over(num_since + 1)
    assert not found.is_over(None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 0}, "patience must be above 0, got 0"),
        ({"clip_norm": -1.0}, r"clip_norm must be above 0, got -1\.0"),
        ({"precision": "float16"}, "precision must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_settings_that_cannot_be_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_launches_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_steps must be at least 1, got 0"):
        TrainLaunch(tmp_path, checkpoint_steps=0)
