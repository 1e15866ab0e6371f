"""Tasks that read pixels and audio: what belongs together comes together, once, and again from a saved position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader import ShardStream
from lrs3_loader.audio.mel import slaney_mel_basis
from lrs3_loader.audio.wav2lip_mel import wav2lip_mel
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Wav2Lip
from lrs3_loader.stream.pixel_tasks import mel_row
from support.run_factory import begin_run, full_features, make_run, with_media

pytestmark = pytest.mark.smoke
LENGTHS = [[20, 30], [16, 25, 17]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = begin_run(tmp_path_factory.mktemp("runs") / "run", LENGTHS)
    for index, row in enumerate(LENGTHS):
        shard = folder.shards[index]
        clips = [with_media(full_features(clip, length)) for clip, length in zip(shard.clips, row, strict=True)]
        clips[0] = dataclasses.replace(clips[0], meta={**clips[0].meta, "text": f"SAID IN {index}"})
        folder.publish(shard, clips, {}, {})
    return folder


@pytest.fixture(scope="module")
def stored(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {sample["__key__"]: sample for shard in run.shards for sample in run.samples(shard)}


def slow_mel(waveform: np.ndarray) -> np.ndarray:
    """Wav2Lip's mel by the sums of its definition."""
    loud = np.append(waveform[0], waveform[1:] - 0.97 * waveform[:-1])
    padded = np.pad(loud, 400, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 800)
    rows = []
    for row in range(1 + len(waveform) // 200):
        amplitude = np.abs(np.fft.rfft(padded[200 * row : 200 * row + 800] * window))
        decibels = 20 * np.log10(np.maximum(1e-5, slaney_mel_basis(800, 55, 7600) @ amplitude)) - 20
        rows.append(np.clip(8 * (decibels + 100) / 100 - 4, -4, 4))
    return np.array(rows)


def test_mel_is_that_of_the_definition() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, 640 * 9).astype(np.float32)
    waveform[2000:4000] = 0
    found = wav2lip_mel(torch.from_numpy(waveform)).numpy()
    np.testing.assert_allclose(found, slow_mel(waveform.astype(np.float64)), atol=1e-5)
    assert found.min() == -4
    assert [mel_row(frame) for frame in (0, 1, 2, 5)] == [0, 3, 6, 16]


def test_wav2lip_windows_are_frames_and_mel_of_one_time(run: RunFolder, stored: dict[str, Any]) -> None:
    seen: list[str] = []
    for batch in ShardStream(run.path, Wav2Lip(windows_per_clip=2, size=32), batch_size=2):
        num_windows = len(batch["keys"])
        seen += batch["keys"]
        assert batch["x"].shape == (num_windows, 6, 5, 32, 32)
        assert batch["indiv_mels"].shape == (num_windows, 5, 1, 80, 16)
        assert batch["mel"].shape == (num_windows, 1, 80, 16)
        assert batch["y"].shape == (num_windows, 3, 5, 32, 32)
        for number, key in enumerate(batch["keys"]):
            start, reference = int(batch["start"][number]), int(batch["reference"][number])
            assert start != reference
            shown = batch["y"][number].mean((0, 2, 3)) * 255
            np.testing.assert_allclose(shown, 4 * np.arange(start, start + 5), atol=2)
            other = batch["x"][number, 3:].mean((0, 2, 3)) * 255
            np.testing.assert_allclose(other, 4 * np.arange(reference, reference + 5), atol=2)
            assert torch.equal(batch["x"][number, :3, :, :16], batch["y"][number, :, :, :16])
            assert not batch["x"][number, :3, :, 16:].any()
            mel = wav2lip_mel(torch.from_numpy(stored[key]["audio"]))
            first = 80 * start // 25
            assert torch.equal(batch["mel"][number, 0], mel[first : first + 16].T)
            for offset in range(5):
                first = 80 * (start - 1 + offset) // 25
                assert torch.equal(batch["indiv_mels"][number, offset, 0], mel[first : first + 16].T)
    assert sorted(seen) == sorted(2 * list(stored))


def test_wav2lip_channels_are_blue_green_red(stored: dict[str, Any]) -> None:
    sample = dict(next(iter(stored.values())))
    sample["face"] = np.full_like(sample["face"], 0)
    sample["face"][..., 0] = 255  # red
    batch = Wav2Lip(size=None)([sample], lambda key: np.random.default_rng(0))
    assert batch["y"].shape[-1] == 64
    assert batch["y"].amax((0, 2, 3, 4)).tolist() == [0, 0, 1]


def test_avsr_brings_whole_clips_with_audio_and_text(run: RunFolder, stored: dict[str, Any]) -> None:
    seen = {}
    for batch in ShardStream(run.path, "avsr", batch_size=2):
        longest = int(batch["lengths"].max())
        assert batch["mouth"].shape[1:] == (longest, 96, 96)
        assert batch["audio"].shape[1] == 640 * longest
        for number, key in enumerate(batch["keys"]):
            length = int(batch["lengths"][number])
            assert int(batch["audio_lengths"][number]) == 640 * length
            np.testing.assert_array_equal(batch["mouth"][number, :length], stored[key]["mouth"])
            np.testing.assert_array_equal(batch["audio"][number, : 640 * length], stored[key]["audio"])
            assert not batch["mouth"][number, length:].any()
            assert not batch["audio"][number, 640 * length :].any()
            seen[key] = batch["text"][number]
    assert seen == {key: sample["json"].get("text", "") for key, sample in stored.items()}
    assert sorted(seen.values())[-2:] == ["SAID IN 0", "SAID IN 1"]


@pytest.mark.parametrize("task", ["wav2lip", "avsr"])
def test_a_saved_position_goes_on_with_the_same_batches(run: RunFolder, task: str) -> None:
    def make() -> ShardStream:
        return ShardStream(run.path, task, batch_size=1, seed=3)

    stream = make()
    stream.set_epoch(1)
    batches = list(stream)
    again = make()
    again.load_state_dict(stream.state_dict(batches[1]))
    rest = list(again)
    assert [batch["keys"] for batch in rest] == [batch["keys"] for batch in batches[2:]]
    name = "y" if task == "wav2lip" else "mouth"
    for one, other in zip(rest, batches[2:], strict=True):
        assert torch.equal(one[name], other[name])


def test_what_the_run_does_not_hold_is_named_with_its_flag(run: RunFolder, tmp_path: Path) -> None:
    poor = make_run(tmp_path / "poor", [[20]])
    with pytest.raises(RunError, match=r"does not hold audio, face in .*--store-audio --store-face SIZE"):
        ShardStream(poor.path, "wav2lip", batch_size=1)
    with pytest.raises(RunError, match=r"--store-audio --store-mouth"):
        ShardStream(poor.path, "avsr", batch_size=1)
    with pytest.raises(ValueError, match="reads whole clips"):
        ShardStream(run.path, "avsr", batch_size=1, crop_frames=10)
    with pytest.raises(ValueError, match="windows_per_clip"):
        Wav2Lip(windows_per_clip=0)
