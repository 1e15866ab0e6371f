"""Streaming whole passes: every sample once, whoever reads; on from any batch; while it is written; past bad tars."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import lrs3_loader
from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.shards import read_shard
from lrs3_loader.stream import Raw
from support.run_factory import begin_run, make_run, publish

LENGTHS = [[12, 30, 7, 0, 21], [9, 9, 40, 18], [25, 6, 0, 33, 14, 11], [8, 16, 28]]
NUM_SAMPLES = 16

# Workers are processes here for the sake of order, not of speed.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", LENGTHS)


@pytest.fixture(scope="module")
def all_keys(run: RunFolder) -> list[str]:
    """Keys of all samples, in the order of the plan."""
    return [key for shard in run.shards for key, _ in run.ledger(shard).samples]


def as_is(item: Any) -> Any:
    return item


def load(stream: ShardStream, num_workers: int = 0, **options: Any) -> DataLoader:
    return DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=as_is, **options)


def keys_of(batch: dict[str, Any]) -> list[str]:
    return [batch["__key__"]] if "__key__" in batch else batch["keys"]


def keys_in(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in keys_of(batch)]


def a2m(run: RunFolder, **options: Any) -> ShardStream:
    return ShardStream(run.path, "audio2motion", **{"batch_size": 2, "shuffle_buffer": 6, **options})


# every sample once, whoever reads


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_sample_twice_or_lost(run: RunFolder, all_keys: list[str], world_size: int, num_workers: int) -> None:
    streams = [a2m(run, rank=rank, world_size=world_size) for rank in range(world_size)]
    passes = [list(load(stream, num_workers)) for stream in streams]
    assert sorted(keys_in(batch for batches in passes for batch in batches)) == all_keys
    assert {len(batches) for batches in passes} == {len(stream) for stream in streams} == {len(passes[0])}
    # the batches do not depend on the number of workers, nor (but for the split ones) on that of ranks
    alone = [keys_of(batch) for batch in a2m(run, rank=0, world_size=1)]
    together = [keys_of(batch) for row in zip(*passes, strict=True) for batch in row]
    unsplit = len(alone) - world_size
    assert together[:unsplit] == alone[:unsplit]


def test_one_shard_feeds_many_workers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[8] * 5])
    keys = keys_in(load(a2m(run, batch_size=1), num_workers=4))
    assert sorted(keys) == [clip.key for clip in run.shards[0].clips]


def test_raw_samples_are_what_the_shards_hold(run: RunFolder) -> None:
    stored = {sample["__key__"]: sample for shard in run.shards for sample in read_shard(run.tar_path(shard))}
    seen = list(ShardStream(run.path, "raw"))
    assert len(seen) == NUM_SAMPLES == len(stored)
    for sample in seen:
        want = stored[sample["__key__"]]
        assert set(sample) - {"__cursor__"} == set(want)
        assert sample["json"] == want["json"]
        for name in set(want) - {"__key__", "json"}:
            assert sample[name].dtype == want[name].dtype
            np.testing.assert_array_equal(sample[name], want[name])
            sample[name] += sample[name]  # may be changed in place


def test_it_goes_straight_into_a_data_loader(run: RunFolder, all_keys: list[str]) -> None:
    loader = DataLoader(ShardStream(run.path, "raw"), batch_size=None, num_workers=2)
    assert len(loader) == NUM_SAMPLES
    samples = list(loader)
    assert sorted(sample["__key__"] for sample in samples) == all_keys
    assert all(isinstance(sample["mel"], torch.Tensor) for sample in samples)


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not(run: RunFolder, all_keys: list[str]) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        stream = a2m(run, seed=seed)
        stream.set_epoch(epoch)
        return keys_in(stream)

    orders = [tuple(order(seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert len(set(orders)) == 4
    assert tuple(order(0, 1)) == orders[1]
    assert all(sorted(found) == all_keys for found in orders)
    assert keys_in(a2m(run, shuffle=False)) == all_keys


def test_persistent_workers_hear_of_the_epoch(run: RunFolder) -> None:
    stream, fresh = a2m(run), a2m(run)
    loader = load(stream, 2, persistent_workers=True)
    for epoch in (0, 3):
        stream.set_epoch(epoch)
        fresh.set_epoch(epoch)
        assert keys_in(loader) == keys_in(fresh)


def test_spawned_workers_read_too(run: RunFolder, all_keys: list[str]) -> None:
    loader = load(a2m(run), 1, multiprocessing_context="spawn")
    assert sorted(keys_in(loader)) == all_keys


def test_batches_hold_clips_of_like_length_within_their_limit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(6, 120, size=(6, 40)).tolist()
    run = make_run(tmp_path / "run", lengths)
    batches = list(ShardStream(run.path, batch_frames=400, shuffle_buffer=128))
    assert all(batch["y_mask"].numel() <= 400 for batch in batches)
    padded = sum(batch["y_mask"].numel() for batch in batches)
    assert padded < 1.1 * sum(map(sum, lengths))  # batches of clips as they come would be two thirds padding
    lengths_in_order = [int(batch["y_lengths"].max()) for batch in batches]
    assert lengths_in_order != sorted(lengths_in_order)  # shuffled, though cut from sorted pools


def test_lengths_and_keys_choose_clips(run: RunFolder, all_keys: list[str]) -> None:
    frames = {key: length for shard in run.shards for key, length in run.ledger(shard).samples}
    stream = a2m(run, min_frames=10, max_frames=30)
    want = sorted(key for key in all_keys if 10 <= frames[key] <= 30)
    assert sorted(keys_in(stream)) == want
    assert stream.num_filtered == NUM_SAMPLES - len(want)
    speaker = all_keys[0].split("/")[1]
    chosen = keys_in(a2m(run, select=lambda key: key.split("/")[1] == speaker))
    assert sorted(chosen) == [key for key in all_keys if key.split("/")[1] == speaker]


def test_long_clips_are_cropped_at_random_places(run: RunFolder) -> None:
    stream = a2m(run, crop_frames=8)
    starts = {}
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        for batch in stream:
            assert batch["y_lengths"].max() <= 8
            for key, motion, sound in zip(batch["keys"], batch["idexp_lm3d"], batch["hubert"], strict=True):
                starts[epoch, key] = int(motion[0, 0])
                assert int(sound[0, 0]) == 2 * int(motion[0, 0])
    assert len(set(starts.values())) > 4
    assert any(starts[0, key] != starts[1, key] for epoch, key in starts if epoch == 0)


# an epoch length that ranks agree on, or an error


def test_samples_that_cannot_be_shared_evenly_are_refused(run: RunFolder, all_keys: list[str]) -> None:
    with pytest.raises(RunError, match="16 batches cannot be shared evenly by 3 ranks"):
        ShardStream(run.path, "raw", rank=0, world_size=3)
    apart = [ShardStream(run.path, "raw", rank=rank, world_size=3, equal_batches=False) for rank in range(3)]
    assert [len(stream) for stream in apart] == [6, 5, 5]
    assert sorted(keys_in(batch for stream in apart for batch in stream)) == all_keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "audio2motion"}, "needs one of batch_size and batch_frames"),
        ({"task": "raw", "batch_size": 2}, "one sample at a time"),
        ({"task": "motion"}, "unknown task 'motion'; known are raw"),
        ({"task": "raw", "person": "x"}, "'postnet' needs person"),
        ({"task": "postnet", "batch_size": 2}, "'postnet' needs person"),
        ({"task": "syncnet", "batch_size": 2, "crop_frames": 5}, "below the 6 frames"),
        ({"task": "raw", "rank": 1}, "both rank and world_size"),
        ({"task": "raw", "rank": 2, "world_size": 2}, "got 2 of 2"),
        ({"task": "raw", "shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
        ({"task": "raw", "on_error": "ignore"}, "'raise' or 'skip'"),
        ({"task": "raw", "follow": True, "partial": True}, "one of the two"),
        ({"task": "raw", "follow": True, "rank": 0, "world_size": 2}, "is not known while a run is followed"),
    ],
)
def test_arguments_that_do_not_go_together(run: RunFolder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardStream(run.path, **options)


def _rank_finds(rank: int, folders: list[Path], store: Path, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        stream = ShardStream(folders[rank], batch_size=2, partial=True)
        answers.put((rank, keys_in(stream)))
    except RunError as error:
        answers.put((rank, str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("agree", [True, False])
def test_ranks_of_one_process_group(tmp_path: Path, run: RunFolder, all_keys: list[str], agree: bool) -> None:
    """Rank and world size come from torch.distributed, and ranks that see different shards find out at once."""
    other = begin_run(tmp_path / "run", LENGTHS)
    publish(other, 0, LENGTHS[0])
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    folders = [run.path, run.path if agree else other.path]
    ranks = [fork.Process(target=_rank_finds, args=(r, folders, tmp_path / "store", answers)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    found = dict(answers.get() for _ in ranks)
    if agree:
        assert sorted(found[0] + found[1]) == all_keys
    else:
        assert all("rank 1 found other samples than rank 0" in found[rank] for rank in range(2))


# on from any batch


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_going_on_after_any_batch(run: RunFolder, num_workers: int) -> None:
    """The rest is exactly what was left, in the same order, though workers had read ahead, for any number of them."""
    whole = [keys_of(batch) for batch in a2m(run)]
    for stop in range(len(whole)):
        stream = a2m(run)
        seen = []
        for batch in load(stream, num_workers):
            seen.append(keys_of(batch))
            if len(seen) == stop + 1:
                break
        state = json.loads(json.dumps(stream.state_dict(batch)))
        resumed = a2m(run)
        resumed.load_state_dict(state)
        seen += [keys_of(batch) for batch in load(resumed, (num_workers + stop) % 3)]
        assert seen == whole


def test_a_resumed_pass_can_be_resumed_and_epochs_follow(run: RunFolder, all_keys: list[str]) -> None:
    stream = a2m(run)
    stream.set_epoch(5)
    whole = keys_in(stream)
    seen: list[str] = []
    state = None
    for num_workers in (2, 0, 3):
        stream = a2m(run)
        if state:
            stream.load_state_dict(state)
        else:
            stream.set_epoch(5)
        for count, batch in enumerate(load(stream, num_workers), 1):
            seen += keys_of(batch)
            if count == 2:
                break
        state = stream.state_dict(batch)
    stream = a2m(run)
    stream.load_state_dict(state)
    assert stream.epoch == 5
    stream.set_epoch(5)  # the usual loop sets it once more: the position stays
    seen += keys_in(load(stream, 1))
    assert seen == whole
    stream.set_epoch(6)
    assert sorted(keys_in(load(stream, 2))) == all_keys


def test_without_workers_the_stream_knows_by_itself(run: RunFolder, all_keys: list[str]) -> None:
    stream = a2m(run)
    batches = iter(stream)
    seen = keys_in([next(batches), next(batches)])
    resumed = a2m(run)
    resumed.load_state_dict(stream.state_dict())
    assert sorted(seen + keys_in(resumed)) == all_keys
    finished = resumed.state_dict()
    assert sorted(keys_in(resumed)) == all_keys  # the next pass is a whole one
    resumed.load_state_dict(finished)
    assert keys_in(resumed) == []  # nothing of that epoch was left


def test_workers_need_the_batch(run: RunFolder) -> None:
    stream = a2m(run)
    next(iter(load(stream, 1)))
    with pytest.raises(RunError, match="pass the last batch used"):
        stream.state_dict()


def test_a_state_loaded_too_late_for_its_workers_is_refused(run: RunFolder) -> None:
    stream = a2m(run)
    loader = load(stream, 1, persistent_workers=True)
    *_, batch = loader
    stream.load_state_dict(stream.state_dict(batch))
    with pytest.raises(RunError, match="make a new DataLoader"):
        list(loader)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (4, 2), (3, 4)])
def test_going_on_with_other_ranks(run: RunFolder, all_keys: list[str], before: int, after: int) -> None:
    for stop in range(1, len(a2m(run, rank=0, world_size=before)) + 1):
        seen, states = [], []
        for rank in range(before):
            batches = iter(stream := a2m(run, rank=rank, world_size=before))
            batch = [next(batches) for _ in range(stop)]
            seen += keys_in(batch)
            states.append(stream.state_dict(batch[-1]))
        assert all(state == states[0] for state in states)  # any rank's state will do
        rest = []
        for rank in range(after):
            stream = a2m(run, rank=rank, world_size=after)
            stream.load_state_dict(states[0])
            if 0 < len(all_keys) - len(seen) < after:  # 3 samples do not make a batch for each of 4 ranks
                with pytest.raises(RunError, match="cannot be shared evenly"):
                    list(stream)
                return
            rest.append(list(stream))
        assert sorted(seen + keys_in(batch for batches in rest for batch in batches)) == all_keys
        assert len({len(batches) for batches in rest}) == 1


def test_a_state_of_something_else_is_refused(run: RunFolder, tmp_path: Path) -> None:
    state = a2m(run).state_dict()
    with pytest.raises(RunError, match="differs in batch_size: 2 -> 3"):
        a2m(run, batch_size=3).load_state_dict(state)
    other = make_run(tmp_path / "run", [[8, 9, 10]])
    with pytest.raises(RunError, match="differs in samples"):
        a2m(other).load_state_dict(state)
    with pytest.raises(RunError, match="no state of a ShardStream"):
        a2m(run).load_state_dict({"epoch": 3})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdata_keeps_the_state(run: RunFolder, num_workers: int) -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def loader() -> Any:
        return loaders.StatefulDataLoader(a2m(run), batch_size=None, num_workers=num_workers, collate_fn=as_is)

    whole = [keys_of(batch) for batch in a2m(run)]
    for stop in range(1, len(whole)):
        first, second = loader(), loader()
        batches = iter(first)
        seen = [keys_of(next(batches)) for _ in range(stop)]
        second.load_state_dict(first.state_dict())
        assert seen + [keys_of(batch) for batch in second] == whole


# while the run is written


class Writer(threading.Thread):
    """Publishes shards one by one, pausing between them; may be started again for the rest."""

    def __init__(self, folder: Path, indices: Iterable[int], pause: float = 0.15):
        super().__init__(daemon=True)
        self._folder, self._indices, self._pause = folder, list(indices), pause

    def run(self) -> None:
        run = RunFolder.open(self._folder)
        for index in self._indices:
            time.sleep(self._pause)
            publish(run, index, LENGTHS[index])


def test_following_a_run(tmp_path: Path, all_keys: list[str], caplog: pytest.LogCaptureFixture) -> None:
    run = begin_run(tmp_path / "run", LENGTHS)
    writer = Writer(run.path, [1, 0])
    stream = ShardStream(run.path, "raw", shuffle=False, follow=True, poll_seconds=0.01)
    with pytest.raises(TypeError, match="not known while a run is followed"):
        len(stream)
    samples = iter(stream)
    writer.start()
    with caplog.at_level(logging.WARNING):
        first = [next(samples)["__key__"] for _ in range(8)]  # all there is so far
        assert first == all_keys[:8]
        # the writer was killed with a shard half written, and comes back
        writer.join()
        (run.path / "tmp" / ".pretrain-000002.tar.abc.tmp").write_bytes(b"half")
        again = RunFolder.open(run.path)
        again.clear_scratch()
        Writer(run.path, again.pending()).start()
        assert first + [sample["__key__"] for sample in samples] == all_keys
    assert "waiting for pretrain-000000, shard 1 of 4" in caplog.text
    assert "waiting for pretrain-000002, shard 3 of 4" in caplog.text
    assert "going on" in caplog.text


def test_following_from_before_the_run_begins_with_ranks_and_workers(tmp_path: Path, all_keys: list[str]) -> None:
    begun = threading.Timer(0.2, lambda: begin_run(tmp_path / "run", LENGTHS))
    begun.start()

    def stream(rank: int) -> ShardStream:
        options = {"follow": True, "poll_seconds": 0.02, "rank": rank, "world_size": 2}
        return ShardStream(tmp_path / "run", batch_size=3, **options)  # type: ignore[arg-type]

    streams = [stream(0), stream(1)]
    Writer(tmp_path / "run", range(4), pause=0.05).start()
    passes = [list(load(each, 2)) for each in streams]
    assert sorted(keys_in(batch for batches in passes for batch in batches)) == all_keys
    assert len(passes[0]) == len(passes[1])  # though neither knew how many there would be
    state = streams[0].state_dict(passes[0][1])
    rest = []
    for rank in range(2):
        resumed = stream(rank)
        resumed.load_state_dict(state)
        rest.append([keys_of(batch) for batch in load(resumed, 1)])
    assert rest == [[keys_of(batch) for batch in batches[2:]] for batches in passes]


def test_a_tar_cut_short_is_waited_for_while_following(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run", [[8, 9]])
    tar = run.tar_path(run.shards[0])
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1000])
    threading.Timer(0.2, lambda: tar.write_bytes(whole)).start()
    with caplog.at_level(logging.WARNING):
        assert len(list(ShardStream(run.path, "raw", follow=True, poll_seconds=0.02))) == 2
    assert "has 1000 bytes" in caplog.text


def test_an_unfinished_run_must_be_followed_or_taken_as_it_is(tmp_path: Path, all_keys: list[str]) -> None:
    run = begin_run(tmp_path / "run", LENGTHS)
    with pytest.raises(RunError, match="not finished: 4 shards are missing, the first is pretrain-000000"):
        ShardStream(run.path, "raw")
    publish(run, 0, LENGTHS[0])
    publish(run, 2, LENGTHS[2])
    with pytest.raises(RunError, match="not finished: 2 shards are missing, the first is pretrain-000001"):
        ShardStream(run.path, "raw")
    assert sorted(keys_in(ShardStream(run.path, "raw", partial=True))) == all_keys[:4] + all_keys[8:13]


# past bad tars


@pytest.fixture
def own_run(tmp_path: Path) -> RunFolder:
    """A run to be damaged."""
    return make_run(tmp_path / "own", LENGTHS)


def flip(path: Path, place: int) -> None:
    """Change a byte and keep the length."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_a_missing_or_short_tar(own_run: RunFolder, all_keys: list[str], harm: Callable[[Path], None]) -> None:
    harm(own_run.tar_path(own_run.shards[1]))
    with pytest.raises(RunError, match=r"pretrain-000001.tar .*(missing|2000 bytes).*on_error='skip'"):
        a2m(own_run)
    streams = [a2m(own_run, on_error="skip", rank=rank, world_size=2) for rank in range(2)]
    assert sorted(keys_in(batch for s in streams for batch in s)) == all_keys[:4] + all_keys[8:]
    assert len(streams[0]) == len(streams[1])
    assert list(streams[0].errors()) == ["pretrain-000001"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_found_while_reading(
    own_run: RunFolder, all_keys: list[str], num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    flip(own_run.tar_path(own_run.shards[2]), 0)  # the first header: its checksum does not hold any more
    stream = a2m(own_run, on_error="skip")
    assert sorted(keys_in(load(stream, num_workers))) == all_keys[:8] + all_keys[13:]
    assert stream.errors() == {"pretrain-000002": "5 samples lost"}
    if num_workers == 0:
        assert "skipping damaged samples of pretrain-000002" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_is_an_error_unless_it_is_to_be_skipped(own_run: RunFolder, num_workers: int) -> None:
    flip(own_run.tar_path(own_run.shards[2]), 0)
    with pytest.raises(RunError, match=r"pretrain-000002.tar: bad header at byte 0"):
        list(load(a2m(own_run), num_workers))


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_going_on_after_any_sample_past_bad_ones(own_run: RunFolder, all_keys: list[str], num_workers: int) -> None:
    """Where a whole batch is lost its worker runs ahead of the others; the state says so."""
    flip(own_run.tar_path(own_run.shards[1]), 0)
    sound = all_keys[:4] + all_keys[8:]

    def stream() -> ShardStream:
        return ShardStream(own_run.path, "raw", on_error="skip", shuffle_buffer=6)

    assert sorted(keys_in(stream())) == sound
    for stop in range(1, len(sound), 3):
        first, second = stream(), stream()
        batches = iter(load(first, num_workers))
        seen = [next(batches) for _ in range(stop)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict(seen[-1]))))
        assert sorted(keys_in(seen) + keys_in(load(second, 2))) == sound


