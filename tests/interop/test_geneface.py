from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.interop.geneface.exporter import ExportOptions, export_geneface, held_out_speakers
from lrs3_loader.interop.geneface.importer import ImportOptions, import_geneface
from lrs3_loader.interop.geneface.indexed import INDEX_BYTES, IndexedReader, IndexedWriter
from lrs3_loader.interop.geneface.item import MISFIT, TOO_SHORT, ItemMaker, ItemOptions, NotExportedError
from lrs3_loader.interop.geneface.pickle_writer import pickle_pieces
from lrs3_loader.io.unpickle import UnpickleError, loads
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import ledger_name
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.shards import read_shard
from lrs3_loader.types import Clip, ClipFeatures, Shard
from support import geneface_reader
from support.face_factory import small_model
from support.factory import make_clip
from support.geneface_sets import stranger, write_old_set, write_set

HEIGHT = 200
SHORT_FRAMES = 20


def features(clip: Clip, num_frames: int, num_id: int = 80, num_exp: int = 64) -> ClipFeatures:
    """Random arrays that keep the contract of a run: 2T rows of which the last is the one before it again."""
    rng = np.random.default_rng([num_frames, *clip.key.encode()])

    def rows(*width: int) -> np.ndarray:
        values = rng.normal(size=(2 * num_frames, *width)).astype(np.float32)
        values[-1] = values[-2]
        return values

    def frames(*width: int) -> np.ndarray:
        return rng.normal(size=(num_frames, *width)).astype(np.float32)

    arrays = {
        "mel": rows(80),
        "f0": np.abs(rows()),
        "hubert": rows(16).astype(np.float16),
        "lm68": rng.uniform(0, HEIGHT, (num_frames, 68, 2)).astype(np.float32),
        "id": rng.normal(size=num_id).astype(np.float32),
        "exp": frames(num_exp),
        "pose": frames(6),
        "idexp_lm3d": frames(68, 3),
        "valid": np.ones(num_frames, dtype=bool),
    }
    true_rows = {"mel": 2 * num_frames - 1, "hubert": 2 * num_frames - 1, "f0": 2 * num_frames - 4}
    meta = {"key": clip.key, "num_frames": num_frames, "num_rows": true_rows, "source": {"height": HEIGHT}}
    return ClipFeatures(clip, num_frames, arrays, meta)


