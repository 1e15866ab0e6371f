"""Where motion is a known function of speech, the generator learns it better than both baselines do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader.audio2motion.checkpoint import Audio2MotionCheckpoint
from lrs3_loader.audio2motion.evaluate import MotionEvaluation, sync_figures
from lrs3_loader.audio2motion.objective import MotionTraining
from lrs3_loader.audio2motion.settings import Audio2MotionConfig
from lrs3_loader.demo.head import demo_head
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import ShardStream
from lrs3_loader.stream.tasks import Item
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.evaluate import READS, score_clip
from lrs3_loader.syncnet.objective import LipSync
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.checkpoint import CHECKPOINT_FILE
from lrs3_loader.train.loop import train
from lrs3_loader.train.repeats import REPEATS_FILE, train_repeats
from lrs3_loader.train.scalars import EVALUATION_FILE, read_scalars
from lrs3_loader.train.settings import TrainLaunch
from support.motion_factory import make_motion_run
from support.paths import REPO

SMALL = Audio2MotionConfig(size="demo", epochs=3, batch_clips=4, held_out=0.25)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Speakers enough to train on some and ask about others."""
    return make_motion_run(tmp_path_factory.mktemp("moving") / "run", 12, 4, frames=(40, 60))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_motion_run(tmp_path_factory.mktemp("few") / "run", 4, 5, frames=(26, 34))