def test_a_rank_that_loses_a_whole_batch_cannot_keep_step(own_run: RunFolder) -> None:
    flip(own_run.tar_path(own_run.shards[1]), 0)
    stream = ShardStream(own_run.path, batch_size=4, shuffle=False, on_error="skip", rank=1, world_size=2)
    with pytest.raises(RunError, match="would fall behind the others"):
        list(stream)


def test_a_tar_that_is_not_the_one_listed(own_run: RunFolder) -> None:
    stream = a2m(own_run)
    tar = own_run.tar_path(own_run.shards[0])
    tar.write_bytes(own_run.tar_path(own_run.shards[1]).read_bytes())  # as many samples, but others
    with pytest.raises(RunError, match="holds other samples than its ledger names"):
        list(stream)


def test_damaged_arrays_are_named(own_run: RunFolder) -> None:
    tar = own_run.tar_path(own_run.shards[0])
    data = tar.read_bytes()
    flip(tar, data.index(b"NUMPY", data.index(b".hubert.npy")))
    with pytest.raises(RunError, match=r"00000.hubert.npy is damaged"):
        list(ShardStream(own_run.path, "raw", shuffle=False))


def test_a_field_that_is_not_there_is_named(own_run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"hold coeff in all samples of pretrain-000000.*--deep3d FILE"):
        list(ShardStream(own_run.path, Raw(fields=("mel", "coeff")), shuffle=False))
    samples = list(ShardStream(own_run.path, Raw(fields=("mel",))))
    assert all(set(sample) == {"__key__", "__cursor__", "json", "mel"} for sample in samples)


