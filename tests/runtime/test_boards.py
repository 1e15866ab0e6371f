"""Figures that are sent to TensorBoard and Weights & Biases, read back from what they write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.runtime.boards import BoardConfig, Boards

pytestmark = pytest.mark.smoke


def read_events(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def opened(config: BoardConfig, first_step: int = 0) -> Boards:
    return Boards(config, name="run", identity="0123", settings={"epochs": 3}, first_step=first_step)


def test_tensorboard_gets_every_figure_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = BoardConfig(tensorboard=tmp_path / "a" / "board")
    with opened(config) as boards:
        boards.write(10, {"loss": 0.5, "rate": 3})
        boards.write(20, {"loss": 0.25})
    assert read_events(tmp_path / "a" / "board", "loss") == [(10, 0.5), (20, 0.25)]
    assert read_events(tmp_path / "a" / "board", "rate") == [(10, 3.0)]
    with opened(config, first_step=10) as boards:  # resumed from a checkpoint before step 20
        boards.write(20, {"loss": 0.125})
    assert read_events(tmp_path / "a" / "board", "loss") == [(10, 0.5), (20, 0.125)]
    assert BoardConfig(tmp_path, "p").inside("repeat-1") == BoardConfig(tmp_path / "repeat-1", "p")


def test_nothing_is_imported_or_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # importing either would raise
    with opened(BoardConfig()) as boards:
        boards.write(1, {"loss": 0.5})
    assert list(tmp_path.iterdir()) == []
    assert not BoardConfig().is_on


@pytest.mark.parametrize(("option", "extra"), [("tensorboard", "train"), ("wandb", "wandb")])
def test_a_missing_package_is_one_line(option: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrs3_loader.runtime.boards.find_spec", lambda name: None)
    config = BoardConfig(**{option: "here"})  # type: ignore[arg-type]
    with pytest.raises(RunError, match=rf"--{option} needs the package {option}; pip install 'lrs3_loader\[{extra}\]'"):
        config.require()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write for TensorBoard to"):
        opened(BoardConfig(tensorboard=tmp_path / "file" / "board"))


@pytest.mark.slow
def test_weights_and_biases_keeps_figures_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with opened(BoardConfig(wandb="project")) as boards:
        boards.write(10, {"loss": 0.5})
        boards.write(20, {"loss": 0.25})
    (path,) = tmp_path.glob("wandb/offline-run-*-0123/run-0123.wandb")
    data = path.read_bytes()
    for part in (b"loss", b"0.5", b"0.25", b"epochs", b"project"):
        assert part in data, part