def make_run(
    path: Path,
    num_speakers: int = 6,
    change: Callable[[ClipFeatures], ClipFeatures] = lambda sample: sample,
    num_shards: int = 3,
    model: FaceModel | None = None,
    **sizes: int,
) -> RunFolder:
    """Two clips of each speaker, the last clip of all too short for GeneFace, over three shards."""
    keys = [f"test/speaker{speaker:02d}/{clip:05d}" for speaker in range(num_speakers) for clip in (1, 2)]
    per_shard = -(-len(keys) // num_shards)
    groups = [keys[start : start + per_shard] for start in range(0, len(keys), per_shard)]
    shards = tuple(Shard(f"test-{n:06d}", tuple(make_clip(key) for key in group)) for n, group in enumerate(groups))
    models: dict[str, Any] = {"face_model": {"name": "small"}, "speech": {"model": "none"}}
    if model is not None:
        models["face_model"]["sha256"] = model.source_sha256
    record = {"config": {}, "plan_sha256": plan_sha256(shards), "models": models, "device_type": "cpu"}
    folder = RunFolder.create(path, record, shards)
    for shard in shards:
        lengths = [SHORT_FRAMES if clip.key == keys[-1] else 33 + index for index, clip in enumerate(shard.clips)]
        samples = [change(features(clip, length, **sizes)) for clip, length in zip(shard.clips, lengths, strict=True)]
        folder.publish(shard, samples, {}, {})
    return folder


def samples_of(folder: RunFolder) -> dict[str, dict[str, Any]]:
    return {sample["__key__"]: sample for shard in folder.shards for sample in read_shard(folder.tar_path(shard))}


def without(name: str) -> Callable[[ClipFeatures], ClipFeatures]:
    def change(sample: ClipFeatures) -> ClipFeatures:
        arrays = {field: array for field, array in sample.arrays.items() if field != name}
        return ClipFeatures(sample.clip, sample.num_frames, arrays, sample.meta)

    return change


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("export") / "lrs3"
    export_geneface(run, dest, ExportOptions(val_fraction=0.2))
    return dest


# What is written.


def test_every_long_enough_clip_is_in_one_set_with_its_true_rows(run: RunFolder, exported: Path) -> None:
    items = {name: geneface_reader.read_set(exported, name) for name in ("train", "val")}
    found = {item["item_id"]: item for part in items.values() for item in part}
    samples = {key.split("/", 1)[1].replace("/", "_"): sample for key, sample in samples_of(run).items()}
    assert len(found) == sum(map(len, items.values())) == len(samples) - 1
    assert all(items.values())
    for item_id, item in found.items():
        sample, num_frames = samples[item_id], samples[item_id]["json"]["num_frames"]
        assert list(item) == (
            ["item_id", "spk_id", "spk_idx", "mel", "f0", "hubert", "coeff", "lm68", "lm5", "idexp_lm3d"]
        )
        for name in ("mel", "f0", "hubert"):
            np.testing.assert_array_equal(item[name], sample[name][: 2 * num_frames - 1])
        for name in ("lm68", "idexp_lm3d"):
            np.testing.assert_array_equal(item[name], sample[name])
        assert {item[name].dtype for name in item if name[:2] not in ("it", "sp")} == {np.dtype(np.float32)}


def test_what_lies_beside_the_sets(exported: Path) -> None:
    speakers = geneface_reader.read_speakers(exported)
    assert speakers == {f"speaker{number:02d}": number for number in range(6)}
    for name in ("train", "val"):
        items = geneface_reader.read_set(exported, name)
        assert geneface_reader.read_sizes(exported, name) == [len(item["mel"]) for item in items]
        assert [item["spk_idx"] for item in items] == [speakers[item["spk_id"]] for item in items]
    record = json.loads((exported / "export.json").read_text())
    assert record["report"]["dropped"] == {TOO_SHORT: 1}
    assert sorted(path.name for path in exported.iterdir()) == (
        ["export.json", "sizes_train.npy", "sizes_val.npy", "spk_id2spk_idx.npy", "train.data", "val.data"]
    )


def test_items_fit_into_the_padded_batches_of_geneface(exported: Path) -> None:
    items = geneface_reader.read_set(exported, "train")
    batch = geneface_reader.collate(items)
    assert batch["hubert"].shape[1] == 2 * batch["idexp_lm3d"].shape[1]
    assert batch["idexp_lm3d"].shape[2] == 204
    for item in items:
        assert len(item["hubert"]) <= geneface_reader.ceil8(len(item["mel"]))
        assert len(item["idexp_lm3d"]) <= geneface_reader.ceil8(len(item["mel"])) / 2


def test_the_pickles_name_modules_that_numpy_1_has_and_depend_on_nothing_else(
    run: RunFolder, exported: Path, tmp_path: Path
) -> None:
    export_geneface(run, tmp_path, ExportOptions(val_fraction=0.2))
    for name in ("train.data", "val.data", "spk_id2spk_idx.npy", "sizes_train.npy"):
        data = (exported / name).read_bytes()
        assert data == (tmp_path / name).read_bytes()
        assert b"numpy._core" not in data
        assert (b"numpy.core.multiarray" in data) == (name != "sizes_train.npy")


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f8", "<i8", "|u1", "|b1"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_the_writer_agrees_with_pickle(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asfortranarray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    value = {"a": array, "deep": {"ü": [None, True, -1, 255, 256, 1 << 31, -(1 << 40), 1 << 70]}, "same": [array]}
    data = b"".join(pickle_pieces(value))
    for back in (pickle.loads(data), loads(data)):
        assert back["deep"] == value["deep"]
        for found in (back["a"], back["same"][0]):
            assert (found.shape, found.dtype) == (array.shape, array.dtype.newbyteorder("<"))
            np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="cannot write a set"):
        b"".join(pickle_pieces({1, 2}))


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    peaks = []
    for num_speakers in (4, 32):
        folder = make_run(tmp_path / str(num_speakers), num_speakers, num_shards=2)
        tracemalloc.start()
        export_geneface(folder, tmp_path / f"set{num_speakers}", ExportOptions())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000  # 60 items take 6 MB


