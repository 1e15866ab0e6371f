"""What ``import lrs3_loader`` offers: quick to import, listed, documented."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import lrs3_loader
from support.paths import REPO

pytestmark = pytest.mark.smoke


def test_importing_imports_nothing_large() -> None:
    script = "import sys; old = set(sys.modules); import lrs3_loader; dir(lrs3_loader); print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded <= {"lrs3_loader", *sys.stdlib_module_names}
    assert [name for name in done.stdout.split() if name.startswith("lrs3_loader")] == ["lrs3_loader"]


def test_every_public_name_is_there_and_documented() -> None:
    assert set(lrs3_loader.__all__) <= set(dir(lrs3_loader))
    for name in set(lrs3_loader.__all__) - {"__version__"}:
        assert len(inspect.getdoc(getattr(lrs3_loader, name)) or "") > 20, name
    assert inspect.isfunction(lrs3_loader.extract)


def test_names_for_type_checkers_are_the_same() -> None:
    text = (REPO / "lrs3_loader/__init__.py").read_text()
    block = text.partition("if TYPE_CHECKING:\n")[2].partition("\n__version__")[0]
    imported = set(re.findall(r"\b(?!lrs3_loader)[A-Za-z_]+\b", re.sub(r"from \S+ import", "", block)))
    assert imported == set(lrs3_loader.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'extrakt'"):
        _ = lrs3_loader.extrakt  # type: ignore[attr-defined]


def test_the_guide_names_every_public_name() -> None:
    guide = (REPO / "docs/python.md").read_text()
    assert [name for name in lrs3_loader.__all__ if not re.search(rf"\b{name}\b", guide)] == []
