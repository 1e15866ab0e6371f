"""The S3 service of ``benchmarks.faults.s3_service``, for tests, which are skipped where its packages are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.faults import s3_service as service
from benchmarks.faults.s3_service import Bucket, Proxy, make_bucket

__all__ = ["Bucket", "Proxy", "make_bucket", "s3_service"]


@contextmanager
def s3_service() -> Iterator[Proxy]:
    """See ``service.s3_service``."""
    for package in ("moto.server", "s3fs"):
        pytest.importorskip(package, reason="needs the extra 'test' (moto, s3fs)")
    with service.s3_service() as proxy:
        yield proxy