# Which clips go where.


def test_validation_holds_out_whole_speakers(exported: Path) -> None:
    speakers = [{item["spk_id"] for item in geneface_reader.read_set(exported, name)} for name in ("train", "val")]
    assert not speakers[0] & speakers[1]


def test_a_speakers_place_depends_on_the_name_alone() -> None:
    names = {f"speaker{number}" for number in range(2000)}
    held_out = held_out_speakers(names, 0.1)
    assert 150 < len(held_out) < 250
    some = set(sorted(names)[::3])
    assert held_out_speakers(some, 0.1) == held_out & some
    assert len(held_out_speakers({"a", "b"}, 0.01)) == 1
    assert len(held_out_speakers({"a", "b"}, 0.99)) == 1
    assert held_out_speakers({"a"}, 0.5) == set()


def test_every_hundredth_clip_of_the_sorted_list(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_speakers=51)
    export_geneface(folder, tmp_path / "set", ExportOptions(validation="every100"))
    items = geneface_reader.read_set(tmp_path / "set", "val")
    assert [item["item_id"] for item in items] == ["speaker00_00001", "speaker50_00001"]


def test_a_clip_whose_lengths_geneface_refuses_is_left_out() -> None:
    sample = {"__key__": "a/b/c", "json": {"num_rows": {"mel": 66}}, **features(make_clip(), 40).arrays}
    with pytest.raises(NotExportedError, match=MISFIT):
        ItemMaker(ItemOptions())(sample, 0)


# GeneFace's quirks.


@pytest.mark.parametrize("flip", [True, False])
def test_lm5(flip: bool) -> None:
    sample = {"__key__": "a/b/c", "json": {"source": {"height": HEIGHT}}, **features(make_clip(), 33).arrays}
    lm5 = ItemMaker(ItemOptions(flip_lm5=flip))(sample, 0)["lm5"]
    lm68 = sample["lm68"]
    groups = [(36, 39), (42, 45), (30,), (48,), (54,)]
    want = np.stack([np.mean([lm68[:, index] for index in group], axis=0) for group in groups], axis=1)
    if flip:
        want[..., 1] = HEIGHT - 1 - want[..., 1]
    np.testing.assert_allclose(lm5, want, atol=1e-4)


def test_flipping_needs_the_height() -> None:
    sample = {"__key__": "a/b/c", "json": {}, **features(make_clip(), 33).arrays}
    with pytest.raises(RunError, match="no-flip-lm5"):
        ItemMaker(ItemOptions())(sample, 0)


def test_keypoints_one_vertex_further_on(tmp_path: Path) -> None:
    base = small_model()
    # The small model's landmarks are all of its vertices: the last one must have a vertex after it.
    model = replace(base, landmark_verts=base.landmark_verts.clamp(max=base.num_vertices - 2))
    sizes = {"num_id": model.num_id, "num_exp": model.num_exp}
    folder = make_run(tmp_path / "run", model=model, **sizes)
    options = ExportOptions(items=ItemOptions(keypoint_off_by_one=True))
    export_geneface(folder, tmp_path / "set", options, model)
    samples = samples_of(folder)
    for item in geneface_reader.read_set(tmp_path / "set", "train")[:3]:
        sample = samples["test/" + item["item_id"].replace("_", "/")]
        identity, expression = torch.from_numpy(sample["id"]), torch.from_numpy(sample["exp"])
        moved = model.vertices(identity, expression) - model.mean
        want = 10 * moved[:, model.landmark_verts + 1]
        np.testing.assert_allclose(item["idexp_lm3d"], want.numpy(), atol=1e-4)
        assert np.abs(want.numpy() - 10 * moved[:, model.landmark_verts].numpy()).max() > 0.01


def test_keypoints_need_the_model_of_the_run(tmp_path: Path) -> None:
    model = small_model()
    folder = make_run(tmp_path / "run", model=model)
    options = ExportOptions(items=ItemOptions(keypoint_off_by_one=True))
    with pytest.raises(ValueError, match="face model"):
        export_geneface(folder, tmp_path / "set", options)
    other = replace(model, source_sha256="1" * 64)
    with pytest.raises(RunError, match="not the one"):
        export_geneface(folder, tmp_path / "set", options, other)
    last = torch.where(model.landmark_verts == model.landmark_verts[0], model.num_vertices - 1, model.landmark_verts)
    with pytest.raises(RunError, match="last vertex"):
        ItemMaker(options.items, replace(model, landmark_verts=last))


