"""Fixtures shared by all tests: where the real clips and model files are, and whether a GPU is expected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.stand_in import Record, stand_in_device, why_not
from lrs3_loader.assets.locate import Assets
from lrs3_loader.errors import RunError
from support.paths import REPO

# Tests measure correctness, not speed: one thread keeps them from fighting over cores.
torch.set_num_threads(1)

SHARED = Path(os.environ.get("LRS3_LOADER_SHARED", REPO.parent / "shared"))


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"real {name} not found: {folder} (set LRS3_LOADER_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real clips (``clips/``, ``lrs3_mini/``)."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_assets() -> Path:
    """Folder with real model files."""
    return _shared("assets")


@pytest.fixture(scope="session")
def assets(request: pytest.FixtureRequest) -> Path | None:
    """Where the landmarker is: the shared assets, else wherever a demo run has put it."""
    try:
        return Path(request.getfixturevalue("shared_assets"))
    except pytest.skip.Exception:
        try:
            Assets().landmarker()
        except RunError as error:
            pytest.skip(f"no face landmarker here: {error}")
        return None


#: Fixtures that skip without the shared folder. Tests of ``assets`` are marked by hand where the model matters.
SHARED_FIXTURES = {"shared_data", "shared_assets"}
LONGEST = ("test_run", "test_decode", "test_landmarks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no process ends long after the other; mark what uses the shared folder."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    for item in items:
        if SHARED_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.shared)


@pytest.fixture
def stand_in() -> Iterator[Record]:
    """The stand-in device, with the record of what it is asked to do."""
    if reason := why_not():
        pytest.skip(reason)
    with stand_in_device(free_gib=1) as record:  # batches are small, then
        yield record


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest) -> None:
    """Give tests marked ``gpu`` the stand-in device on a machine without a GPU.

    Where a GPU is expected (``LRS3_LOADER_EXPECT_GPU=1``) they fail without one.
    """
    expects_one = torch.cuda.is_available() or os.environ.get("LRS3_LOADER_EXPECT_GPU") == "1"
    if "gpu" in request.node.keywords and not expects_one:
        request.getfixturevalue("stand_in")