def test_old_names_still_work_and_warn(run: RunFolder) -> None:
    with pytest.warns(DeprecationWarning, match="even is now called equal_batches") as warned:
        apart = ShardStream(run.path, "raw", rank=0, world_size=3, even=False)
    assert len(apart) == 6
    assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(DeprecationWarning, match="is now called") as warned:
        stream = a2m(run, on_bad="skip", lanes=2, min_frames=10)
    assert sorted(str(warning.message).split()[1] for warning in warned) == ["lanes", "on_bad"]
    with pytest.warns(DeprecationWarning, match="num_filtered"):
        assert stream.num_left_out == stream.num_filtered > 0
    with pytest.warns(DeprecationWarning, match=r"errors\(\)"):
        assert stream.damage() == stream.errors() == {}
    with pytest.raises(TypeError, match="unexpected keyword argument 'evn'"):
        a2m(run, evn=False)


def test_states_saved_under_the_old_names_load(run: RunFolder) -> None:
    stream, resumed = a2m(run), a2m(run)
    batches = iter(stream)
    next(batches)
    state = stream.state_dict()
    old = {"equal_batches": "even", "num_parallel_shards": "lanes"}
    assert set(old) < set(state["stream"])
    state["stream"] = {old.get(name, name): value for name, value in state["stream"].items()}
    resumed.load_state_dict(state)
    assert keys_in(resumed) == keys_in(batches)
    with pytest.raises(RunError, match="differs in equal_batches: true -> false"):
        a2m(run, equal_batches=False).load_state_dict(state)


def test_nothing_to_read(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(RunError, match="holds no run"):
        ShardStream(tmp_path, "raw")
    with pytest.raises(RunError, match="none of the 16 clips"):
        a2m(run, min_frames=1000)
    with pytest.raises(RunError, match="cannot be opened"):
        ShardStream(tmp_path / "a.tar", "raw")
    with pytest.raises(ValueError, match="no run, path or URL"):
        ShardStream([], "raw")


def test_importing_the_package_stays_light() -> None:
    code = "import sys, lrs3_loader; assert 'torch' not in sys.modules and 'ShardStream' in lrs3_loader.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'TarStream'"):
        lrs3_loader.TarStream  # noqa: B018
