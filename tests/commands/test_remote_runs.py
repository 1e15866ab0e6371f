"""Commands take the URL of a run where they take its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lrs3_loader.commands import export, preview, report, verify
from lrs3_loader.errors import RunError
from lrs3_loader.launch.cli import UsageError
from support.run_factory import make_run
from support.s3_server import Bucket, make_bucket, s3_service

LENGTHS = [[12, 30, 0], [9]]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3_service() as proxy:
        yield make_bucket(proxy)


@pytest.fixture(scope="module")
def url(bucket: Bucket) -> str:
    make_run(f"{bucket.url}/run", LENGTHS)
    return f"{bucket.url}/run"


def test_the_report_is_that_of_a_local_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", LENGTHS)
    assert report.main([url, "--gallery", "0"]) == 0
    assert report.main([str(tmp_path / "run"), "--gallery", "0"]) == 0
    pages = [(tmp_path / name).read_text() for name in ("report.html", "run/report.html")]
    figures = [page.partition("<main")[2].replace(url, str(tmp_path / "run")) for page in pages]
    assert "pretrain" in figures[0]
    assert figures[0] == figures[1]


def test_statistics_are_those_of_a_local_run(url: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", LENGTHS)
    assert export.main(["stats", url, "--out", str(tmp_path / "there.json")]) == 0
    assert export.main(["stats", str(tmp_path / "run")]) == 0
    assert (tmp_path / "there.json").read_bytes() == (tmp_path / "run/stats.json").read_bytes()
    with pytest.raises(UsageError, match=f"--out: {url} is no folder"):
        export.main(["stats", url])


def test_a_preview_names_the_clips_of_the_run(url: str) -> None:
    with pytest.raises(RunError, match=f"^{url} holds 4 clips: give a KEY as well, such as pretrain/"):
        preview.main([url, "--out", "x.png"])


@pytest.mark.parametrize("command", [report, verify, preview])
def test_a_missing_bucket_is_one_line(command: object, bucket: Bucket) -> None:
    missing = bucket.url.replace("bucket", "nobucket") + "/run"
    options = ["--out", "x.png"] if command is preview else []
    with pytest.raises(RunError) as caught:
        command.main([missing, *options])  # type: ignore[attr-defined]
    assert missing in str(caught.value)
    assert "\n" not in str(caught.value)
