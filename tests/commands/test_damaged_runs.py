"""What the commands say about a shard whose bytes changed and whose size did not: one line, and exit code 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrs3_loader.commands import bundle, export, preview, report, verify
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from support.run_factory import make_run, publish

pytestmark = pytest.mark.smoke

LENGTHS = [[12, 30], [40, 21]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with one flipped bit in a payload of its second shard."""
    run = make_run(tmp_path / "run", LENGTHS)
    harm(run, "lm68")
    return run


def harm(run: RunFolder, field: str) -> None:
    path = run.tar_path(run.shards[1])
    data = bytearray(path.read_bytes())
    data[data.index(b"NUMPY", data.index(f".{field}.npy".encode())) + 600] ^= 64
    path.write_bytes(data)


def test_verify_says_what_repairs_it(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = run.tar_path(run.shards[1]).read_bytes()
    assert verify.main([str(run.path)]) == 1
    assert "missing or damaged: 1 shard; run the extraction again with --repair" in capsys.readouterr().out
    assert run.pending() == []

    assert verify.main([str(run.path), "--repair"]) == 1
    assert "missing or damaged: 1 shard; run the extraction again to" in capsys.readouterr().out
    assert run.pending() == [1]
    assert not (run.path / "run.lock").exists()
    publish(run, 1, LENGTHS[1])
    assert run.tar_path(run.shards[1]).read_bytes() != before
    assert verify.main([str(run.path), "--repair"]) == 0
    assert run.pending() == []


def test_two_tars_of_one_size_that_changed_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", [[12, 30], [12, 30]])
    first, second = (run.tar_path(shard) for shard in run.shards)
    assert first.stat().st_size == second.stat().st_size
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(whole[1])
    second.write_bytes(whole[0])
    assert verify.main([str(run.path), "--repair"]) == 1
    assert run.pending() == [0, 1]
    for index in run.pending():
        publish(run, index, [12, 30])
    assert (first.read_bytes(), second.read_bytes()) == whole


@pytest.mark.parametrize("command", ["stats", "bundle", "preview"])
def test_a_command_that_reads_it_ends(run: RunFolder, tmp_path: Path, command: str) -> None:
    key = run.shards[1].clips[0].key
    calls = {
        "stats": lambda: export.main(["stats", str(run.path)]),
        "bundle": lambda: bundle.main(["pack", str(run.path), "--to", str(tmp_path / "parts")]),
        "preview": lambda: preview.main([str(run.path), key, "--out", str(tmp_path / "x.png")]),
    }
    with pytest.raises(RunError, match=r"pretrain-000001\.tar.*with --repair") as caught:
        calls[command]()
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("parts/*.manifest.json"))


@pytest.mark.parametrize(("field", "gallery"), [("lm68", 0), ("mel", 4)])
def test_the_report_names_it(run: RunFolder, field: str, gallery: int, capsys: pytest.CaptureFixture[str]) -> None:
    publish(run, 1, LENGTHS[1])
    harm(run, field)
    assert report.main([str(run.path), "--gallery", str(gallery)]) == 1
    assert f"{field}.npy is damaged: its checksum" in capsys.readouterr().out
