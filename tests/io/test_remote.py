"""Reading from object storage and web servers that break off, stall, are busy, or stay away."""

from __future__ import annotations

import email.utils
import functools
import http.server
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lrs3_loader import ShardStream
from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io import remote
from lrs3_loader.io.remote import open_stream
from support.run_factory import make_run
from support.s3_server import Proxy, make_bucket, s3_service

WAITING = "cannot be reached ("  # part of the line for each new attempt
DATA = random.Random(0).randbytes(12 << 20)
LENGTHS = [[12, 30, 7, 21], [9, 9, 40], [25, 6, 33, 14, 11]]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, from a byte on if asked for, unless ``ranges`` is false."""

    ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Last-Modified", email.utils.formatdate(path.stat().st_mtime, usegmt=True))
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def service() -> Iterator[Proxy]:
    with s3_service() as proxy:
        yield proxy


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A web server over ``tmp_path``, behind a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.flowing.set()
    proxy.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["s3", "web"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The URL of a file with ``DATA`` on either kind of server, and the proxy before it. A minute for new attempts."""
    service = request.getfixturevalue("service" if request.param == "s3" else "web")
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 1.0)
    monkeypatch.setitem(remote._S3_CONFIG, "read_timeout", 1)
    if request.param == "web":
        (tmp_path / "file").write_bytes(DATA)
        yield f"http://127.0.0.1:{service.port}/file", service
        return
    bucket = make_bucket(service)
    monkeypatch.setattr("s3fs.S3FileSystem.default_block_size", 5 << 20)  # else the first request gets it all
    fsspec.filesystem("s3").pipe_file(f"{bucket.url}/file", DATA)
    yield f"{bucket.url}/file", bucket.proxy
    bucket.proxy.break_answer_after, bucket.proxy.busy_until = None, 0.0
    bucket.proxy.flowing.set()


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_reading_goes_on_where_a_connection_ended(
    place: tuple[str, Proxy], ranges: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, proxy = place
    if not ranges and url.startswith("s3"):
        pytest.skip("object storage has ranges")
    monkeypatch.setattr(_Handler, "ranges", ranges)
    for num_bytes in (2 << 20, 8 << 20):
        caplog.clear()
        proxy.break_answer_after = num_bytes
        with open_stream(url) as file:
            assert file.read(500) + file.read(1 << 19) + file.read() == DATA
        assert proxy.break_answer_after is None
        assert f"{url} {WAITING}" in caplog.text


def test_a_stalled_or_busy_server_is_waited_for(place: tuple[str, Proxy], caplog: pytest.LogCaptureFixture) -> None:
    url, proxy = place
    proxy.busy_until = time.monotonic() + 1.5
    with open_stream(url) as file:
        assert WAITING in caplog.text
        caplog.clear()
        file.read(10)
        proxy.flowing.clear()
        threading.Timer(4.0, proxy.flowing.set).start()
        assert file.read() == DATA[10:]
    assert WAITING in caplog.text


def test_a_server_that_stays_away_ends_it_in_one_line(
    place: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, proxy = place
    monkeypatch.setenv(remote.RETRY_VARIABLE, "2")
    proxy.busy_until = time.monotonic() + 1000
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"^{url} cannot be reached: [^\n]*$"):
        open_stream(url)
    assert 2 <= time.monotonic() - begun < 15


def test_what_will_not_pass_is_not_tried_again(place: tuple[str, Proxy], caplog: pytest.LogCaptureFixture) -> None:
    url, _ = place
    with pytest.raises(FileNotFoundError):
        open_stream(f"{url}.gone")
    with pytest.raises(UnreachableError, match="cannot be reached"):
        open_stream("https://[::1")
    assert WAITING not in caplog.text


def test_a_file_that_changes_while_it_is_read(web: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))
    web.break_answer_after = 2 << 20
    with open_stream(f"http://127.0.0.1:{web.port}/file") as file:
        file.read(10)
        os.utime(path, (0, 0))
        with pytest.raises(RunError, match="was replaced while it was read"):
            file.read()


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_stream_of_a_run_waits_and_goes_on(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away is no damage: nothing is skipped, whatever ``on_error`` says."""
    proxy = request.getfixturevalue("service" if kind == "s3" else "web")
    monkeypatch.setenv(remote.RETRY_VARIABLE, "60")
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.1)
    if kind == "web":
        run, url = make_run(tmp_path / "run", LENGTHS), f"http://127.0.0.1:{proxy.port}/run"
    else:
        url = f"{make_bucket(proxy).url}/run"
        run = make_run(url, LENGTHS)
    stream = ShardStream(url, "raw", on_error="skip", num_parallel_shards=1, shuffle_buffer=4)
    keys = []
    for number, sample in enumerate(stream):
        keys.append(sample["__key__"])
        if number % 4 == 0:
            proxy.busy_until = time.monotonic() + 0.3
    assert sorted(keys) == [key for shard in run.shards for key, _ in run.ledger(shard).samples]
    assert stream.errors() == {}
    monkeypatch.setenv(remote.RETRY_VARIABLE, "0")
    proxy.busy_until = 0.0
    again = ShardStream(url, "raw", on_error="skip")
    proxy.busy_until = time.monotonic() + 1000
    with pytest.raises(UnreachableError, match=f"{url}.* cannot be reached"):
        list(again)
    proxy.busy_until = 0.0
