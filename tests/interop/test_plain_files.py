"""A run as plain files: what they hold is what the run holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from lrs3_loader.commands import export
from lrs3_loader.io.media_codec import VideoEncoder, decode_video, encode_flac
from lrs3_loader.run.folder import RunFolder
from support.run_factory import begin_run, full_features

pytestmark = pytest.mark.smoke


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two clips, one of them with pixels and audio."""
    folder = begin_run(tmp_path / "run", [[6, 8]])
    first, second = (full_features(clip, length) for clip, length in zip(folder.shards[0].clips, (6, 8), strict=True))
    encoder = VideoEncoder(96, "h264", 18)
    encoder.append(np.full((6, 144, 96), 90, np.uint8))
    audio, scale = encode_flac(np.linspace(-1.5, 1.5, 640 * 6).astype(np.float32), 24)
    media = {"audio": audio, "mouth": encoder.finish()}
    first = dataclasses.replace(first, media=media, meta={**first.meta, "audio_scale": scale})
    folder.publish(folder.shards[0], [first, second], {}, {})
    return folder


def test_files_hold_what_the_run_holds(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "plain"
    assert export.main(["files", str(run.path), str(dest)]) == 0
    assert "2 clips" in capsys.readouterr().out
    keys = [clip.key for clip in run.shards[0].clips]
    stored = {sample["__key__"]: sample for sample in run.samples(run.shards[0])}
    for key in keys:
        with np.load(dest / f"{key}.npz") as arrays:
            assert set(arrays) == set(stored[key]) - {"__key__", "json", "audio", "mouth"}
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, stored[key][name])
        assert json.loads((dest / f"{key}.json").read_text()) == stored[key]["json"]
    rate, audio = wavfile.read(dest / f"{keys[0]}.wav")
    assert rate == 16_000
    np.testing.assert_allclose(audio, np.linspace(-1.5, 1.5, 640 * 6), atol=2.0**-22)
    np.testing.assert_array_equal(
        decode_video((dest / f"{keys[0]}.mouth.mp4").read_bytes(), grey=True), stored[keys[0]]["mouth"]
    )
    assert not (dest / f"{keys[1]}.wav").exists()
    assert export.main(["files", str(run.path), str(tmp_path / "none"), "--splits", "test"]) == 0
    assert not (tmp_path / "none").exists()
