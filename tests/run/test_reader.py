"""A run as a mapping, against what was published; local and on object storage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.reader import Run, open_run
from lrs3_loader.run.shards import encode_sample, read_shard
from support.run_factory import begin_run, full_features, make_run, publish
from support.s3_server import make_bucket, s3_service

LENGTHS = [[12, 30, 0], [9], [11, 10], [8], [7], [6]]
REJECTED = "pretrain/speaker01/00001"


def check_contents(run: Run, folder: RunFolder) -> None:
    """Compare every clip of a run with what ``make_run`` wrote, in the order of the run and backwards."""
    expected = {
        clip.key: full_features(clip, length, number * 1000 + place)
        for number, (shard, row) in enumerate(zip(folder.shards, LENGTHS, strict=True))
        for place, (clip, length) in enumerate(zip(shard.clips, row, strict=True))
        if length
    }
    assert len(run) == len(expected) == 8
    assert list(run) == list(expected)
    for key in [*run, *reversed(list(run))]:
        assert key in run
        found = run[key]
        assert found.clip == expected[key].clip
        assert encode_sample(found) == encode_sample(expected[key])
    assert [features.clip.key for features in run.values()] == list(expected)


@pytest.mark.smoke
def test_every_published_clip_is_there(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", LENGTHS)
    run = open_run(tmp_path / "run")
    check_contents(run, folder)
    assert {key: reject.reason for key, reject in run.rejects.items()} == {REJECTED: "no_face"}
    assert run.path == tmp_path / "run"
    assert run.record == folder.record
    assert "8 of 9 clips" in repr(run)
    again = pickle.loads(pickle.dumps(run))
    assert encode_sample(again[next(iter(run))]) == encode_sample(next(iter(run.values())))
    run.close()
    assert len(list(run.values())) == 8


def test_a_run_at_a_url(tmp_path: Path) -> None:
    with s3_service() as proxy:
        url = f"{make_bucket(proxy).url}/run"
        folder = make_run(url, LENGTHS)
        check_contents(open_run(url), folder)


def test_what_is_not_there_says_why(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", LENGTHS)
    folder = RunFolder.open(tmp_path / "run")
    publish(folder, 0, LENGTHS[0])
    run = open_run(tmp_path / "run")
    assert len(run) == 2
    waiting = folder.shards[1].clips[0].key
    for key, message in {
        REJECTED: r"was rejected \(no_face\)",
        waiting: "not extracted yet: its shard pretrain-000001 is not published",
        "pretrain/speaker00/00009": "keys near it are pretrain/speaker00/00000, pretrain/speaker00/00002",
    }.items():
        assert key not in run
        assert run.get(key) is None
        with pytest.raises(KeyError, match=message):
            _ = run[key]
    publish(folder, 1, LENGTHS[1])
    assert waiting in open_run(tmp_path / "run")


def test_damage_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [[12, 30]])
    key = next(iter(open_run(folder.path)))
    tar = folder.tar_path(folder.shards[0])
    data = bytearray(tar.read_bytes())
    place = data.index(b"mel.npy") + 512 + 4000
    data[place] ^= 1
    tar.write_bytes(data)
    run = open_run(folder.path)
    with pytest.raises(RunError, match=rf"{key}\.mel\.npy is damaged.*--repair"):
        _ = run[key]
    other = list(run)[1]
    np.testing.assert_array_equal(run[other].arrays["mel"], list(read_shard(tar))[1]["mel"])
    tar.unlink()
    with pytest.raises(RunError, match=r"cannot be opened.*--repair"):
        _ = open_run(folder.path)[key]


def test_a_shard_that_was_made_again_is_read_as_it_is_now(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [[12, 30]])
    run = open_run(folder.path)
    first, second = run
    publish(folder, 0, [0, 31])
    assert run[second].num_frames == 31
    with pytest.raises(RunError, match="was made again; open the run again"):
        _ = run[first]


def test_ledgers_of_another_run_do_not_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [[12], [9]])
    path = folder.path / "ledger/pretrain-000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": "another"}))
    assert len(open_run(folder.path)) == 1
