"""Audio-video offsets that were measured are undone in a stream."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.offsets import load_offsets
from lrs3_loader.stream import Raw
from support.run_factory import make_run

LENGTHS = [[12, 30], [9, 40]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", LENGTHS)


def keys_of(run: RunFolder) -> list[str]:
    return [clip.key for shard in run.shards for clip in shard.clips]


def write_offsets(path: Path, offsets: Mapping[str, tuple[int | None, float | None]]) -> None:
    lines = [
        {"key": key, "offset_frames": offset, "confidence": confidence, "num_windows": 5, "in_training": False}
        for key, (offset, confidence) in offsets.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_rows_and_frames_that_belong_together_meet(run: RunFolder) -> None:
    """Row r of the speech features holds r, and frame t of the face t."""
    late, early, even, short = keys_of(run)[1], keys_of(run)[3], keys_of(run)[0], keys_of(run)[2]
    offsets = {late: 3, early: -2, short: 9}
    stream = ShardStream(run.path, "raw", shuffle=False, offsets=offsets)
    found = {sample["__key__"]: sample for sample in stream}
    assert found.keys() == {late, early, even}  # nothing is left of a clip of 9 frames
    assert stream.num_filtered == 1
    for key, offset, length in ((late, 3, 27), (early, -2, 38), (even, 0, 12)):
        sample = found[key]
        rows, frames = sample["hubert"][:, 0], sample["idexp_lm3d"][:, 0, 0]
        assert (len(rows), len(frames)) == (2 * length, length)
        assert (rows[::2] / 2 - frames == offset).all()
        assert {len(sample[name]) for name in ("mel", "f0")} == {2 * length}
        assert {len(sample[name]) for name in ("lm68", "valid", "speaking", "pose")} == {length}
    batch = next(iter(ShardStream(run.path, batch_size=3, offsets=offsets)))
    lengths = dict(zip(batch["keys"], batch["y_lengths"].tolist(), strict=True))
    assert lengths == {late: 27, early: 38, even: 12}


def test_only_small_and_certain_offsets_of_a_file_are_used(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three, four = keys_of(run)
    offsets = {one: (2, 0.3), two: (7, 0.9), three: (-1, 0.05), four: (None, None)}
    write_offsets(run.path / "sync.jsonl", offsets)
    with caplog.at_level(logging.INFO, logger="lrs3_loader"):
        assert load_offsets(run.path / "sync.jsonl") == {one: 2}
    assert "3 of 4 clips have an offset; those 1 of 2 to 6 frames" in caplog.text
    wide = load_offsets(run.path / "sync.jsonl", min_offset_frames=1, max_offset_frames=10, min_confidence=0)
    assert wide == {one: 2, two: 7, three: -1}
    near = load_offsets(run.path / "sync.jsonl", min_confidence=0)
    assert near == {one: 2}
    (tmp_path / "other.jsonl").write_bytes((run.path / "sync.jsonl").read_bytes())
    for given in ("sync", tmp_path / "other.jsonl"):
        found = {sample["__key__"]: len(sample["valid"]) for sample in ShardStream(run.path, "raw", offsets=given)}
        assert found == {one: 10, two: 30, three: 9, four: 40}


def test_a_saved_position_knows_the_offsets(run: RunFolder) -> None:
    stream = ShardStream(run.path, Raw(fields=("f0",)), offsets={keys_of(run)[0]: 2})
    state = stream.state_dict(next(iter(stream)))
    ShardStream(run.path, Raw(fields=("f0",)), offsets={keys_of(run)[0]: 2}).load_state_dict(state)
    for other in ({keys_of(run)[0]: 3}, None):
        with pytest.raises(RunError, match="differs in"):
            ShardStream(run.path, Raw(fields=("f0",)), offsets=other).load_state_dict(state)


def test_what_is_missing_or_damaged_is_said(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no .*sync\.jsonl; measure offsets with: lrs3-loader verify RUN --sync"):
        ShardStream(run.path, "raw", offsets="sync")
    (tmp_path / "bad.jsonl").write_text('{"key": "x"}\n')
    with pytest.raises(RunError, match=r"bad\.jsonl is damaged"):
        ShardStream(run.path, "raw", offsets=tmp_path / "bad.jsonl")
