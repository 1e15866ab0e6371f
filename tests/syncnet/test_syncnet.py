"""Trained from shards, a small network tells which sound goes with which lips, and measures a shift of three frames."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.runtime.boards import BoardConfig
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.evaluate import CHANCE, OFFSETS, Accuracy, ClipScores, score_clip
from lrs3_loader.syncnet.measure import ClipOffset, describe_offsets, measure_offsets
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.syncnet.objective import LipSync
from lrs3_loader.syncnet.settings import TrainConfig
from lrs3_loader.train.checkpoint import CHECKPOINT_FILE
from lrs3_loader.train.loop import Training, train
from lrs3_loader.train.repeats import REPEATS_FILE, train_repeats
from lrs3_loader.train.scalars import EVALUATION_FILE, read_scalars
from lrs3_loader.train.settings import TrainLaunch
from support.paths import REPO
from support.sync_factory import make_talking_run

SHIFT = 3
SMALL = TrainConfig(epochs=3, batch_clips=4, pairs_per_clip=4, width=16, held_out=0.25)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Speakers enough to train on some and ask about others."""
    return make_talking_run(tmp_path_factory.mktemp("talking") / "run", num_speakers=16, clips_per_speaker=4)


@pytest.fixture(scope="module")
def late_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same clips, their sound three frames later."""
    folder = tmp_path_factory.mktemp("late") / "run"
    return make_talking_run(folder, num_speakers=16, clips_per_speaker=4, late_frames=SHIFT)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_talking_run(
        tmp_path_factory.mktemp("few") / "run", num_speakers=4, clips_per_speaker=5, seconds=(1.5, 2)
    )


@pytest.fixture(scope="module")
def trained(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accuracy]:
    out = tmp_path_factory.mktemp("trained")
    config = TrainConfig(epochs=25, batch_clips=14, pairs_per_clip=16, width=64, held_out=0.25, learning_rate=2e-3)
    boards = BoardConfig(out / "board" if find_spec("tensorboard") else None)
    accuracy = train_syncnet(run, config, TrainLaunch(out, device="cpu", evaluate_epochs=25, boards=boards))
    assert accuracy is not None
    return out, accuracy


def launch(out: Path, **options: Any) -> TrainLaunch:
    return TrainLaunch(out, **{"device": "cpu", "checkpoint_steps": 1, **options})


def train_syncnet(run: RunFolder, config: TrainConfig, launch: TrainLaunch) -> Accuracy | None:
    return train(LipSync(run, config), launch)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return SyncNetCheckpoint.load(out / CHECKPOINT_FILE).model


def test_lips_and_sound_of_unknown_speakers_are_matched_far_above_chance(trained: tuple[Path, Accuracy]) -> None:
    out, accuracy = trained
    assert accuracy.num_clips == 4 * 4
    assert accuracy.by_window > 5 * CHANCE
    assert accuracy.by_clip > 0.8
    assert int(np.argmax(accuracy.mean_score)) == OFFSETS.tolist().index(0)
    saved = json.loads((out / EVALUATION_FILE).read_text())
    assert saved["by_clip"] == accuracy.by_clip
    assert read_scalars(out)[-1]["window_accuracy"] == accuracy.by_window


def test_sound_three_frames_late_is_measured_three_frames_late(
    trained: tuple[Path, Accuracy], run: RunFolder, late_run: RunFolder
) -> None:
    checkpoint = SyncNetCheckpoint.load(trained[0] / CHECKPOINT_FILE)
    unknown = [
        [clip.offset_frames for clip in measure_offsets(folder, checkpoint) if not clip.in_training]
        for folder in (run, late_run)
    ]
    before, after = (np.array(offsets, dtype=float) for offsets in unknown)
    assert len(before) == len(after) == 4 * 4
    assert np.median(before) == 0
    assert np.median(after) == SHIFT
    assert (after - before == SHIFT).mean() > 0.8


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_within_an_epoch_a_training_goes_on_to_the_same_weights(
    small_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train_syncnet(small_run, SMALL, launch(whole))
    steps = SyncNetCheckpoint.load(whole / CHECKPOINT_FILE).step
    real_step = Training._step

    def dying_step(self: Training[Any, Any], batch: dict[str, Any]) -> None:
        if self.step == 6:
            raise KeyboardInterrupt
        real_step(self, batch)

    monkeypatch.setattr(Training, "_step", dying_step)
    with pytest.raises(KeyboardInterrupt):
        train_syncnet(small_run, SMALL, launch(halves, read_workers=workers))
    monkeypatch.undo()
    assert steps % 3 == 0
    assert SyncNetCheckpoint.load(halves / CHECKPOINT_FILE).step == 6
    assert 6 % (steps // 3) != 0, "the training must be killed within an epoch"
    train_syncnet(small_run, SMALL, launch(halves, read_workers=workers))

    assert SyncNetCheckpoint.load(halves / CHECKPOINT_FILE).step == steps
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(halves)[name]), name
    assert [line["step"] for line in read_scalars(whole)] == [line["step"] for line in read_scalars(halves)]
    assert read_scalars(whole)[-1] == read_scalars(halves)[-1]


def test_a_finished_training_is_evaluated_again_and_can_be_prolonged(small_run: RunFolder, tmp_path: Path) -> None:
    first = train_syncnet(small_run, SMALL, launch(tmp_path / "a"))
    before = weights(tmp_path / "a")
    assert train_syncnet(small_run, SMALL, launch(tmp_path / "a")) == first
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "a").items())
    longer = TrainConfig(**{**vars(SMALL), "epochs": 4})
    train_syncnet(small_run, longer, launch(tmp_path / "a"))
    train_syncnet(small_run, longer, launch(tmp_path / "b"))
    prolonged = weights(tmp_path / "a")
    assert all(torch.equal(prolonged[name], tensor) for name, tensor in weights(tmp_path / "b").items())


def test_repeats_hold_out_other_speakers_and_tell_mean_and_spread(small_run: RunFolder, tmp_path: Path) -> None:
    repeats = train_repeats(partial(LipSync, small_run), SMALL, launch(tmp_path), 3)
    assert repeats is not None
    checkpoints = [SyncNetCheckpoint.load(tmp_path / f"repeat-{number}" / CHECKPOINT_FILE) for number in range(3)]
    speakers = {clip.speaker for shard in small_run.shards for clip in shard.clips}
    held_out = [speakers - set(checkpoint.speakers) for checkpoint in checkpoints]
    assert [len(each) for each in held_out] == [1, 1, 1]
    assert len(set.union(*held_out)) == 3
    assert repeats.seeds == (0, 1, 2)
    assert not torch.equal(checkpoints[0].model["sound.project.weight"], checkpoints[1].model["sound.project.weight"])
    saved = json.loads((tmp_path / REPEATS_FILE).read_text())
    values = repeats.values("clip_accuracy")
    assert saved["clip_accuracy"]["values"] == values
    assert saved["clip_accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert saved["clip_accuracy"]["deviation"] == pytest.approx(np.std(values))
    assert saved["num_clips"] == [5, 5, 5]
    assert f"clip_accuracy: mean {np.mean(values):.3f}, standard deviation {np.std(values):.3f}" in repeats.describe()
    again = train_repeats(partial(LipSync, small_run), SMALL, launch(tmp_path), 3)
    assert again == repeats
    with pytest.raises(RunError, match="other settings"):  # a fold is no other seed
        train_syncnet(small_run, TrainConfig(**{**vars(SMALL), "fold": 1}), launch(tmp_path / "repeat-0"))


def test_a_loss_that_is_not_finite_ends_the_training(small_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not finite at step .* lower --learning-rate"):
        train_syncnet(small_run, TrainConfig(**{**vars(SMALL), "learning_rate": 1e30}), launch(tmp_path))


def test_one_speaker_is_not_enough(tmp_path: Path) -> None:
    alone = make_talking_run(tmp_path / "run", num_speakers=1, clips_per_speaker=1)
    with pytest.raises(RunError, match="two or more, got 1"):
        train_syncnet(alone, SMALL, launch(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused_with_the_difference(small_run: RunFolder, run: RunFolder, tmp_path: Path) -> None:
    train_syncnet(small_run, SMALL, launch(tmp_path))
    other = TrainConfig(**{**vars(SMALL), "width": 8})
    with pytest.raises(RunError, match=r"config\.width: 16 -> 8"):
        train_syncnet(small_run, other, launch(tmp_path))
    with pytest.raises(RunError, match="other speakers"):
        train_syncnet(run, SMALL, launch(tmp_path))


def test_two_ranks_share_the_batches_and_one_can_go_on(small_run: RunFolder, tmp_path: Path) -> None:
    options = [str(small_run.path), "--out", str(tmp_path), "--device", "cpu", "--checkpoint-steps", "1"]
    options += ["--epochs", "3", "--batch-clips", "4", "--pairs-per-clip", "4", "--width", "16", "--held-out", "0.25"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tool = [str(REPO / "tools" / "train_syncnet.py"), *options]
    done = subprocess.run([*torchrun, *tool], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right offset of 21 on top in") == 1
    assert "5 clips (held-out speakers; chance 4.8 %)" in done.stdout
    assert SyncNetCheckpoint.load(tmp_path / CHECKPOINT_FILE).step == 3 * 2  # of 15 clips 4 batches an epoch, 2 a rank
    train_syncnet(small_run, TrainConfig(**{**vars(SMALL), "epochs": 4}), launch(tmp_path))
    assert SyncNetCheckpoint.load(tmp_path / CHECKPOINT_FILE).step == 3 * 2 + 4


def test_verify_writes_an_offset_for_every_clip(trained: tuple[Path, Accuracy], run: RunFolder) -> None:
    tool = [sys.executable, str(REPO / "tools" / "verify.py"), str(run.path)]
    done = subprocess.run(
        [*tool, "--sync", str(trained[0] / CHECKPOINT_FILE)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run.path / "sync.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [clip.key for shard in run.shards for clip in shard.clips]
    assert sum(line["in_training"] for line in lines) == 12 * 4
    assert "  64 clips: median +0, median confidence" in done.stdout
    assert "  16 of them of speakers it was not trained on: median +0" in done.stdout


def test_a_training_is_drawn(trained: tuple[Path, Accuracy], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tool = [sys.executable, str(REPO / "tools" / "plot_syncnet.py")]
    picture = tmp_path / "docs" / "syncnet.png"
    done = subprocess.run([*tool, str(trained[0]), str(picture)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_features_of_other_models_are_refused(trained: tuple[Path, Accuracy], run: RunFolder) -> None:
    record = {**run.record, "models": {"speech": {**run.record["models"]["speech"], "sha256": "1" * 64}}}
    other = RunFolder(run.path, record, run.shards)
    with pytest.raises(RunError, match=r"trained on other features .*speech\.sha256"):
        next(measure_offsets(other, SyncNetCheckpoint.load(trained[0] / CHECKPOINT_FILE)))


def test_a_checkpoint_of_an_earlier_version_still_measures(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(lzma.decompress((REPO / "tests" / "golden" / "syncnet_checkpoint.pt.xz").read_bytes()))
    checkpoint = SyncNetCheckpoint.load(path)
    assert checkpoint.speakers == ["Head000", "Head001"]
    assert checkpoint.features["speech"]["width"] == 6
    scores = score_clip(checkpoint.network(), make_sample(40, seed=1))
    assert scores.offset_frames == 1
    assert scores.confidence == pytest.approx(0.225759, abs=1e-5), "by the version that wrote it"


def make_sample(num_frames: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "__key__": "test/speaker/00001",
        "hubert": random.normal(size=(2 * num_frames, 6)).astype(np.float16),
        "idexp_lm3d": random.normal(size=(num_frames, 68, 3)).astype(np.float32),
        "valid": np.ones(num_frames, dtype=bool),
    }


def slow_scores(model: SyncNetModel, sample: dict[str, Any]) -> np.ndarray:
    """Window by window and offset by offset; a positive offset takes a later sound."""
    rows = []
    for t in range(10, len(sample["valid"]) - 14):
        if sample["valid"][t : t + 5].all():
            mouth = torch.tensor(sample["idexp_lm3d"][t : t + 5, 48:68]).reshape(1, 5, 60)
            sounds = [torch.tensor(sample["hubert"][2 * s : 2 * s + 10]).float()[None] for s in range(t - 10, t + 11)]
            rows.append([float(model.embed_mouth(mouth)[0] @ model.embed_audio(sound)[0]) for sound in sounds])
    return np.array(rows)


def test_scores_equal_the_obvious_way_to_compute_them() -> None:
    torch.manual_seed(0)
    model = SyncNetModel(6, width=8)
    sample = make_sample(40)
    sample["valid"][[3, 20]] = False
    scores = score_clip(model, sample)
    with torch.no_grad():
        np.testing.assert_allclose(scores.windows, slow_scores(model, sample), atol=1e-6)
    assert len(scores.windows) == 16 - 5
    assert scores.offset_frames == int(np.argmax(scores.windows.mean(0))) - 10


def test_a_clip_too_short_to_compare_everywhere_has_no_offset() -> None:
    model = SyncNetModel(6, width=8)
    short, enough = (score_clip(model, make_sample(num_frames)) for num_frames in (24, 25))
    assert (short.offset_frames, short.confidence, len(short.windows)) == (None, None, 0)
    assert len(enough.windows) == 1
    assert enough.offset_frames is not None
    with pytest.raises(ValueError, match="no clip of 25 frames"):
        Accuracy.of([short])


def test_accuracy_counts_windows_and_clips() -> None:
    right, wrong = np.eye(21, dtype=np.float32)[[10, 12]]
    clips = [ClipScores("a", np.stack([right, right, wrong])), ClipScores("b", np.stack([wrong]))]
    accuracy = Accuracy.of(clips)
    assert (accuracy.by_window, accuracy.by_clip) == (0.5, 0.5)
    assert accuracy.clip_offsets[10] == accuracy.clip_offsets[12] == 1
    assert accuracy.mean_score[10] == 0.5
    assert clips[0].confidence == pytest.approx(2 / 3)


def test_the_summary_names_what_is_too_short_and_what_was_not_trained_on() -> None:
    offsets = [
        ClipOffset("a", 3, 0.5, 20, True),
        ClipOffset("b", 3, 0.3, 20, False),
        ClipOffset("c", None, None, 0, False),
    ]
    text = describe_offsets(offsets)
    assert "3 clips, 1 too short to say: median +3, median confidence 0.40 (+3: 2)" in text
    assert "2 of them of speakers it was not trained on, 1 too short to say: median +3" in text


def test_inputs_are_normalised_by_the_training_data() -> None:
    model = SyncNetModel(4, width=8)
    random = torch.Generator().manual_seed(0)
    mouth = 3.0 + 2.0 * torch.randn(50, 5, 60, generator=random)
    hubert = torch.tensor([1.0, 10.0, 100.0, 0.0]) * torch.randn(50, 10, 4, generator=random)
    model.set_normalization(
        [{"mouth": mouth[:20], "hubert": hubert[:20]}, {"mouth": mouth[20:], "hubert": hubert[20:]}]
    )
    torch.testing.assert_close(model.mouth_mean, mouth.mean((0, 1)))
    assert float(model.mouth_deviation) == pytest.approx(2.0, rel=0.05)
    np.testing.assert_allclose(model.hubert_deviation[:3], [1, 10, 100], rtol=0.1)
    assert torch.isfinite(model(mouth, hubert)).all()


def test_a_window_gives_the_same_in_any_batch() -> None:
    torch.manual_seed(1)
    model = SyncNetModel(4, width=8)
    mouth, hubert = torch.randn(6, 5, 60), torch.randn(6, 10, 4)
    alone = torch.cat([model(mouth[i : i + 1], hubert[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(model(mouth, hubert), alone)


def test_tensorboard_gets_the_figures_of_a_training(trained: tuple[Path, Accuracy]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = trained
    events = EventAccumulator(str(out / "board")).Reload()
    for name in ("loss", "window_accuracy", "clip_accuracy"):
        expected = [(line["step"], line[name]) for line in read_scalars(out) if name in line]
        found = events.Scalars(name)
        assert len(found) > 0
        np.testing.assert_allclose([(event.step, event.value) for event in found], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "damaged or not a checkpoint"), (b"not a checkpoint", "damaged or not a checkpoint"), (None, "cannot read")],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=message) as error:
        SyncNetCheckpoint.load(path)
    assert str(path) in str(error.value)


def test_another_file_of_torch_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(RunError, match="not a checkpoint of train-syncnet"):
        SyncNetCheckpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"max_shift_frames": 0}, "max_shift_frames must be at least 1, got 0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1, got 1.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_be_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize("options", [["--out", "x"], ["--out", "x", "--demo", "y"]])
def test_either_a_run_or_the_demo(options: list[str], tmp_path: Path) -> None:
    tool = [sys.executable, str(REPO / "tools" / "train_syncnet.py"), *options]
    done = subprocess.run(tool, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "give either the folder of a run or --demo" in done.stderr
    assert list(tmp_path.iterdir()) == []