def test_coeff_of_a_model_of_bfms_shape(run: RunFolder, exported: Path) -> None:
    samples = samples_of(run)
    for item in geneface_reader.read_set(exported, "train"):
        sample = samples["test/" + item["item_id"].replace("_", "/")]
        coeff = item["coeff"]
        np.testing.assert_array_equal(coeff[:, :80], np.tile(sample["id"], (len(coeff), 1)))
        np.testing.assert_array_equal(coeff[:, 80:144], sample["exp"])
        np.testing.assert_array_equal(coeff[:, 224:227], sample["pose"][:, :3])
        np.testing.assert_array_equal(coeff[:, 254:], sample["pose"][:, 3:])
        assert not coeff[:, 144:224].any()
        assert not coeff[:, 227:254].any()


def test_coeff_of_another_model_is_cut_filled_and_said_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_id=100, num_exp=53)
    report = export_geneface(folder, tmp_path / "set", ExportOptions())
    assert any("not BFM's" in note and "100 identity and 53 expression" in note for note in report.notes)
    item = geneface_reader.read_set(tmp_path / "set", "train")[0]
    sample = samples_of(folder)["test/" + item["item_id"].replace("_", "/")]
    np.testing.assert_array_equal(item["coeff"][0, :80], sample["id"][:80])
    np.testing.assert_array_equal(item["coeff"][:, 80:133], sample["exp"])
    assert not item["coeff"][:, 133:224].any()


def with_coeff(sample: ClipFeatures) -> ClipFeatures:
    coeff = np.random.default_rng(1).normal(size=(sample.num_frames, 257)).astype(np.float32)
    return ClipFeatures(sample.clip, sample.num_frames, {**sample.arrays, "coeff": coeff}, sample.meta)


# When things go wrong.


def test_an_unfinished_run_is_exported_only_on_request(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder.path / ledger_name(folder.shards[1].name)).unlink()
    with pytest.raises(RunError, match=r"1 of 3 shards .* still to be extracted"):
        export_geneface(folder, tmp_path / "set", ExportOptions())
    report = export_geneface(folder, tmp_path / "set", ExportOptions(partial=True))
    assert report.num_train + report.num_val == 7


def test_a_set_is_replaced_only_on_request(run: RunFolder, tmp_path: Path) -> None:
    export_geneface(run, tmp_path, ExportOptions())
    with pytest.raises(RunError, match="--overwrite"):
        export_geneface(run, tmp_path, ExportOptions())
    export_geneface(run, tmp_path, ExportOptions(overwrite=True))


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", change=without("f0"))
    with pytest.raises(RunError, match=r"speaker00/00001 has no f0"):
        export_geneface(folder, tmp_path / "set", ExportOptions())
    assert list((tmp_path / "set").iterdir()) == []


def test_unknown_splits_and_fractions_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no split trainval"):
        export_geneface(run, tmp_path, ExportOptions(splits=("trainval",)))
    with pytest.raises(ValueError, match="val_fraction"):
        ExportOptions(val_fraction=0)


# And back.


