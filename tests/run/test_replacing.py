"""A shard that is published again: the old one stays valid until the new one is, and readers go on."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from torch.utils.data import DataLoader

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.io import storage
from lrs3_loader.run import shards
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import LEDGER_FOLDER, TAR_FOLDER, Ledger, ledger_name
from lrs3_loader.stream import Raw
from support.run_factory import begin_run, make_run, publish
from support.s3_server import Bucket, make_bucket, s3_service

pytestmark = pytest.mark.smoke

LENGTHS = [[12, 30, 0, 21], [9, 9], [25, 6, 33]]
RETRIED = [12, 30, 15, 21]  # the first shard, after its reject could be extracted
TAR, NEXT = "pretrain-000000.tar", "pretrain-000000.g1.tar"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_service() as proxy:
        yield make_bucket(proxy)


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket').url}/run{next(NUMBERS)}"


@pytest.fixture
def run(root: str) -> RunFolder:
    return make_run(root, LENGTHS)


def first_tars(run: RunFolder) -> list[str]:
    return sorted(name for name in run.store.listing(TAR_FOLDER) if name.startswith("pretrain-000000"))


def keys_in(stream: ShardStream) -> list[str]:
    return [sample["__key__"] for sample in stream]


class DiskFullError(Exception):
    """Ends a writer at a chosen step."""


def test_another_generation_has_another_name(run: RunFolder) -> None:
    assert first_tars(run) == [TAR]
    publish(run, 0, RETRIED)
    assert first_tars(run) == [NEXT]
    publish(run, 0, LENGTHS[0])
    assert first_tars(run) == ["pretrain-000000.g2.tar"]
    assert run.ledger(run.shards[0]).generation == 2
    assert run.pending() == []
    assert all(problems == [] for _, problems in run.check())
    assert RunFolder.open(run.path).totals().num_samples == 8


@pytest.mark.parametrize("step", ["tar", "ledger", "delete"])
def test_interrupted_at_any_step_a_shard_stays_valid(
    run: RunFolder, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.store.read(f"{TAR_FOLDER}/{TAR}")
    kind = type(run.store)
    with monkeypatch.context() as patch:
        if step == "delete":
            patch.setattr(kind, "delete", fail)
        elif kind is storage.LocalStore:
            patch.setattr(os, "replace", failing(os.replace, LEDGER_FOLDER if step == "ledger" else TAR_FOLDER))
        else:
            patch.setattr(kind, "write", failing_upload(kind.write, LEDGER_FOLDER if step == "ledger" else TAR_FOLDER))
        with pytest.raises((DiskFullError, RunError)):
            publish(run, 0, RETRIED)
    again = RunFolder.open(run.path)
    assert again.pending() == []
    assert all(problems == [] for _, problems in again.check())
    assert len(keys_in(ShardStream(run.path, "raw"))) == (9 if step == "delete" else 8)
    if step != "delete":
        assert run.store.read(f"{TAR_FOLDER}/{TAR}") == before
    again.clear_scratch()
    assert first_tars(run) == [NEXT if step == "delete" else TAR]
    publish(again, 0, RETRIED)
    assert first_tars(run) == [NEXT]
    assert again.totals().num_samples == 9
    assert all(problems == [] for _, problems in again.check())


def fail(*_: object) -> None:
    raise DiskFullError


def failing(replace: Callable[[str, str], None], folder: str) -> Callable[[str, str], None]:
    def refuse(source: str, target: str) -> None:
        if Path(target).parent.name == folder:
            raise DiskFullError
        replace(source, target)

    return refuse


def failing_upload(write: Callable[..., AbstractContextManager[IO[bytes]]], folder: str) -> Callable[..., Any]:
    @contextmanager
    def refuse(store: storage.RemoteStore, name: str) -> Iterator[IO[bytes]]:
        with write(store, name) as file:
            yield file
            if name.startswith(folder):
                raise DiskFullError

    return refuse


@pytest.mark.slow
def test_a_stream_of_many_epochs_goes_on_while_shards_are_replaced(run: RunFolder) -> None:
    stream = ShardStream(run.path, "raw", shuffle_buffer=3)
    before = sorted(keys_in(stream))
    assert len(before) == 8
    num_epochs = 50 if isinstance(run.path, Path) else 20
    for epoch in range(num_epochs):
        stream.set_epoch(epoch)
        batches = iter(stream)
        seen = [next(batches)["__key__"]]
        if epoch % 10 == 3:
            publish(run, 0, RETRIED if epoch % 20 == 3 else [12, 30, 16, 21])
        seen += [batch["__key__"] for batch in batches]
        assert sorted(seen) == before, epoch
    assert run.ledger(run.shards[0]).generation == num_epochs // 10
    assert stream.errors() == {}
    assert len(keys_in(ShardStream(run.path, "raw"))) == 9


def test_workers_that_began_earlier_find_the_new_tar(run: RunFolder) -> None:
    stream = ShardStream(run.path, "raw")
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    before = sorted(batch["__key__"] for batch in loader)
    publish(run, 0, RETRIED)
    publish(run, 2, [25, 6, 34])  # a clip whose length is another
    stream.set_epoch(1)
    assert sorted(batch["__key__"] for batch in loader) == before


def test_a_run_that_is_followed_may_be_replaced(run: RunFolder) -> None:
    stream = ShardStream(run.path, "raw", follow=True, poll_seconds=0.05)
    batches = iter(stream)
    next(batches)
    publish(run, 0, RETRIED)
    publish(run, 1, [9, 10])
    assert sum(1 for _ in batches) == 7


def test_a_sample_that_was_replaced_by_a_reject_is_named(run: RunFolder) -> None:
    streams = [ShardStream(run.path, "raw", shuffle=False, on_error=policy) for policy in ("raise", "skip")]
    publish(run, 0, [12, 0, 15, 21])
    with pytest.raises(RunError, match=r"(was replaced|not in it); open the stream again, or skip it"):
        keys_in(streams[0])
    assert len(keys_in(streams[1])) == 7
    assert streams[1].errors() == {"pretrain-000000": "1 samples lost"}


def test_single_tars_follow_as_well(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    stream = ShardStream(run.path / TAR_FOLDER / TAR, "raw")
    assert len(keys_in(stream)) == 3
    publish(run, 0, RETRIED)
    assert len(keys_in(stream)) == 3
    assert len(keys_in(ShardStream(run.path / TAR_FOLDER / NEXT, "raw"))) == 4


def test_removals_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    synced: list[tuple[str, list[str]]] = []
    real = storage.sync_folder

    def note(folder: Path) -> None:
        synced.append((folder.name, sorted(os.listdir(folder))))
        real(folder)

    monkeypatch.setattr(storage, "sync_folder", note)
    publish(run, 0, RETRIED)
    assert synced[-1][0] == TAR_FOLDER
    assert TAR not in synced[-1][1]


# Damage that leaves the size as it is ---------------------------------------------------------------------------------


def harm_bit(run: RunFolder) -> None:
    name = f"{TAR_FOLDER}/{TAR}"
    data = bytearray(run.store.read(name))
    data[data.index(b"NUMPY", data.index(b".mel.npy")) + 300] ^= 64
    overwrite(run, name, bytes(data))


def harm_all(run: RunFolder) -> None:
    overwrite(run, f"{TAR_FOLDER}/{TAR}", bytes(run.store.size(f"{TAR_FOLDER}/{TAR}")))


def harm_ledger(run: RunFolder) -> None:
    overwrite(run, ledger_name("pretrain-000000"), b"{")


def overwrite(run: RunFolder, name: str, data: bytes) -> None:
    with run.store.write(name) as file:
        file.write(data)


@pytest.mark.parametrize("harm", [harm_bit, harm_all])
def test_damage_reaches_no_batch(run: RunFolder, harm: Callable[[RunFolder], None]) -> None:
    harm(run)
    with pytest.raises(RunError, match=r"pretrain-000000\.tar.*run the extraction again with --repair"):
        keys_in(ShardStream(run.path, "raw", shuffle=False))
    stream = ShardStream(run.path, "raw", shuffle=False, on_error="skip")
    num_lost = 1 if harm is harm_bit else 3
    assert len(keys_in(stream)) == 8 - num_lost
    assert stream.errors() == {"pretrain-000000": f"{num_lost} samples lost"}
    with pytest.raises(RunError, match=r"pretrain-000000\.tar"):
        list(run.samples(run.shards[0]))
    followed = ShardStream(run.path, "raw", follow=True, on_error="skip")
    assert len(keys_in(followed)) == 8 - num_lost


def test_a_sample_that_its_ledger_does_not_name(run: RunFolder) -> None:
    stream = ShardStream(run.path, "raw", on_error="skip")
    plain = json.loads(run.store.read(ledger_name("pretrain-000001")))
    plain |= {"samples": [["pretrain/other/1", 9], ["pretrain/other/2", 9]]}
    overwrite(run, ledger_name("pretrain-000001"), json.dumps(plain).encode())
    assert len(keys_in(stream)) == 6
    assert stream.errors() == {"pretrain-000001": "2 samples lost"}


def test_a_field_that_is_not_read_is_not_checked(run: RunFolder) -> None:
    harm_bit(run)
    assert len(keys_in(ShardStream(run.path, Raw(fields=("hubert",))))) == 8


@pytest.mark.parametrize("harm", [harm_bit, harm_all, harm_ledger])
def test_damaged_shards_are_unpublished_and_made_again(run: RunFolder, harm: Callable[[RunFolder], None]) -> None:
    before = {name: run.store.read(f"{TAR_FOLDER}/{name}") for name in run.store.listing(TAR_FOLDER)}
    harm(run)
    again = RunFolder.open(run.path)
    assert again.unpublish_damaged() == [0]
    again.clear_scratch()
    assert again.pending() == [0]
    publish(again, 0, LENGTHS[0])
    assert {name: run.store.read(f"{TAR_FOLDER}/{name}") for name in run.store.listing(TAR_FOLDER)} == before
    assert again.unpublish_damaged() == []


def test_shards_not_made_yet_are_no_damage(tmp_path: Path) -> None:
    assert begin_run(tmp_path / "run", LENGTHS).unpublish_damaged() == []


def test_ledgers_of_older_versions_have_no_checksums(run: RunFolder) -> None:
    for shard in run.shards:
        plain = json.loads(run.store.read(ledger_name(shard.name)))
        del plain["checksums"], plain["generation"]
        overwrite(run, ledger_name(shard.name), json.dumps(plain).encode())
    again = RunFolder.open(run.path)
    assert again.pending() == []
    assert all(problems == [] for _, problems in again.check())
    assert len(keys_in(ShardStream(run.path, "raw"))) == 8
    publish(again, 0, RETRIED)
    assert first_tars(run) == [NEXT]


def test_a_ledger_whose_checksums_do_not_fit_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    plain = json.loads(run.store.read(ledger_name("pretrain-000000")))
    for wrong in ({"mel.npy": "1234"}, ["x"], {"json": 5}):
        data = json.dumps(plain | {"checksums": wrong}).encode()
        with pytest.raises(RunError, match="here is not a ledger"):
            Ledger.parse(data, "here")


def test_every_member_has_a_checksum(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    ledger = run.ledger(run.shards[0])
    with run.open_tar(run.shards[0]) as tar:
        for number, sample in enumerate(tar.samples):
            recorded = ledger.checksums_of(sample.key)
            assert recorded.keys() == sample.members.keys()
            for extension, span in sample.members.items():
                data = (run.path / TAR_FOLDER / TAR).read_bytes()[span[0] : sum(span)]
                assert shards.checksum(data) == recorded[extension]
            tar.read(number, None)


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_scratch_folder_that_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / ".thesis.tmp").write_text("irreplaceable")
    (run.path / "tmp").rmdir()
    (run.path / "tmp").symlink_to(mine)
    with pytest.raises(RunError, match=r"tmp is a symbolic link.*remove the link"):
        run.clear_scratch()
    assert (mine / ".thesis.tmp").exists()


def test_other_folders_that_lead_elsewhere_keep_what_is_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    for name in (TAR_FOLDER, LEDGER_FOLDER):
        (run.path / name).rename(tmp_path / name)
        (run.path / name).symlink_to(tmp_path / name)
        (tmp_path / name / "notes.txt").write_text("mine")
        (tmp_path / name / "mine-000000.g7.tar").write_text("of another run")
    run.clear_scratch()
    assert len(list((tmp_path / TAR_FOLDER).iterdir())) == len(LENGTHS) + 2
    assert len(list((tmp_path / LEDGER_FOLDER).iterdir())) == len(LENGTHS) + 2


@pytest.mark.parametrize("name", [TAR_FOLDER, LEDGER_FOLDER, "tmp"])
def test_a_missing_folder_is_made_again(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    (run.path / name).rename(tmp_path / "aside")
    again = RunFolder.open(run.path)
    again.clear_scratch()
    for index in again.pending():
        publish(again, index, LENGTHS[index])
    assert all(problems == [] for _, problems in again.check())
