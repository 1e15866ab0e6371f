"""Weights of clips, speakers in balance and shares of runs: how often clips come, the same on any ranks and resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Raw
from lrs3_loader.stream.schedule import repeated_order, shuffled_order
from support.run_factory import make_run

LENGTHS = [[12, 30, 9], [9, 40], [25, 16, 14, 20]]
FEW = Raw(fields=("f0",))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", LENGTHS)


def keys_of(stream: ShardStream, epoch: int = 0) -> list[str]:
    stream.set_epoch(epoch)
    return [sample["__key__"] for sample in stream]


def test_a_clip_comes_as_often_as_its_weight_says(run: RunFolder) -> None:
    keys = sorted(keys_of(ShardStream(run.path, FEW)))
    weights = {keys[0]: 3.0, keys[1]: 0.0, keys[2]: 0.5, keys[3]: 1.5}
    stream = ShardStream(run.path, FEW, weights=weights)
    totals: Counter[str] = Counter()
    for epoch in range(40):
        found = Counter(keys_of(stream, epoch))
        assert len(stream) == sum(found.values())
        assert (found[keys[0]], found[keys[1]]) == (3, 0)
        assert found[keys[2]] in (0, 1)
        assert found[keys[3]] in (1, 2)
        assert all(found[key] == 1 for key in keys[4:])
        totals += found
    assert 10 <= totals[keys[2]] <= 30
    assert 50 <= totals[keys[3]] <= 70
    assert Counter(keys_of(ShardStream(run.path, FEW, weights=lambda key: 2.0))) == dict.fromkeys(keys, 2)


def test_without_effect_weights_change_nothing(run: RunFolder) -> None:
    plain, weighted = ShardStream(run.path, FEW, seed=3), ShardStream(run.path, FEW, seed=3, weights={})
    for epoch in range(3):
        assert keys_of(plain, epoch) == keys_of(weighted, epoch)
    sizes, ones = [3, 0, 2, 5], np.ones(10, np.int64)
    for shuffle in (True, False):
        assert repeated_order(sizes, ones, shuffle, 1, 2).tolist() == shuffled_order(sizes, shuffle, 1, 2).tolist()


def test_repetitions_are_spread_over_the_epoch() -> None:
    counts = np.tile([4, 1], 500)
    order = repeated_order([10] * 100, counts, True, 0, 0)
    assert np.array_equal(np.bincount(order), counts)
    early = np.bincount(order[: len(order) // 2], minlength=1000)[::2].mean()
    assert 1.5 < early < 2.5


def test_speakers_come_equally_often(run: RunFolder) -> None:
    keys = keys_of(ShardStream(run.path, FEW))
    clips = Counter(key.split("/")[1] for key in keys)
    assert len(set(clips.values())) > 1
    stream = ShardStream(run.path, FEW, weights="speakers")
    totals: Counter[str] = Counter()
    num_epochs = 60
    for epoch in range(num_epochs):
        found = keys_of(stream, epoch)
        assert len(found) == len(keys)
        each = Counter(key.split("/")[1] for key in found).values()
        assert len(keys) // len(clips) <= min(each) <= max(each) <= -(-len(keys) // len(clips))
        totals += Counter(key.split("/")[1] for key in found)
    share = num_epochs * len(keys) / len(clips)
    assert all(abs(count - share) <= num_epochs / 4 for count in totals.values())


def test_runs_are_mixed_by_their_shares(run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [[10, 11, 12]], split="test")
    stream = ShardStream([run.path, other.path], FEW, mix=(1, 3))
    for epoch in range(3):
        found = Counter(key.split("/")[0] for key in keys_of(stream, epoch))
        assert found == {"pretrain": 3, "test": 9}
    heavy = dict.fromkeys(keys_of(ShardStream(other.path, FEW))[:1], 5.0)
    both = ShardStream([run.path, other.path], FEW, mix=(1, 3), weights=heavy)
    found = Counter(keys_of(both))
    assert sum(count for key, count in found.items() if key.startswith("test")) == 9
    assert found[next(iter(heavy))] in (6, 7)  # 5 of 7 parts of 9
    only = ShardStream([run.path, other.path], FEW, mix=(0, 1))
    assert {key.split("/")[0] for key in keys_of(only)} == {"test"}


def often(key: str) -> float:
    return 2.5 if "speaker00" in key else 1.0


def test_ranks_workers_and_resumed_trainings_agree(run: RunFolder) -> None:
    settings = {
        "task": "syncnet",
        "batch_size": 2,
        "weights": lambda key: 2.5 if "speaker00" in key else 1.0,
        "seed": 1,
    }

    def read(stream: ShardStream) -> list[tuple[list[str], list[int]]]:
        return [(batch["keys"], batch["start"].tolist()) for batch in stream]

    whole = read(ShardStream(run.path, **settings))
    ranks = [read(ShardStream(run.path, **settings, rank=rank, world_size=2, equal_batches=False)) for rank in (0, 1)]
    apart = [batch for pair in zip(*ranks, strict=False) for batch in pair] + ranks[0][len(ranks[1]) :]
    assert apart == read(ShardStream(run.path, **settings, equal_batches=False))
    assert Counter(key for keys, _ in whole for key in keys) == Counter(key for keys, _ in apart for key in keys)

    stream = ShardStream(run.path, **settings)
    batches = iter(stream)
    seen = [next(batches) for _ in range(3)]
    state = stream.state_dict(seen[-1])
    resumed = ShardStream(run.path, **settings)
    resumed.load_state_dict(state)
    assert read(resumed) == whole[3:]
    with pytest.raises(RunError, match="weights"):
        ShardStream(run.path, **(settings | {"weights": "speakers"})).load_state_dict(state)


def test_a_clip_that_comes_twice_is_drawn_from_twice(run: RunFolder) -> None:
    stream = ShardStream(run.path, "syncnet", batch_size=1, weights=lambda key: 4.0)
    starts: dict[str, set[int]] = {}
    for batch in stream:
        starts.setdefault(batch["keys"][0], set()).update(batch["start"].tolist())
    assert sum(len(found) > 1 for found in starts.values()) >= len(starts) - 1


def test_what_cannot_be(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a number of at least 0, got -1"):
        ShardStream(run.path, FEW, weights=lambda key: -1.0)
    with pytest.raises(ValueError, match="must be 'speakers'"):
        ShardStream(run.path, FEW, weights="speaker")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="nothing would be read"):
        ShardStream(run.path, FEW, weights=lambda key: 0.0)
    with pytest.raises(ValueError, match="a share for each of 1 runs"):
        ShardStream(run.path, FEW, mix=(1, 2))
    with pytest.raises(ValueError, match="not all 0"):
        ShardStream(run.path, FEW, mix=(0.0,))
    with pytest.raises(ValueError, match="follow=True"):
        ShardStream(run.path, FEW, weights="speakers", follow=True)
    other = make_run(tmp_path / "other", [[10]], split="test")
    with pytest.raises(RunError, match="mix gives location 1 a share of 2, but none of its clips is selected"):
        ShardStream([run.path, other.path], FEW, mix=(1, 2), select=lambda key: "pretrain" in key)