def test_round_trip(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", change=with_coeff)
    export_geneface(folder, tmp_path / "set", ExportOptions())
    back = import_geneface(tmp_path / "set", tmp_path / "back", ImportOptions())
    assert [problems for _, problems in back.check() if problems] == []
    samples, imported = samples_of(folder), samples_of(back)
    assert len(imported) == len(samples) - 1
    for key, found in imported.items():
        want = samples["test/" + key.split("/", 1)[1]]
        for name in ("mel", "f0", "hubert", "coeff", "lm68", "idexp_lm3d", "valid"):
            assert found[name].dtype == want[name].dtype
            np.testing.assert_array_equal(found[name], want[name])
        np.testing.assert_array_equal(found["exp"], want["coeff"][:, 80:144])
        np.testing.assert_array_equal(found["pose"], np.hstack([want["coeff"][:, 224:227], want["coeff"][:, 254:]]))
        np.testing.assert_allclose(found["id"], want["coeff"][:, :80].mean(axis=0), atol=1e-6)
        assert found["json"]["num_rows"]["mel"] == 2 * want["json"]["num_frames"] - 1
        assert found["json"]["source"]["height"] == HEIGHT
    again = export_geneface(back, tmp_path / "again", ExportOptions(validation="every100"))
    assert again.num_train + again.num_val == len(imported)


def test_what_was_no_bfm_does_not_come_back_as_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_id=40, num_exp=53)
    export_geneface(folder, tmp_path / "set", ExportOptions())
    samples = samples_of(folder)
    for key, found in samples_of(import_geneface(tmp_path / "set", tmp_path / "back", ImportOptions())).items():
        want = samples["test/" + key.split("/", 1)[1]]
        assert "coeff" not in found
        for name in ("id", "exp", "pose"):
            np.testing.assert_array_equal(found[name], want[name])


def test_an_import_is_resumed_and_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    folder = import_geneface(exported, tmp_path, ImportOptions())
    shard = folder.shards[0]
    before = folder.tar_path(shard).read_bytes()
    folder.tar_path(shard).unlink()
    import_geneface(exported, tmp_path, ImportOptions())
    assert folder.tar_path(shard).read_bytes() == before
    with pytest.raises(RunError, match="hubert_store"):
        import_geneface(exported, tmp_path, ImportOptions(hubert_store="float32"))


def write_gzipped(folder: Path, items: list[bytes]) -> None:
    write_set(folder, [gzip.compress(item, 1) for item in items], {"chunk_begin": [0], "gzip": True})


def write_chunked(folder: Path, items: list[bytes]) -> None:
    """As GeneFace's builder does past 64 GiB: the rest in train.1.data."""
    begin = INDEX_BYTES + len(items[0])
    write_set(folder, items, {"chunk_begin": [0, begin], "gzip": False})
    os.truncate(folder / "train.data", begin)
    (folder / "train.1.data").write_bytes(b"".join(items[1:]))


def write_plain_offsets(folder: Path, items: list[bytes]) -> None:
    write_old_set(folder, items)
    with open(folder / "train.idx", "wb") as file:
        np.save(file, np.cumsum([0, *map(len, items)]))


@pytest.mark.parametrize("write", [write_set, write_old_set, write_gzipped, write_chunked, write_plain_offsets])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_sets_of_others(write: Callable[..., None], protocol: int, tmp_path: Path) -> None:
    items = [stranger(number, 40 + number) for number in range(3)]
    write(tmp_path / "set", [pickle.dumps(item, protocol) for item in items])
    folder = import_geneface(tmp_path / "set", tmp_path / "run", ImportOptions(hubert_store="float32"))
    found = samples_of(folder)
    assert list(found) == [f"train/a_b_c/{number:05d}" for number in range(3)]
    for item, sample in zip(items, found.values(), strict=True):
        num_frames = len(item["idexp_lm3d"])
        np.testing.assert_array_equal(sample["mel"], item["mel"][: 2 * num_frames])
        np.testing.assert_array_equal(sample["f0"], item["f0"][: 2 * num_frames, 0].astype(np.float32))
        np.testing.assert_array_equal(sample["hubert"][:-2], item["hubert"])
        np.testing.assert_array_equal(sample["hubert"][-2:], item["hubert"][[-1, -1]])
        assert sample["json"]["num_rows"] == {"mel": 2 * num_frames, "f0": 2 * num_frames, "hubert": 2 * num_frames - 2}
        assert "height" not in sample["json"]["source"]
        assert sample["valid"].all()


