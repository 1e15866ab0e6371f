"""What each consumer is given: shapes, units, alignment of frames and audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.shards import read_shard
from lrs3_loader.stream import Audio2Motion, SyncNet
from support.run_factory import SPEECH_WIDTH, make_run

pytestmark = pytest.mark.smoke

LENGTHS = [[12, 30, 7, 21], [9, 5, 40], [25, 6, 33, 14, 11]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", LENGTHS)


@pytest.fixture(scope="module")
def stored(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {sample["__key__"]: sample for shard in run.shards for sample in read_shard(run.tar_path(shard))}


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).float()


def test_audio2motion_pads_to_multiples_of_eight_rows(run: RunFolder, stored: dict[str, dict[str, Any]]) -> None:
    seen = 0
    for batch in ShardStream(run.path, "audio2motion", batch_size=3, shuffle_buffer=5):
        num_clips, num_rows, width = batch["hubert"].shape
        num_frames = batch["idexp_lm3d"].shape[1]
        longest = int(batch["y_lengths"].max())
        assert (num_rows % 8, num_rows, width) == (0, 2 * num_frames, SPEECH_WIDTH)
        assert longest <= num_frames < longest + 4
        assert batch["idexp_lm3d"].shape == (num_clips, num_frames, 204)
        assert batch["f0"].shape == batch["x_mask"].shape == (num_clips, num_rows)
        assert batch["y_mask"].shape == batch["valid"].shape == (num_clips, num_frames)
        floats = ("hubert", "f0", "idexp_lm3d", "x_mask", "y_mask", "valid")
        assert {batch[name].dtype for name in floats} == {torch.float32}
        for index, key in enumerate(batch["keys"]):
            want = stored[key]
            length = len(want["lm68"])
            assert (int(batch["y_lengths"][index]), int(batch["x_lengths"][index])) == (length, 2 * length)
            assert torch.equal(batch["hubert"][index, : 2 * length], as_tensor(want["hubert"]))
            assert torch.equal(batch["f0"][index, : 2 * length], as_tensor(want["f0"]))
            assert torch.equal(batch["idexp_lm3d"][index, :length], as_tensor(want["idexp_lm3d"]).flatten(1))
            assert batch["y_mask"][index].tolist() == [1.0] * length + [0.0] * (num_frames - length)
            assert batch["x_mask"][index].sum() == 2 * length
            for name, rows in (("hubert", 2 * length), ("f0", 2 * length), ("idexp_lm3d", length), ("valid", length)):
                assert not batch[name][index, rows:].any()
            seen += 1
    assert seen == len(stored)


def test_audio2motion_with_other_fields(run: RunFolder) -> None:
    batch = next(iter(ShardStream(run.path, Audio2Motion(fields=("mel", "exp", "lm68")), batch_size=2)))
    clips, frames = batch["y_mask"].shape
    assert batch["mel"].shape == (clips, 2 * frames, 80)
    assert batch["lm68"].shape == (clips, frames, 68, 2)
    assert "hubert" not in batch
    with pytest.raises(ValueError, match="not id"):
        Audio2Motion(fields=("id", "hubert"))


def test_syncnet_pairs_go_together_or_are_shifted_as_they_say(run: RunFolder, stored: dict[str, Any]) -> None:
    stream = ShardStream(run.path, SyncNet(pairs_per_clip=3), batch_size=4)
    assert stream.num_filtered == 1  # the clip of 5 frames has no shifted pair
    shifts = []
    for batch in stream:
        pairs = len(batch["keys"])
        assert batch["mouth"].shape == (pairs, 5, 60)
        assert batch["hubert"].shape == (pairs, 10, SPEECH_WIDTH)
        assert batch["label"].sum() == pairs / 2
        assert torch.equal(batch["label"] == 1, batch["shift"] == 0)
        shifts += batch["shift"].tolist()
        for index, key in enumerate(batch["keys"]):
            start, shift = int(batch["start"][index]), int(batch["shift"][index])
            mouth = stored[key]["idexp_lm3d"][start : start + 5, 48:68].reshape(5, 60)
            assert torch.equal(batch["mouth"][index], as_tensor(mouth))
            # what is in the arrays says it as well: frame t starts with t, row r with r
            assert batch["hubert"][index, 0, 0] == 2 * (start + shift)
            assert torch.equal(batch["hubert"][index, :, 0], 2 * (start + shift) + torch.arange(10.0))
    assert len(shifts) == 6 * 11
    assert min(shifts) < 0 < max(shifts)


def test_syncnet_shifts_keep_within_reach_and_windows_change_with_the_epoch(run: RunFolder) -> None:
    stream = ShardStream(run.path, SyncNet(max_shift_frames=2), batch_size=4)
    starts = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        batches = list(stream)
        assert max(int(batch["shift"].abs().max()) for batch in batches) <= 2
        starts.append({key: int(t) for batch in batches for key, t in zip(batch["keys"], batch["start"], strict=True)})
    assert starts[0] == starts[2] != starts[1]


def test_syncnet_prefers_windows_in_which_a_face_was_found() -> None:
    frames = 20
    sample = {
        "__key__": "a/b/c",
        "hubert": np.zeros((2 * frames, 4), np.float16),
        "idexp_lm3d": np.zeros((frames, 68, 3), np.float32),
        "valid": np.zeros(frames, dtype=bool),
    }

    def starts() -> set[int]:
        item = SyncNet(pairs_per_clip=40)([sample], lambda key: np.random.default_rng(0))
        return set(item["start"].tolist())

    assert len(starts()) > 5  # none is whole: any will do
    sample["valid"][3:9] = True
    assert starts() == {3, 4}


def test_postnet_brings_a_person_beside_the_corpus(run: RunFolder, stored: dict[str, Any], tmp_path: Path) -> None:
    person = make_run(tmp_path / "person", [[50, 10, 300]], split="person")
    theirs = [clip.key for clip in person.shards[0].clips]
    options: dict[str, Any] = {"batch_size": 2, "crop_frames": 40, "person": person.path}
    items = list(ShardStream(run.path, "postnet", **options))
    assert sorted(key for item in items for key in item["corpus"]["keys"]) == sorted(stored)
    beside = [key for item in items for key in item["person"]["keys"]]
    passes = [sorted(beside[start : start + 3]) for start in range(0, len(beside) - 2, 3)]
    assert passes == [theirs] * len(passes)  # all of the person's clips, again and again
    assert len(passes) >= 3
    for half in (part for item in items for part in (item["corpus"], item["person"])):
        clips, frames = half["y_mask"].shape
        assert frames <= 40
        assert half["pose"].shape == (clips, frames, 7)
        assert half["idexp_lm3d"].shape == (clips, frames, 204)
        norms = half["pose"][..., 3:].norm(dim=-1)
        torch.testing.assert_close(norms, half["y_mask"])  # unit where true, zero where padded


def test_postnet_poses_are_translation_and_quaternion(run: RunFolder, stored: dict[str, Any]) -> None:
    for item in ShardStream(run.path, "postnet", batch_size=2, person=run.path):
        batch = item["corpus"]
        for key, pose, length in zip(batch["keys"], batch["pose"], batch["y_lengths"], strict=True):
            want = stored[key]["pose"]
            quaternion = Rotation.from_euler("xyz", want[:, :3]).as_quat(canonical=True)  # x, y, z, w
            np.testing.assert_allclose(pose[:length, :3], want[:, 3:])
            np.testing.assert_allclose(pose[:length, 3:], quaternion[:, [3, 0, 1, 2]], atol=1e-5)


def test_postnet_goes_on_with_the_same_clips_of_the_person(run: RunFolder) -> None:
    def stream() -> ShardStream:
        return ShardStream(run.path, "postnet", batch_size=2, person=run.path)

    def pairs(items: Any) -> list[tuple[list[str], list[str]]]:
        return [(item["corpus"]["keys"], item["person"]["keys"]) for item in items]

    first, second = stream(), stream()
    batches = iter(first)
    seen = [next(batches) for _ in range(3)]
    second.load_state_dict(first.state_dict(seen[-1]))
    assert pairs(seen) + pairs(second) == pairs(stream())


def person_items(run: RunFolder, person: RunFolder, **options: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"batch_size": 2, "person": person.path, "rank": 0, "world_size": 1, **options}
    return list(ShardStream(run.path, "postnet", **settings))


def test_postnet_leaves_out_clips_of_the_person_that_an_evaluation_needs(run: RunFolder, tmp_path: Path) -> None:
    person = make_run(tmp_path / "person", [[50, 10, 300]], split="person")
    first, *others = [clip.key for clip in person.shards[0].clips]
    items = person_items(run, person, person_select=lambda key: key != first)
    assert {key for item in items for key in item["person"]["keys"]} == set(others)
    with pytest.raises(RunError, match=r"none of the 3 clips in .*person is selected"):
        person_items(run, person, person_select=lambda key: False)
    with pytest.raises(ValueError, match="person_select chooses among the clips of person"):
        ShardStream(run.path, "audio2motion", batch_size=2, person_select=lambda key: True)


def test_postnet_cuts_the_persons_long_clip_at_many_places(run: RunFolder, tmp_path: Path) -> None:
    person = make_run(tmp_path / "person", [[400]], split="person")
    starts = [int(item["person"]["idexp_lm3d"][0, 0, 0]) for item in person_items(run, person, crop_frames=20)]
    assert len(set(starts)) == len(starts) >= 5  # once for each batch of the corpus, in one epoch
    again = [int(item["person"]["idexp_lm3d"][0, 0, 0]) for item in person_items(run, person, crop_frames=20)]
    assert starts == again


def test_postnet_does_not_go_on_with_another_person(run: RunFolder, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 2, "rank": 0, "world_size": 1}
    person, other = (make_run(tmp_path / name, [lengths], split=name) for name, lengths in (("a", [9]), ("b", [8])))
    stream = ShardStream(run.path, "postnet", person=person.path, **settings)
    state = stream.state_dict(next(iter(stream)))
    ShardStream(run.path, "postnet", person=person.path, **settings).load_state_dict(state)
    with pytest.raises(RunError, match="differs in person"):
        ShardStream(run.path, "postnet", person=other.path, **settings).load_state_dict(state)
