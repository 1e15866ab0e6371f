"""``lrs3-loader animate``: its arguments, its one line, and what it says of wrong files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from lrs3_loader.audio2motion.checkpoint import Audio2MotionCheckpoint
from lrs3_loader.audio2motion.objective import MotionTraining
from lrs3_loader.audio2motion.settings import Audio2MotionConfig
from lrs3_loader.commands import animate as command
from lrs3_loader.errors import RunError
from lrs3_loader.launch.cli import UsageError
from lrs3_loader.train.checkpoint import CHECKPOINT_FILE
from lrs3_loader.train.loop import train
from lrs3_loader.train.settings import TrainLaunch
from support.motion_factory import make_motion_run
from support.planted_generator import FACE, Planted, write_wav


@dataclass(frozen=True)
class PlantedCheckpoint(Planted):
    """A checkpoint whose network is planted."""

    def network(self, device: torch.device | str = "cpu") -> Planted:
        return self


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Audio2MotionCheckpoint, "load", classmethod(lambda cls, path: PlantedCheckpoint()))


@pytest.mark.usefixtures("planted")
def test_one_line_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sound = tmp_path / "x.mp4", write_wav(tmp_path / "x.wav", 0.9)
    words = ["model.pt", str(sound), "--out", str(out), "--panel", "64", "--device", "cpu"]
    assert command.main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{out}: 23 frames, 0.92 s, mouth open ")
    assert command.main([*words, "--json", "--temperature", "0"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["out"], found["num_frames"], found["seconds"]) == (str(out), 23, 0.92)
    assert found["mouth_opening_mm"][0] < 3 < 8 < found["mouth_opening_mm"][1]
    assert found["mouth_error_mm"] is None
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 23
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mp4", "x.wav"]


def test_a_trained_network_animates_a_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_motion_run(tmp_path / "run", 4, 2, frames=(26, 34))
    config = Audio2MotionConfig(size="demo", epochs=1, batch_clips=4, held_out=0.25, speech="mel")
    train(MotionTraining(run, config), TrainLaunch(tmp_path, device="cpu"))
    checkpoint = Audio2MotionCheckpoint.load(tmp_path / CHECKPOINT_FILE)
    features = {**checkpoint.features, "face_model": FACE}  # that run names none
    replace(checkpoint, features=features).save(tmp_path / "model.pt")
    sound = write_wav(tmp_path / "x.wav", 0.6)

    def animated(name: str, *options: str) -> tuple[bytes, dict[str, Any]]:
        out = tmp_path / name
        words = [str(tmp_path / "model.pt"), str(sound), "--out", str(out), "--panel", "64", "--device", "cpu"]
        assert command.main([*words, "--json", *options]) == 0
        return out.read_bytes(), json.loads(capsys.readouterr().out)

    (first, found), (again, _), (other, others) = animated("a.mp4"), animated("b.mp4"), animated("c.mp4", "--seed", "1")
    assert found["num_frames"] == 15
    assert first == again != other
    assert found["mouth_opening_mm"] != others["mouth_opening_mm"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "either a sound file, or --run"),
        (["x.wav", "--run", "r", "--key", "a/b/c"], "either a sound file, or --run"),
        (["--run", "r"], "--run and --key go together"),
        (["x.wav", "--key", "a/b/c"], "--run and --key go together"),
        (["--run", "r", "--key", "a/b/c", "--beside", "x.mp4"], "--beside goes with a sound file"),
        (["x.wav", "--corpus", "c"], "--corpus goes with --run"),
        (["x.wav", "--temperature", "-1"], "temperature and seed must be at least 0"),
    ],
)
def test_arguments_that_do_not_go_together(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        command.main(["model.pt", *words, "--out", "x.mp4"])


def test_wrong_files_are_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = write_wav(tmp_path / "x.wav")
    with pytest.raises(RunError, match=r"must end in .mp4 or .png"):
        command.main(["model.pt", str(sound), "--out", str(tmp_path / "x.gif")])
    with pytest.raises(RunError, match="there is no folder"):
        command.main(["model.pt", str(sound), "--out", str(tmp_path / "gone" / "x.mp4")])
    with pytest.raises(RunError, match=r"cannot read the checkpoint .*gone.pt: No such file"):
        command.main([str(tmp_path / "gone.pt"), str(sound), "--out", str(tmp_path / "y.mp4")])
    with pytest.raises(RunError, match=r"x.wav is damaged or not a checkpoint of train-audio2motion"):
        command.main([str(sound), str(sound), "--out", str(tmp_path / "y.mp4")])
    monkeypatch.chdir(tmp_path)
    sound.rename("x.mp4")
    with pytest.raises(UsageError, match=r"--out x.mp4 is the sound itself"):
        command.main(["model.pt", "x.mp4", "--out", "x.mp4"])