def test_items_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    same = {"item_id": "a_1", "spk_id": "a"}
    write_set(tmp_path / "set", [pickle.dumps(stranger(n, **same)) for n in range(3)])
    folder = import_geneface(tmp_path / "set", tmp_path / "run", ImportOptions())
    assert list(samples_of(folder)) == ["train/a/1", "train/a/1~2", "train/a/1~3"]


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"mel": None}, "unreadable", "no mel"),
        ({"mel": np.zeros((80, 40), np.float32)}, "unreadable", "shape"),
        ({"mel": np.full((80, 80), np.nan, np.float32)}, "unreadable", "not finite"),
        ({"hubert": np.full((80, 4), 1e6, np.float32)}, "unreadable", "--hubert-store float32"),
        ({"hubert": np.zeros((40, 4), np.float32)}, "length_mismatch", "hubert has 40 rows for 40 frames"),
        ({"coeff": np.zeros((39, 257), np.float32)}, "length_mismatch", "coeff has 39 rows"),
        ({"idexp_lm3d": np.zeros((3, 68, 3), np.float32)}, "too_short", "3 frames"),
        ({"idexp_lm3d": "none"}, "unreadable", "no array idexp_lm3d"),
    ],
)
def test_an_item_that_does_not_fit_costs_itself(
    changes: dict[str, Any], reason: str, text: str, tmp_path: Path
) -> None:
    write_set(tmp_path / "set", [pickle.dumps(stranger(0)), pickle.dumps(stranger(1, **changes))])
    totals = import_geneface(tmp_path / "set", tmp_path / "run", ImportOptions()).totals()
    assert totals.num_samples == 1
    [(key, found, message)] = totals.rejects
    assert (key, found) == ("train/a_b_c/00001", reason)
    assert text in message


# Strangers.


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


