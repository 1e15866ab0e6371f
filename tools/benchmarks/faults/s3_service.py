"""An S3 service of this machine, and a proxy before it that counts requests, cuts or stalls connections, or is busy."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import fsspec

_NUMBERS = itertools.count()
_REQUEST = re.compile(rb"(?:^|\r\n)(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1\.1\r\n")
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Proxy:
    """Passes bytes on, to and fro."""

    def __init__(self, port: int):
        self._target = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.requests: list[str] = []  # "PUT /bucket/key?query"
        self.cut_after: int | None = None  # bytes that a connection may send before it is reset; 0: refuse
        self.break_answer_after: int | None = None  # bytes of answers after which a connection ends, once
        self.fail_from: int | None = None  # number of the first request (see ``requests``) that fails
        self.fail_to: int | None = None  # and of the first that does not any more
        self.failure = "refused"  # refused, busy (an answer of 503), or unanswered (done, but its answer is lost)
        self.busy_until = 0.0  # requests before this (monotonic) time are answered by 503
        self.flowing = threading.Event()  # nothing is passed on while it is not set
        self.flowing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def count(self, method: str, pattern: str) -> int:
        return sum(bool(re.match(f"{method} .*{pattern}", request)) for request in self.requests)

    def close(self) -> None:
        self._server.close()

    def _fails(self) -> bool:
        """Tell whether the request that was counted last fails."""
        number = len(self.requests) - 1
        return self.fail_from is not None and self.fail_from <= number < (self.fail_to or number + 1)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self.cut_after == 0:
                    client.close()
                    continue
                upstream = socket.create_connection(self._target)
                unanswered = threading.Event()
                for pump, ends in ((self._send, (client, upstream)), (self._answer, (upstream, client))):
                    threading.Thread(target=pump, args=(*ends, unanswered), daemon=True).start()

    def _send(self, client: socket.socket, upstream: socket.socket, unanswered: threading.Event) -> None:
        num_sent = 0
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                found = [f"{method.decode()} {path.decode()}" for method, path in _REQUEST.findall(data)]
                self.requests += found
                if found and self._fails():
                    if self.failure != "unanswered":
                        if self.failure == "busy":
                            client.sendall(_BUSY)
                        break
                    unanswered.set()
                if found and time.monotonic() < self.busy_until:
                    client.sendall(_BUSY)
                    break
                self.flowing.wait()
                num_sent += len(data)
                if self.cut_after is not None and num_sent > self.cut_after:
                    break
                upstream.sendall(data)
        _close(client, upstream)

    def _answer(self, upstream: socket.socket, client: socket.socket, unanswered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := upstream.recv(1 << 16)) and not unanswered.is_set():
                self.flowing.wait()
                if self.break_answer_after is not None:
                    self.break_answer_after -= len(data)
                    if self.break_answer_after < 0:
                        self.break_answer_after = None
                        break
                client.sendall(data)
        _close(client, upstream)


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@dataclass
class Bucket:
    """Reached through a proxy by whatever reads the ``AWS_*`` variables."""

    url: str
    proxy: Proxy


@contextmanager
def s3_service() -> Iterator[Proxy]:
    """A service that lives as long as the block; the environment leads to it, through a proxy.

    Raises:
        ImportError: moto or s3fs is missing, which come with the extra "test".
    """
    import moto.server as server
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it prints every request
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    proxy = Proxy(service.get_host_and_port()[1])
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LRS3_LOADER_STORAGE_RETRY_SECONDS": "0",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",
    }
    with mock.patch.dict(os.environ, variables):
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()
    proxy.close()
    service.stop()


def make_bucket(proxy: Proxy) -> Bucket:
    """A new bucket of that service."""
    name = f"bucket{next(_NUMBERS)}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
    proxy.requests.clear()
    return Bucket(f"s3://{name}", proxy)
