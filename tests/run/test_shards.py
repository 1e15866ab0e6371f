from __future__ import annotations

import io
import json
import tarfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import webdataset

from lrs3_loader.errors import RunError
from lrs3_loader.io.files import utc_now
from lrs3_loader.io.storage import LocalStore
from lrs3_loader.run.ledger import Ledger, read_ledger
from lrs3_loader.run.shards import check_shard, publish_shard, read_shard
from lrs3_loader.types import ClipFeatures, Reject, Shard
from support.factory import make_clip, make_features, make_reject, make_shard

pytestmark = pytest.mark.smoke

TAR, LEDGER = "shards/test-000000.tar", "ledger/test-000000.json"


def publish(folder: Path, shard: Shard, results: list[ClipFeatures | Reject], run: str = "r") -> Ledger:
    store = LocalStore(folder)
    store.create(["shards", "ledger"])
    return publish_shard(shard, results, store, run=run, timings={"fit": 1.0}, provenance={})


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def some_results(shard: Shard) -> list[ClipFeatures | Reject]:
    first, second, *rest = shard.clips
    return [
        make_features(first),
        make_reject(second),
        *(make_features(clip, 12, seed) for seed, clip in enumerate(rest)),
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    shard = make_shard()
    results = some_results(shard)
    ledger = publish(tmp_path, shard, results)
    assert ledger.samples == ((shard.clips[0].key, 10), (shard.clips[2].key, 12), (shard.clips[3].key, 12))
    assert ledger.rejects == ((shard.clips[1].key, "no_face", "3 of 10 frames with a face"),)
    assert read_ledger(LocalStore(tmp_path), shard.name) == ledger
    written = [result for result in results if isinstance(result, ClipFeatures)]
    for sample, features in zip(read_shard(tmp_path / TAR), written, strict=True):
        assert sample["__key__"] == features.clip.key
        assert sample["json"] == features.meta
        for name, array in features.arrays.items():
            assert sample[name].dtype == array.dtype
            np.testing.assert_array_equal(sample[name], array)
    assert check_shard(shard, LocalStore(tmp_path), ledger) == []


def test_the_ledger_says_when_and_the_tar_does_not(tmp_path: Path) -> None:
    shard = make_shard()
    before = utc_now()
    ledger = publish(tmp_path / "one", shard, some_results(shard))
    assert before <= ledger.provenance["finished_at"] <= utc_now()
    assert datetime.fromisoformat(before).utcoffset() == timedelta(0)
    while utc_now() == ledger.provenance["finished_at"]:
        pass
    again = publish(tmp_path / "two", shard, some_results(shard))
    assert again.provenance["finished_at"] > ledger.provenance["finished_at"]
    assert again.sha256 == ledger.sha256


def test_webdataset_reads_them(tmp_path: Path) -> None:
    shard = make_shard()
    publish(tmp_path, shard, some_results(shard))
    dataset = webdataset.WebDataset(str(tmp_path / TAR), shardshuffle=False).decode()
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [shard.clips[k].key for k in (0, 2, 3)]
    np.testing.assert_array_equal(samples[1]["mel.npy"], make_features(shard.clips[2], 12, 0).arrays["mel"])
    assert samples[0]["json"]["text"] == "żółć"


def test_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    shard = make_shard()
    first = publish(tmp_path / "one", shard, some_results(shard))
    time.sleep(1.1)  # tar headers count in seconds
    second = publish(tmp_path / "two", shard, some_results(shard), run="another")
    assert first.sha256 == second.sha256
    assert (tmp_path / "one" / TAR).read_bytes() == (tmp_path / "two" / TAR).read_bytes()


def test_an_exception_half_way_leaves_nothing(tmp_path: Path) -> None:
    shard = make_shard()

    def results():  # type: ignore[no-untyped-def]
        yield make_features(shard.clips[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "run", shard, results())
    assert files_in(tmp_path / "run") == []


def test_results_that_are_not_the_shards_clips_are_a_bug(tmp_path: Path) -> None:
    shard = make_shard(num_clips=2)
    with pytest.raises(ValueError, match="expected test/speaker/00000, got test/speaker/00001"):
        publish(tmp_path, shard, [make_features(clip) for clip in reversed(shard.clips)])
    with pytest.raises(ValueError, match="zip"):
        publish(tmp_path, shard, [make_features(shard.clips[0])])
    assert files_in(tmp_path) == []


def test_publishing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    shard = make_shard()
    publish(tmp_path, shard, some_results(shard))
    before = {path: path.stat().st_mtime_ns for path in files_in(tmp_path)}
    publish(tmp_path, shard, some_results(shard))
    assert {path: path.stat().st_mtime_ns for path in files_in(tmp_path)} == before


def test_publishing_something_else_replaces_tar_and_ledger(tmp_path: Path) -> None:
    shard = make_shard()
    publish(tmp_path, shard, some_results(shard))
    ledger = publish(tmp_path, shard, [make_features(clip) for clip in shard.clips])
    assert ledger.rejects == ()
    assert check_shard(shard, LocalStore(tmp_path), read_ledger(LocalStore(tmp_path), shard.name)) == []


def test_publishing_repairs_a_damaged_tar(tmp_path: Path) -> None:
    shard = make_shard()
    publish(tmp_path, shard, some_results(shard))
    good = (tmp_path / TAR).read_bytes()
    (tmp_path / TAR).write_bytes(good[:600] + b"?" + good[601:])
    publish(tmp_path, shard, some_results(shard))
    assert (tmp_path / TAR).read_bytes() == good


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "other", "empty"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    shard = make_shard()
    ledger = publish(tmp_path, shard, some_results(shard))
    tar = tmp_path / TAR
    data = tar.read_bytes()
    if damage == "gone":
        tar.unlink()
    elif damage == "other":
        ledger = publish(tmp_path / "other", shard, [make_features(clip) for clip in shard.clips])
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        tar.write_bytes({"cut": data[:middle], "flip": flipped, "empty": b""}[damage])
    assert check_shard(shard, LocalStore(tmp_path), ledger) != []


def test_a_ledger_that_lists_other_clips_is_found(tmp_path: Path) -> None:
    shard = make_shard()
    ledger = publish(tmp_path, shard, some_results(shard))
    problems = check_shard(make_shard(num_clips=5), LocalStore(tmp_path), ledger)
    assert any("other clips than the plan: 4 and 5" in problem for problem in problems)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pickled_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        {"a/b/c.exe": b"?"},
        {"noending": b"?"},
        {"a/b/c.mel.npy": b"not an array"},
        {"a/b/c.json": b"{"},
        {"a/b/c.mel.npy": pickled_npy()},
    ],
)
def test_strange_members_are_refused_by_name(tmp_path: Path, members: dict[str, bytes]) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(RunError, match=r"a\.tar"):
        list(read_shard(tmp_path / "a.tar"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shard": "a"}', "\x00"])
def test_a_file_that_is_no_ledger_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match=r"a\.json is not a ledger"):
        Ledger.parse((tmp_path / "a.json").read_bytes(), str(tmp_path / "a.json"))


def test_ledger_is_plain_json(tmp_path: Path) -> None:
    ledger = publish(tmp_path, make_shard(num_clips=1), [make_features(make_clip("test/speaker/00000"))])
    assert json.loads((tmp_path / LEDGER).read_text())["sha256"] == ledger.sha256