def test_a_pickle_that_would_run_something_is_refused_by_name(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [pickle.dumps(stranger()), pickle.dumps(stranger(1, mel=Evil()))])
    with pytest.raises(RunError, match=r"train\.data, item 1: refused: posix\.system"):
        import_geneface(tmp_path / "set", tmp_path / "run", ImportOptions())
    assert not (tmp_path / "run").exists()
    write_set(tmp_path / "other", [], evil=Evil())
    with pytest.raises(RunError, match=r"posix\.system"):
        import_geneface(tmp_path / "other", tmp_path / "run", ImportOptions())
    write_old_set(tmp_path / "old", [pickle.dumps(stranger())])
    with open(tmp_path / "old" / "train.idx", "wb") as file:
        np.save(file, {"offsets": Evil()})  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"posix\.system"):
        import_geneface(tmp_path / "old", tmp_path / "run", ImportOptions())


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00%s\x89\x88\x87R"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x80\x04N" + b"r" + struct.pack("<I", 0xFFFFFFFF) + b".", None),  # the memo to 64 GiB
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "not a whole pickle"),  # a terabyte of bytes
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".", "not a whole pickle"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.", None),  # a frame of any size
        (b"\x80\x04" + ARRAY + b"(K\x01\x8a\x06\0\0\0\0\0\x01\x85" + DTYPE % b"f4" + b"\x89C\x00tb.", "as many bytes"),
        (b"\x80\x04" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE % b"f4" + b"\x89C\x04abcdtb.", "shape"),
        (b"\x80\x04" + ARRAY + b"(K\x01K\x01\x85" + DTYPE % b"O8" + b"\x89C\x08abcdefghtb.", "object array"),
        (b"\x80\x04" + DTYPE % b"V9" + b".", "dtype 'V9'"),
        (b"\x80\x04" + DTYPE % b"O8" + b"(K\x03X\x01\x00\x00\x00|}NNtb.", "with fields"),
        (b"\x80\x04cnumpy\nndarray\nK\x01\x85R.", "direct call"),
        (b"\x80\x04cnumpy\nload\nK\x01\x85R.", r"refused: numpy\.load"),
        (b"\x80\x04c__builtin__\neval\n.", r"refused: builtins\.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", r"refused: builtins\.getattr"),
        (b"\x80\x04}]b.", "refused: state for a dict"),
        (b"\x80\x04(](K\x01u.", "no dict where one is needed"),
        (b"\x80\x04})N.", None),
        (b"\x80\x04}\x8a\x09\0\0\0\0\0\0\0\0\x01Ns.", "int as a key"),
        (b"\x80\x04}]Ns.", "list as a key"),
        (b"\x80\x04Pabc\n.", "opcode PERSID"),
        (b"\x80\x04\x82\x01.", "opcode EXT1"),
        (
            b"\x80\x04)" + b"q\x00h\x00\x86" * 60 + b"cnumpy\ndtype\nq\x01h\x00\x85R.",
            "refused: numpy dtype",
        ),  # 2^60 ends
        (b"\x80\x04" + ARRAY + b"(K\x01)" + b"q\x00h\x00\x86" * 60 + DTYPE % b"f4" + b"\x89C\x00tb.", "shape"),
        (b"\x80\x04.", "not a whole pickle"),
        (b"\x80\x04K\x01", "not a whole pickle"),
        (b"", "not a whole pickle"),
        (b"\x80\x04" + b"]" * 200_000 + b".", "opcodes"),
    ],
)
def test_hostile_pickles_end_at_once(data: bytes, text: str | None) -> None:
    tracemalloc.start()
    if text is None:
        loads(data)
    else:
        with pytest.raises(UnpickleError, match=text):
            loads(data)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_arrays_and_plain_containers_are_admitted() -> None:
    shared = np.arange(6, dtype=">i2").reshape(2, 3)
    value = {
        "twice": [shared, shared],
        "fortran": np.asfortranarray(shared),
        "texts": np.array(["a", "łódź"]),
        "scalar": np.float32(1.5),
        "plain": (1, -2, 3.5, None, True, "x", b"y", {"z"}, frozenset({1})),
        "holds": np.array({"a": [1]}, dtype=object),
    }
    for protocol in (3, 4, 5):
        back = loads(pickle.dumps(value, protocol))
        for found in (*back["twice"], back["fortran"]):
            np.testing.assert_array_equal(found, shared)
        assert (back["texts"].tolist(), back["scalar"], back["plain"]) == (["a", "łódź"], 1.5, value["plain"])
        assert back["holds"].item() == {"a": [1]}


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"offsets": [INDEX_BYTES, 1 << 60]}, "ends past"),
        ({"offsets": [-5, 10]}, "offsets"),
        ({"offsets": [INDEX_BYTES + 10, INDEX_BYTES]}, "offsets"),
        ({"offsets": [0.5, 1]}, "offsets"),
        ({"offsets": []}, "offsets"),
        ({"offsets": {"a": 1}}, "offsets"),
        ({"meta": {"chunk_begin": [5]}}, "chunk_begin"),
        ({"meta": {"chunk_begin": list(range(5000))}}, "chunk_begin"),
        ({"meta": {"chunk_begin": [0, 10]}}, r"train\.1\.data is missing"),
        ({"offsets": [0, 40]}, "not a pickle"),
        ({"offsets": [INDEX_BYTES, INDEX_BYTES]}, "item of 0 bytes"),
    ],
)
def test_hostile_indices(index: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_set(tmp_path / "set", [pickle.dumps(stranger())], **index)
    with pytest.raises(RunError, match=text):
        import_geneface(tmp_path / "set", tmp_path / "run", ImportOptions())


@pytest.mark.parametrize("head", [b"", b"\xff" * 64, bytes(64), (1 << 40).to_bytes(32, "little") + bytes(64)])
def test_hostile_heads(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "train.data").write_bytes(head)
    with pytest.raises(RunError, match="does not begin with an index"):
        IndexedReader(tmp_path / "train")


def test_a_huge_sparse_item_is_not_read(tmp_path: Path) -> None:
    write_set(tmp_path, [], offsets=[INDEX_BYTES, INDEX_BYTES + (1 << 40), INDEX_BYTES + (1 << 40) + 100])
    os.truncate(tmp_path / "train.data", INDEX_BYTES + (1 << 41))
    with IndexedReader(tmp_path / "train") as reader:
        with pytest.raises(RunError, match="an item of 1099511627776 bytes"):
            reader.item(0)
        with pytest.raises(RunError, match="not a pickle"):
            reader.item(1)


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    write_gzipped(tmp_path, [pickle.dumps(bytes(20 << 20))])
    with IndexedReader(tmp_path / "train") as reader, pytest.raises(RunError, match="unpacks to over"):
        reader.item(0)


def test_no_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"neither train\.data nor val\.data"):
        import_geneface(tmp_path, tmp_path / "run", ImportOptions())


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "x.data", "wb") as file:
        writer = IndexedWriter(file)
        writer._offsets = [1 << 40] * 2_200_000
        with pytest.raises(RunError, match="does not fit"):
            writer.finish()
