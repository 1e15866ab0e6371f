"""A run on S3 whose requests fail one at a time, or whose service goes away at any of them and comes back later."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import fsspec
import pytest

from benchmarks.faults.scenarios import SCENARIOS, Ending, Laboratory, digest, run_command
from lrs3_loader.io.storage import RemoteStore
from lrs3_loader.run.folder import RunFolder
from support.fault_tools import IS_THOROUGH
from support.s3_server import Bucket, Proxy, make_bucket, s3_service

pytestmark = pytest.mark.faults

NUM_POINTS = 1_000 if IS_THOROUGH else 3  # of each scenario and failure
FAILURES = ("refused", "busy", "unanswered")


@pytest.fixture(scope="module")
def service() -> Iterator[Proxy]:
    with s3_service() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setattr("s3fs.core.S3FileSystem.retries", 1)  # else each failure takes seconds
        yield proxy


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as one:
        yield one


def extract(laboratory: Laboratory, bucket: Bucket, is_second: bool = False) -> Ending:
    words = SCENARIOS["retry-rejects" if is_second else "fresh"].command.replace("{world}", bucket.url)
    laboratory.is_second = is_second
    return run_command(words.format(corpus=laboratory.corpus).split())


def objects(bucket: Bucket) -> dict[str, bytes]:
    """All objects of a bucket, by name."""
    bucket.proxy.fail_from = None
    files = fsspec.filesystem("s3", use_listings_cache=False)
    root = bucket.url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def fill(bucket: Bucket, contents: dict[str, bytes]) -> None:
    files = fsspec.filesystem("s3", use_listings_cache=False)
    for name, data in contents.items():
        files.pipe_file(f"{bucket.url}/{name}", data)


def check_whole(bucket: Bucket) -> None:
    """What a run counts as published is there, whole."""
    if not RunFolder.exists(f"{bucket.url}/run"):
        return
    folder = RunFolder.open(f"{bucket.url}/run")
    published = folder.published()
    assert not [problems for shard, problems in folder.check() if shard.name in published and problems]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("is_second", [False, True], ids=["fresh", "retry-rejects"])
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
def test_a_request_that_fails(
    laboratory: Laboratory, service: Proxy, failure: str, is_second: bool, lasts: bool
) -> None:
    undisturbed = make_bucket(service)
    assert extract(laboratory, undisturbed).code == 0
    before = objects(undisturbed) if is_second else {}
    service.requests.clear()
    if is_second:
        assert extract(laboratory, undisturbed, is_second).code == 0
    else:
        fresh = make_bucket(service)
        assert extract(laboratory, fresh).code == 0
    num_requests = len(service.requests)
    wanted = digest(objects(undisturbed))
    points = random.Random(failure).sample(range(num_requests), min(NUM_POINTS, num_requests))
    for number in points:
        bucket = make_bucket(service)
        fill(bucket, before)
        service.requests.clear()
        service.failure = failure
        service.fail_from, service.fail_to = number, None if lasts else number + 1
        ending = extract(laboratory, bucket, is_second)
        request = service.requests[number]
        service.fail_from = None
        if ending.code != 0:
            lines = [line for line in ending.errors.splitlines() if line.startswith("error:")]
            assert (ending.crash, len(lines)) == ("", 1), (number, request, ending)
            assert bucket.url in lines[0], (number, request)
            assert "Traceback" not in ending.errors
            check_whole(bucket)
            again = extract(laboratory, bucket, is_second)
            assert again.code == 0, (number, request, again)
        assert digest(objects(bucket)) == wanted, (number, request)


@contextmanager
def forget(self: RemoteStore, name: str) -> Iterator[IO[bytes]]:
    """An upload that is lost, and taken for done."""
    yield io.BytesIO()


def test_a_lost_upload_would_be_found(laboratory: Laboratory, service: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_bucket(service)
    assert extract(laboratory, before).code == 0
    bucket = make_bucket(service)
    monkeypatch.setattr(RemoteStore, "write", forget)
    extract(laboratory, bucket)
    assert digest(objects(bucket)) != digest(objects(before))
