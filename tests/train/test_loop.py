"""A training gives the same weights however often it is killed, and stops when it gets no better."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.runtime import progress
from lrs3_loader.stream.tasks import Item
from lrs3_loader.train.checkpoint import BEST_FILE, CHECKPOINT_FILE, Checkpoint, feature_differences
from lrs3_loader.train.loop import Training, train
from lrs3_loader.train.repeats import REPEATS_FILE
from lrs3_loader.train.scalars import EVALUATION_FILE, read_scalars
from lrs3_loader.train.settings import TrainLaunch
from support import tiny_objective
from support.run_factory import make_run
from support.tiny_objective import Error, TinyCheckpoint, TinyConfig, TinyObjective

TINY = TinyConfig()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """8 speakers of 2 clips each; 6 speakers are trained on, so an epoch has 6 batches."""
    return make_run(tmp_path_factory.mktemp("tiny") / "run", [[5, 8, 6, 9]] * 4)


def launch(out: Path, **options: Any) -> TrainLaunch:
    return TrainLaunch(out, **{"device": "cpu", "checkpoint_steps": 1, "evaluate_epochs": 1, **options})


def load(out: Path, name: str = CHECKPOINT_FILE) -> TinyCheckpoint:
    return TinyCheckpoint.load(out / name)


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    for name, weight in one.model.items():
        assert torch.equal(weight, other.model[name]), name
    for number, state in one.optimizer["state"].items():
        assert all(torch.equal(value, other.optimizer["state"][number][name]) for name, value in state.items())


def without_times(lines: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: line[name] for name in line if name not in ("steps_per_second", "waiting")} for line in lines]


class ScriptedObjective(TinyObjective):
    """Its evaluations have the errors that a test gives."""

    def __init__(self, folder: RunFolder, config: TinyConfig, errors: Sequence[float]):
        super().__init__(folder, config)
        self.errors = list(errors)

    def evaluate(self, network: nn.Module) -> Error:
        return Error(self.errors.pop(0), 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_within_an_epoch_it_goes_on_to_the_same_weights_noise_and_scalars(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    at_once = TinyObjective(run, TINY)
    train(at_once, launch(whole, checkpoint_steps=4))
    real_step = Training._step

    def dying_step(self: Training[Any, Any], batch: Item) -> None:
        if self.step == 11:
            raise KeyboardInterrupt
        real_step(self, batch)

    monkeypatch.setattr(Training, "_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        train(TinyObjective(run, TINY), launch(halves, checkpoint_steps=4, read_workers=workers))
    monkeypatch.undo()
    assert load(halves).step == 8, "within the second of three epochs of six steps"
    torch.manual_seed(9)  # what another process happens to have drawn
    resumed = TinyObjective(run, TINY)
    train(resumed, launch(halves, checkpoint_steps=4, read_workers=workers))
    assert_equal(load(halves), load(whole))
    losses = at_once.draws[:6] + at_once.draws[10:16] + at_once.draws[20:26]  # after each epoch, four evaluations
    assert resumed.draws[:4] == losses[8:12]
    assert len(set(losses)) == 18, "each step draws other numbers"
    assert without_times(read_scalars(halves)) == without_times(read_scalars(whole))
    assert (halves / EVALUATION_FILE).read_bytes() == (whole / EVALUATION_FILE).read_bytes()


def test_the_seed_decides_the_weights_and_the_program_s_own_random_numbers_stay(run: RunFolder, tmp_path: Path) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(4)
        train(TinyObjective(run, replace(TINY, epochs=1, seed=seed)), launch(tmp_path / name))
        assert torch.equal(torch.rand(3), expected)
    assert_equal(load(tmp_path / "a"), load(tmp_path / "b"))
    assert not torch.equal(load(tmp_path / "a").model["1.weight"], load(tmp_path / "c").model["1.weight"])


def on_two_ranks(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, tiny_objective.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(tiny_objective.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_ranks_train_like_one_with_twice_the_batch_and_resume_exactly(tmp_path: Path) -> None:
    small = make_run(tmp_path / "run", [[5, 8, 6, 9]] * 2)  # 4 clips are trained on: one step an epoch
    text = on_two_ranks(small.path, tmp_path / "two", 2, 0, 5)
    config = TinyConfig(epochs=5, batch_clips=4, noise=0.0, held_out=0.5)
    alone = train(TinyObjective(small, config), launch(tmp_path / "one", evaluate_epochs=100))
    two, one = load(tmp_path / "two"), load(tmp_path / "one")
    assert alone is not None
    assert text == f"{alone.describe()}\n"
    assert two.step == one.step == 5
    for name, weight in two.model.items():
        torch.testing.assert_close(weight, one.model[name], atol=1e-6, rtol=1e-5)
    losses = [[line["loss"] for line in read_scalars(tmp_path / name) if "loss" in line] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    on_two_ranks(small.path, tmp_path / "noisy", 1, 0.5, 3)
    on_two_ranks(small.path, tmp_path / "resumed", 1, 0.5, 1, 2, 3)
    noisy, resumed = load(tmp_path / "noisy"), load(tmp_path / "resumed")
    assert noisy.step == 6
    assert all(torch.equal(weight, resumed.model[name]) for name, weight in noisy.model.items())


def test_repeats_on_two_ranks_go_on_to_the_second_training(tmp_path: Path) -> None:
    small = make_run(tmp_path / "run", [[5, 8, 6, 9]] * 2)
    on_two_ranks(small.path, tmp_path / "out", 2, 0.5)
    seeds = [load(tmp_path / "out" / f"repeat-{number}").config["seed"] for number in range(2)]
    assert seeds == json.loads((tmp_path / "out" / REPEATS_FILE).read_text())["seeds"] == [0, 1]


def test_it_stops_when_it_gets_no_better_and_the_best_network_counts(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = replace(TINY, epochs=9, patience=2)
    caplog.set_level(logging.INFO)
    objective = ScriptedObjective(run, patient, [3.0, 2.0, 2.5, 2.0, -1.0])
    found = train(objective, launch(tmp_path))
    assert found == Error(-1.0, 4), "the best network is evaluated once more"
    assert load(tmp_path).step == 4 * 6
    assert load(tmp_path, BEST_FILE).step == 2 * 6
    assert "the evaluation at step 12 was the best" in caplog.text
    assert train(ScriptedObjective(run, patient, [7.0]), launch(tmp_path)) == Error(7.0, 4), "it has ended"
    assert load(tmp_path).step == 4 * 6
    longer = replace(patient, patience=3)
    train(ScriptedObjective(run, longer, [1.0, 4.0, 4.0, 4.0, 0.0]), launch(tmp_path))
    assert load(tmp_path).step == 8 * 6
    assert load(tmp_path, BEST_FILE).step == 5 * 6
    assert [line["error"] for line in read_scalars(tmp_path) if "error" in line] == [3, 2, 2.5, 2, 1, 4, 4, 4]


def test_without_patience_the_last_network_counts_and_the_best_is_kept(run: RunFolder, tmp_path: Path) -> None:
    assert train(ScriptedObjective(run, TINY, [3.0, 2.0, 2.5]), launch(tmp_path)) == Error(2.5, 4)
    assert load(tmp_path).step == 18
    best = load(tmp_path, BEST_FILE)
    assert best.step == best.evaluated_step == 12
    assert json.loads((tmp_path / EVALUATION_FILE).read_text()) == {"step": 18, "error": 2.5, "num_clips": 4}


def test_bfloat16_is_mixed_precision_on_a_cpu_too(run: RunFolder, tmp_path: Path) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        objective = TinyObjective(run, replace(TINY, epochs=1, precision=precision))
        training = Training(objective, launch(tmp_path / precision, evaluate_epochs=100), torch.device("cpu"))
        training.run()
        found[precision] = load(tmp_path / precision).model["1.weight"]
        assert objective.products == {torch.float32, getattr(torch, precision)}, "evaluations are in float32"
        assert training.network.get_parameter("1.weight").dtype == torch.float32
    assert not torch.equal(found["float32"], found["bfloat16"])
    torch.testing.assert_close(found["float32"], found["bfloat16"], atol=0.01, rtol=0)
    with pytest.raises(RunError, match=r'config.precision: "float32" -> "bfloat16"'):
        train(TinyObjective(run, replace(TINY, precision="bfloat16")), launch(tmp_path / "float32"))


def test_gradients_are_clipped_to_a_norm(run: RunFolder, tmp_path: Path) -> None:
    training = Training(TinyObjective(run, replace(TINY, clip_norm=0.01)), launch(tmp_path), torch.device("cpu"))
    training.run()
    gradients = [weight.grad for weight in training.network.parameters() if weight.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    recorded = [line["gradient_norm"] for line in read_scalars(tmp_path) if "loss" in line]
    assert min(recorded) > 0.01, "before clipping"


class FailingObjective(TinyObjective):
    """Its loss goes wrong at a step: by itself, or in its gradient alone."""

    def loss(self, network: nn.Module, batch: Item) -> dict[str, torch.Tensor]:
        terms = super().loss(network, batch)
        if len(self.draws) == 8:
            weight = network.get_parameter("1.weight").sum()
            failed = terms["loss"] * np.nan if self.features["speech"] == "loss" else torch.sqrt(weight - weight)
            return {**terms, "loss": terms["loss"] + failed}
        return terms


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_ends_it_and_reaches_no_checkpoint(run: RunFolder, tmp_path: Path, where: str) -> None:
    objective = FailingObjective(run, TINY)
    objective.features = {"speech": where}
    with pytest.raises(RunError, match=r"not finite at step 8: begin again with a lower --learning-rate"):
        train(objective, launch(tmp_path, checkpoint_steps=1, evaluate_epochs=100))
    assert load(tmp_path).step == 7
    assert all(torch.isfinite(weight).all() for weight in load(tmp_path).model.values())


def test_lines_say_how_far_it_is_and_when_it_will_end(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    train(TinyObjective(run, replace(TINY, epochs=2)), launch(tmp_path))
    lines = [text for text in caplog.messages if " steps, about " in text]
    assert [re.sub("about.*", "", line) for line in lines] == [f"{step} of 12 steps, " for step in range(1, 12)]
    assert all(re.fullmatch(r".*about \d\d:\d\d left", line) for line in lines)
    caplog.clear()
    train(TinyObjective(run, TINY), launch(tmp_path))
    assert caplog.messages[0] == "going on from step 12, in epoch 2"
    assert next(text for text in caplog.messages if " steps, about " in text).startswith("13 of 18 steps, ")


def test_another_training_or_other_features_are_refused(run: RunFolder, tmp_path: Path) -> None:
    objective = TinyObjective(run, TINY)
    train(objective, launch(tmp_path))
    objective.features = {"speech": "another"}
    with pytest.raises(RunError, match=r'features\.speech: "made up" -> "another"'):
        train(objective, launch(tmp_path))

    class OtherCheckpoint(Checkpoint):
        training = "other"

    with pytest.raises(RunError, match="is not a checkpoint of train-other"):
        OtherCheckpoint.load(tmp_path / CHECKPOINT_FILE)


def test_an_option_that_came_later_is_taken_to_have_had_its_default(run: RunFolder, tmp_path: Path) -> None:
    train(TinyObjective(run, TINY), launch(tmp_path))
    saved = load(tmp_path)
    config = {name: value for name, value in saved.config.items() if name != "clip_norm"}
    replace(saved, config=config).save(tmp_path / CHECKPOINT_FILE)
    with pytest.raises(RunError, match=r"config\.clip_norm: null -> 1\.0"):
        train(TinyObjective(run, replace(TINY, clip_norm=1.0)), launch(tmp_path))
    train(TinyObjective(run, replace(TINY, epochs=4)), launch(tmp_path))
    assert load(tmp_path).step == 24


def test_an_encoder_of_equal_weights_may_have_another_name() -> None:
    then = {"speech": {"model": "facebook/hubert", "sha256": "1f", "width": 8}, "idexp": "fit"}
    renamed = {"speech": {"model": "hubert-copy", "sha256": "1f", "width": 8}, "idexp": "fit"}
    assert feature_differences(then, renamed) == []
    assert feature_differences(then, {**renamed, "idexp": "regression"}) == ['idexp: "fit" -> "regression"']
    other = {"speech": {"model": "hubert-copy", "sha256": "2e", "width": 8}, "idexp": "fit"}
    assert feature_differences(then, other) == [
        'speech.model: "facebook/hubert" -> "hubert-copy"',
        'speech.sha256: "1f" -> "2e"',
    ]
    unknown = {"speech": {"model": None, "sha256": None, "width": 8}, "idexp": "fit"}
    named = {**unknown, "speech": {**unknown["speech"], "model": "hubert"}}
    assert feature_differences(unknown, named) == ['speech.model: null -> "hubert"']
