"""Whole runs from a corpus on S3 into a run on S3."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lrs3_loader import demo
from lrs3_loader.run.folder import RunFolder
from support.paths import REPO
from support.s3_server import Bucket, make_bucket, s3_service


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_service() as proxy:
        yield make_bucket(proxy)


def extract(corpus: str | Path, out: str | Path, assets: Path | None, tmp: Path) -> subprocess.CompletedProcess[str]:
    folder = ["--assets", str(assets)] if assets else []
    models = ["--device", "cpu", "--face-model", "demo", "--hubert", "demo"]
    options = ["--corpus", str(corpus), "--out", str(out), "--workers", "1", "--shard-clips", "2"]
    return subprocess.run(
        ["env", f"TMPDIR={tmp}", sys.executable, str(REPO / "tools" / "extract.py"), *options, *models, *folder],
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_same_bytes_as_on_disk_though_the_connection_breaks(
    bucket: Bucket, assets: Path | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="s3."))  # with a short name: sockets lie there
    request.addfinalizer(lambda: shutil.rmtree(scratch))
    made = demo.make_demo_corpus(tmp_path / "corpus", num_speakers=2, clips_per_speaker=2, seconds=(1.0, 1.2))
    (made.folder / made.keys[2]).with_suffix(".mp4").write_bytes(b"no video")
    for path in made.folder.rglob("*.*"):
        fsspec.filesystem("s3").put_file(str(path), f"{bucket.url}/corpus/{path.relative_to(made.folder)}")

    here = extract(made.folder, tmp_path / "run", assets, scratch)
    assert here.returncode == 0, here.stderr
    bucket.proxy.cut_after = 100_000  # ledgers, manifest and clips go through, tars do not
    cut = extract(f"{bucket.url}/corpus", f"{bucket.url}/run", assets, scratch)
    assert cut.returncode == 1
    assert [line for line in cut.stderr.splitlines() if line.startswith("error:")] == [cut.stderr.splitlines()[-1]]
    assert "could not be uploaded, and nothing of it is there" in cut.stderr
    assert "Traceback" not in cut.stderr
    assert RunFolder.open(f"{bucket.url}/run").pending() == [0, 1]

    bucket.proxy.cut_after = None
    there = extract(f"{bucket.url}/corpus", f"{bucket.url}/run", assets, scratch)
    assert there.returncode == 0, there.stderr
    assert "3 samples, 1 reject in 2 of 2 shards" in there.stdout
    local, remote = RunFolder.open(tmp_path / "run"), RunFolder.open(f"{bucket.url}/run")
    assert [ledger.sha256 for ledger in remote.ledgers()] == [ledger.sha256 for ledger in local.ledgers()]
    assert remote.totals().rejects == local.totals().rejects  # messages name no temporary file
    assert [path for path in scratch.iterdir() if path.name.startswith("lrs3_loader")] == []

    verified = subprocess.run(
        [sys.executable, str(REPO / "tools" / "verify.py"), f"{bucket.url}/run"], capture_output=True, text=True
    )
    assert verified.returncode == 0, verified.stderr
    assert "2 of 2 shards intact" in verified.stdout