@pytest.fixture(scope="module")
def sync(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lip-sync network."""
    out = tmp_path_factory.mktemp("sync")
    config = TrainConfig(epochs=12, batch_clips=9, pairs_per_clip=16, width=32, held_out=0.25, learning_rate=3e-3)
    train(LipSync(run, config), launch(out, evaluate_epochs=100))
    return out / CHECKPOINT_FILE


def launch(out: Path, **options: Any) -> TrainLaunch:
    return TrainLaunch(out, **{"device": "cpu", "checkpoint_steps": 1, **options})


def load(out: Path) -> Audio2MotionCheckpoint:
    return Audio2MotionCheckpoint.load(out / CHECKPOINT_FILE)


def trained(run: RunFolder, out: Path, config: Audio2MotionConfig, **options: Any) -> MotionEvaluation:
    evaluation = train(MotionTraining(run, config, **options), launch(out))
    assert evaluation is not None
    return evaluation


@pytest.fixture(scope="module")
def taught(run: RunFolder, sync: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MotionEvaluation]:
    out = tmp_path_factory.mktemp("taught")
    config = replace(SMALL, epochs=25, batch_clips=4, learning_rate=3e-3)
    evaluation = train(MotionTraining(run, config, sync=sync), launch(out, checkpoint_steps=100, evaluate_epochs=100))
    assert evaluation is not None
    return out, evaluation


def test_unseen_speakers_move_as_their_speech_says_and_better_than_both_baselines(
    taught: tuple[Path, MotionEvaluation],
) -> None:
    out, evaluation = taught
    figures = evaluation.figures
    assert evaluation.num_clips == 3 * 4
    for other in ("mean", "ridge"):
        for name in ("mouth_mm", "mouth_centred_mm", "velocity_mm"):
            assert figures[f"generator_{name}"] < 0.85 * figures[f"{other}_{name}"], (other, name)
    assert figures["generator_opening_correlation"] > figures["ridge_opening_correlation"] + 0.1
    assert figures["mean_opening_correlation"] == 0
    assert figures["mean_velocity_mm"] == pytest.approx(figures["true_speed_mm"])
    saved = json.loads((out / EVALUATION_FILE).read_text())
    assert saved["mean"] == figures
    assert len(saved["clips"]) == 12


def test_the_lip_sync_network_prefers_generated_lips_to_those_of_another_sound(
    taught: tuple[Path, MotionEvaluation],
) -> None:
    figures = taught[1].figures
    assert figures["true_sync_score"] > figures["shuffled_sync_score"] + 0.1
    assert figures["sample_sync_score"] > figures["shuffled_sync_score"] + 0.1


def test_a_checkpoint_generates_the_motion_that_was_evaluated(
    taught: tuple[Path, MotionEvaluation], run: RunFolder
) -> None:
    checkpoint = load(taught[0])
    assert (checkpoint.target, checkpoint.speech) == ("idexp_lm3d", "hubert")
    assert checkpoint.features["speech"]["model"] == "made up"
    key = next(iter(sorted(clip.key for clip in taught[1].clips)))
    (sample,) = ShardStream(run.path, READS, shuffle=False, select=lambda found: found == key)
    true, valid = sample["idexp_lm3d"].reshape(-1, 204), sample["valid"]
    f0 = next(iter(ShardStream(run.path, "raw", shuffle=False, select=lambda found: found == key)))["f0"]
    reference = torch.from_numpy(true[valid].mean(0))
    motion = checkpoint.network().generate(
        torch.from_numpy(sample["hubert"]), torch.from_numpy(f0), reference, temperature=0.0
    )
    apart = np.linalg.norm((motion.numpy() - true).reshape(-1, 68, 3)[:, 48:], axis=-1)[valid].mean()
    expected = next(clip for clip in taught[1].clips if clip.key == key).figures["generator_mouth_mm"]
    assert 10 * apart == pytest.approx(expected, rel=1e-4)  # centimetres


def test_killed_within_an_epoch_a_training_goes_on_to_the_same_weights(
    small_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(small_run, tmp_path / "whole", SMALL)
    real_loss, calls = MotionTraining.loss, []

    def dying_loss(self: MotionTraining, network: Any, batch: Item) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real_loss(self, network, batch)

    monkeypatch.setattr(MotionTraining, "loss", dying_loss)
    with pytest.raises(KeyboardInterrupt):
        trained(small_run, tmp_path / "halves", SMALL)
    monkeypatch.undo()
    assert load(tmp_path / "halves").step == 5
    trained(small_run, tmp_path / "halves", SMALL)
    whole, halves = load(tmp_path / "whole"), load(tmp_path / "halves")
    assert whole.step == halves.step == 3 * 4
    for name, weight in whole.model.items():
        assert torch.equal(weight, halves.model[name]), name


def test_expression_coefficients_can_be_generated_from_mel_and_in_mixed_precision(
    small_run: RunFolder, tmp_path: Path
) -> None:
    config = replace(SMALL, target="exp", speech="mel", precision="bfloat16")
    evaluation = trained(small_run, tmp_path, config, face_model=demo_head())
    assert evaluation.figures["mean_mouth_mm"] > 0.1
    checkpoint = load(tmp_path)
    assert (checkpoint.target, checkpoint.speech) == ("exp", "mel")
    assert checkpoint.network().generate(torch.zeros(20, 80)).shape == (10, demo_head().num_exp)


def test_the_lip_sync_network_can_be_part_of_the_loss(run: RunFolder, sync: Path, tmp_path: Path) -> None:
    config = replace(SMALL, epochs=1, sync_weight=0.5)
    trained(run, tmp_path / "with", config, sync=sync)
    assert read_scalars(tmp_path / "with")[0]["sync"] > 0
    trained(run, tmp_path / "without", replace(config, sync_weight=0.0), sync=sync)
    first, second = load(tmp_path / "with"), load(tmp_path / "without")
    assert not torch.equal(first.model["model.decoder.last.weight"], second.model["model.decoder.last.weight"])
    assert "sync" in first.features
    assert "sync" not in second.features


def test_sync_figures_are_the_experts_own(run: RunFolder, sync: Path) -> None:
    expert = SyncNetCheckpoint.load(sync).network()
    samples = list(ShardStream(run.path, READS, shuffle=False))[:2]
    lips = samples[0]["idexp_lm3d"].reshape(-1, 204)
    figures = sync_figures(expert, samples[0], {"true": lips}, samples[1]["hubert"])
    own = score_clip(expert, samples[0])
    assert figures["true_sync_score"] == pytest.approx(own.mean[10])
    assert figures["true_sync_confidence"] == pytest.approx(own.confidence)
    rows = np.arange(2 * len(lips)) % len(samples[1]["hubert"])
    other = score_clip(expert, {**samples[0], "hubert": samples[1]["hubert"][rows]})
    assert figures["shuffled_sync_score"] == pytest.approx(other.mean[10])
    short = {**samples[0], "hubert": samples[0]["hubert"][:40], "valid": samples[0]["valid"][:20]}
    assert sync_figures(expert, short, {"true": lips[:20]}, None) == {}


def test_repeats_hold_out_other_speakers(small_run: RunFolder, tmp_path: Path) -> None:
    config = replace(SMALL, epochs=1)
    repeats = train_repeats(lambda each: MotionTraining(small_run, each), config, launch(tmp_path), 3)
    assert repeats is not None
    everyone = {clip.speaker for shard in small_run.shards for clip in shard.clips}
    held_out = [everyone - set(load(tmp_path / f"repeat-{number}").speakers) for number in range(3)]
    assert [len(each) for each in held_out] == [1, 1, 1]
    assert len(set.union(*held_out)) == 3
    saved = json.loads((tmp_path / REPEATS_FILE).read_text())
    assert saved["ridge_mouth_mm"]["values"] == repeats.values("ridge_mouth_mm")


def test_two_ranks_train_and_evaluate_together_and_one_can_go_on(small_run: RunFolder, tmp_path: Path) -> None:
    options = [str(small_run.path), "--out", str(tmp_path), "--device", "cpu", "--checkpoint-steps", "1"]
    options += ["--epochs", "2", "--batch-clips", "4", "--size", "demo", "--held-out", "0.25"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tool = [str(REPO / "tools" / "train_audio2motion.py"), *options]
    done = subprocess.run([*torchrun, *tool], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mouth's error over 5 clips of held-out speakers: generator ") == 1
    assert load(tmp_path).step == 2 * 2  # of 15 clips 4 batches an epoch, 2 a rank
    trained(small_run, tmp_path, replace(SMALL, epochs=3))
    assert load(tmp_path).step == 2 * 2 + 4


@pytest.mark.parametrize("field", ["hubert_2", "exp"])
def test_a_field_that_the_run_lacks_is_named(tmp_path: Path, field: str) -> None:
    from support.sync_factory import make_talking_run

    talking = make_talking_run(tmp_path / "run", num_speakers=3, clips_per_speaker=1)  # without f0
    config = replace(SMALL, speech=field) if field != "exp" else replace(SMALL, target="exp")
    with pytest.raises(RunError, match=f"does not hold .*{field}"):
        trained(talking, tmp_path / "out", config, face_model=demo_head())


def test_features_of_another_encoder_are_refused(small_run: RunFolder, sync: Path, tmp_path: Path) -> None:
    record = {**small_run.record, "models": {"speech": {**small_run.record["models"]["speech"], "sha256": "1" * 64}}}
    other = RunFolder(small_run.path, record, small_run.shards)
    trained(small_run, tmp_path, replace(SMALL, epochs=1))
    with pytest.raises(RunError, match=r"other settings .*speech\.sha256"):
        trained(other, tmp_path, SMALL)
    with pytest.raises(RunError, match=r"lip-sync network was trained on other features .*speech\.sha256"):
        trained(other, tmp_path / "new", SMALL, sync=sync)


def test_what_does_not_go_together_is_refused(small_run: RunFolder, sync: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="without a lip-sync network: give one with --sync"):
        MotionTraining(small_run, replace(SMALL, sync_weight=1.0))
    with pytest.raises(RunError, match="reads idexp_lm3d, not exp"):
        MotionTraining(small_run, replace(SMALL, target="exp"), sync=sync, face_model=demo_head())
    two = make_motion_run(tmp_path / "two", 2, 1, frames=(26, 30))
    with pytest.raises(RunError, match="fewer than two speakers to train on"):
        MotionTraining(two, SMALL)


def test_held_out_clips_without_a_face_are_nothing_to_evaluate_on(small_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="clip"):
        trained(small_run, tmp_path, replace(SMALL, where="num_frames < 0"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_clips": 0}, "batch_clips must be at least 1, got 0"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0, got -1.0"),
        ({"speech": "f0"}, "speech must be hubert, hubert_2 ... or mel, got 'f0'"),
        ({"sync_weight": 1.0, "target": "exp"}, "sync_weight needs that target, not exp"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
    ],
)
def test_settings_that_cannot_be_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Audio2MotionConfig(**fields)


@pytest.mark.parametrize("options", [["--out", "x"], ["--out", "x", "--demo", "y"]])
def test_either_a_run_or_the_demo(options: list[str], tmp_path: Path) -> None:
    tool = [sys.executable, str(REPO / "tools" / "train_audio2motion.py"), *options]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "give either the folder of a run or --demo" in done.stderr
    assert list(tmp_path.iterdir()) == []
