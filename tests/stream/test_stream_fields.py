"""What a run does not hold is said when a stream is opened; help states what a batch holds."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.stream import Audio2Motion, Avsr, PostNet, Raw, SyncNet, Wav2Lip
from lrs3_loader.types import FIELDS
from support.run_factory import begin_run, make_run, publish

LENGTHS = [[12, 30], [9, 40]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", LENGTHS)


def test_a_field_that_the_run_does_not_hold_is_named_with_its_flag(run: RunFolder) -> None:
    with pytest.raises(
        RunError, match=r"does not hold lm478 in all samples of pretrain-000000.*--store-lm478"
    ) as error:
        ShardStream(run.path, Raw(fields=("hubert", "lm478")))
    assert str(run.path) in str(error.value)
    assert "blendshapes, exp" in str(error.value)
    with pytest.raises(RunError, match="--deep3d FILE"):
        ShardStream(run.path, Audio2Motion(fields=("coeff", "hubert")), batch_size=2)
    with pytest.raises(RunError, match=r"does not hold colour .*choose another task or run"):
        ShardStream(run.path, Raw(fields=("colour",)))
    assert len(list(ShardStream(run.path, Raw(fields=("speaking",))))) == 4


def test_a_followed_run_and_one_tar_and_a_person_are_checked_as_well(run: RunFolder, tmp_path: Path) -> None:
    task = Raw(fields=("lm478",))
    tar = next((run.path / "shards").iterdir())
    plain = tmp_path / "plain.tar"
    plain.write_bytes(tar.read_bytes())
    for place in (tar, plain):
        with pytest.raises(RunError, match="--store-lm478"):
            ShardStream(place, task)
    begun = begin_run(tmp_path / "begun", LENGTHS)
    publish(begun, 0, LENGTHS[0])
    with pytest.raises(RunError, match="--store-lm478"):
        ShardStream(begun.path, task, follow=True, poll_seconds=0.01)
    poor = tmp_path / "poor.tar"
    with tarfile.open(plain) as full, tarfile.open(poor, "w") as copy:
        for member in full:
            if not member.name.endswith(".pose.npy"):
                copy.addfile(member, full.extractfile(member))
    with pytest.raises(RunError, match=r"poor\.tar does not hold pose"):
        ShardStream(run.path, "postnet", batch_size=2, person=poor)


def test_ledgers_without_checksums_do_not_tell(run: RunFolder) -> None:
    for path in (run.path / "ledger").iterdir():
        ledger = json.loads(path.read_text())
        del ledger["checksums"]
        path.write_text(json.dumps(ledger))
    assert len(list(ShardStream(run.path, Raw(fields=("hubert",))))) == 4


def test_help_states_names_shapes_and_units_of_every_task() -> None:
    text = ShardStream.__doc__ or ""
    for task in (Audio2Motion, SyncNet, PostNet, Raw, Wav2Lip, Avsr):
        assert (task.__doc__ or "?").splitlines()[0] in text
    for row in ("``idexp_lm3d``  [B, T, 204] f32", "``mouth``     [P, 5, 60] f32", "``pose`` is [B, T, 7] f32"):
        assert row in text
    for name, spec in FIELDS.items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert spec.unit in line
        assert spec.flag in line
