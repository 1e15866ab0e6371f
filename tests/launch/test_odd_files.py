"""A folder of odd files, extracted whole: each becomes a sample or a reject with its own reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from lrs3_loader import demo
from lrs3_loader.launch import runner
from lrs3_loader.run.shards import read_shard
from support.media_files import struck, truncated, write_media
from support.whole_runs import config_for, extract

SECONDS = 1.0
EXPECTED = {
    "damaged_early": "damaged",
    "damaged_late": 25,
    "empty": "unreadable",
    "good": 25,
    "late_sound": 25,
    "noise": "no_face",
    "no_sound": "no_sound",
    "no_video": "no_video",
    "odd_size": 25,
    "one_frame": "too_short",
    "rate_60": 25,
    "rate_variable": 25,
    "short_sound": "length_mismatch",
    "text": "unreadable",
    "truncated": "unreadable",
}


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int, int], np.ndarray]:
    """Draws frame ``number`` of a talking head, at any size."""
    corpus = demo.make_demo_corpus(
        tmp_path_factory.mktemp("face") / "demo", num_speakers=1, clips_per_speaker=1, seconds=(1.0, 1.0)
    )
    with av.open(str(corpus.folder / f"{corpus.keys[0]}.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]

    def draw(number: int, height: int, width: int) -> np.ndarray:
        frame = frames[number % len(frames)]
        return np.ascontiguousarray(np.pad(frame, ((0, height - 224), (0, width - 224), (0, 0)), mode="edge"))

    return draw


def hum(seconds: float = SECONDS) -> np.ndarray:
    return (0.3 * np.sin(np.arange(int(16_000 * seconds)) * 2 * np.pi * 140 / 16_000))[None].astype(np.float32)


def noise(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_odd_files(folder: Path, face: Callable[[int, int, int], np.ndarray]) -> None:
    folder.mkdir(parents=True)

    def write(name: str, **fields: object) -> Path:
        defaults = {"num_frames": 25, "size": (224, 224), "sound": hum(), "draw": face}
        return write_media(folder / f"{name}.mp4", **{**defaults, **fields})  # type: ignore[arg-type]

    good = write("good")
    truncated(good, folder / "truncated.mp4", 0.6)
    struck(good, folder / "damaged_early.mp4", 3)  # a key frame every 12 frames
    struck(good, folder / "damaged_late.mp4", 20)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is no video.\n" * 100)
    write("no_sound", sound=None)
    write("no_video", num_frames=0)
    write("one_frame", num_frames=1, sound=hum(0.04))
    write("rate_60", num_frames=60, frames_per_second=60)
    times = np.cumsum([0.0, *np.random.default_rng(0).choice([1 / 60, 1 / 30, 1 / 20], 40)])
    times = times[times < SECONDS - 0.04]
    write("rate_variable", num_frames=len(times) + 1, frame_times=[*times.tolist(), SECONDS - 0.04])
    write("late_sound", sound_offset=0.2, sound=hum(SECONDS - 0.2))
    write("odd_size", size=(243, 251))
    write("short_sound", num_frames=50)
    write("noise", draw=noise)


@pytest.fixture(scope="module")
def outcome(
    face: Callable[[int, int, int], np.ndarray],
    assets: Path | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> runner.Outcome:
    folder = tmp_path_factory.mktemp("odd")
    write_odd_files(folder / "clips/someone", face)
    return extract(config_for(folder / "clips"), folder / "out", assets)


def samples(outcome: runner.Outcome) -> dict[str, dict]:  # type: ignore[type-arg]
    folder = outcome.folder
    found = [sample for shard in folder.shards for sample in read_shard(folder.tar_path(shard))]
    return {sample["__key__"].split("/")[-1]: sample for sample in found}


def test_each_has_its_own_end(outcome: runner.Outcome) -> None:
    ends: dict[str, str | int] = {key.split("/")[-1]: reason for key, reason, _ in outcome.totals.rejects}
    ends |= {name: sample["json"]["num_frames"] for name, sample in samples(outcome).items()}
    assert ends == EXPECTED
    assert outcome.totals.num_samples + len(outcome.totals.rejects) == len(EXPECTED)


def test_every_reject_says_why_in_words(outcome: runner.Outcome) -> None:
    for key, reason, message in outcome.totals.rejects:
        assert len(message) > 10, key
        assert message != reason


def test_damaged_frames_are_not_valid(outcome: runner.Outcome) -> None:
    found = samples(outcome)
    late = found["damaged_late"]
    broken = np.flatnonzero(~late["valid"])
    assert set(broken) <= {19, 20, 21, 22, 23}
    assert 20 in broken
    assert late["json"]["quality"]["damaged_fraction"] == len(broken) / 25
    assert late["json"]["quality"]["valid_fraction"] == 1 - len(broken) / 25
    before = late["lm68"][broken[0] - 1]
    assert np.abs(late["lm68"][broken] - before).max() < 10  # filled, linearly
    assert found["good"]["valid"].all()
    assert found["good"]["json"]["quality"]["damaged_fraction"] == 0


def test_late_sound_is_late_and_said_to_be(outcome: runner.Outcome) -> None:
    source = samples(outcome)["late_sound"]["json"]["source"]
    # The encoder's 1024 samples of priming may count as sound: silent, and 64 ms long.
    assert 0.2 - 0.065 < source["sound_offset_seconds"] < 0.201
    mel = samples(outcome)["late_sound"]["mel"]
    loudness = mel.max(axis=1)
    assert loudness[:4].max() < -5.9
    # Windows of 512 samples every 320: row 9 is the first that lies for the most part behind 0.2 s.
    assert np.flatnonzero(loudness > loudness[20:40].mean() - 0.5)[0] in (9, 10)


def test_faces_of_odd_files_are_where_the_good_ones_are(outcome: runner.Outcome) -> None:
    found = samples(outcome)
    good = found["good"]["lm68"]
    for name in ("late_sound", "odd_size"):
        assert np.abs(found[name]["lm68"] - good).mean() < 1.0, name
    assert found["rate_60"]["lm68"].shape == good.shape


def test_the_good_one_is_the_same_as_alone(
    outcome: runner.Outcome,
    face: Callable[[int, int, int], np.ndarray],
    assets: Path | None,
    tmp_path: Path,
) -> None:
    (tmp_path / "clips/someone").mkdir(parents=True)
    whole = outcome.folder.path.parent / "clips/someone/good.mp4"
    (tmp_path / "clips/someone/good.mp4").write_bytes(whole.read_bytes())
    alone = samples(extract(config_for(tmp_path / "clips"), tmp_path / "out", assets))["good"]
    among = samples(outcome)["good"]
    assert alone.keys() == among.keys()
    for name, value in alone.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, among[name], err_msg=name)
