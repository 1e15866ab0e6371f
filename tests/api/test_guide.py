"""The Python of docs/python.md and the notebook run, on clips of the demo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lrs3_loader import api
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import RunConfig, demo_defaults
from lrs3_loader.demo import make_demo_corpus
from support.paths import REPO
from support.run_factory import make_run

NOTEBOOK = REPO / "docs/quickstart.ipynb"
FORTY_FRAMES = (1.6, 1.6)


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def run_python(blocks: list[str], name: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "block"}
    for block in blocks:
        exec(compile(block, name, "exec", dont_inherit=True), namespace)
    return namespace


def test_python_of_the_guide_runs(
    assets: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_demo_corpus(tmp_path / "demo", 1, 1, seconds=FORTY_FRAMES)
    (corpus.folder / f"{corpus.keys[0]}.mp4").rename(tmp_path / "clip.mp4")
    quality = {"pretrain/speaker00/00000": {"face_size_px": 101.25}}
    run = make_run(tmp_path / "run", [[12, 30, 0], [9]], quality=quality)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "RunConfig", lambda: demo_defaults(RunConfig()))
    monkeypatch.setattr(api, "Assets", lambda folder: Assets(assets))
    text = (REPO / "docs/python.md").read_text(encoding="utf-8").replace("/data/lrs3-shards", str(run.path))
    run_python(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL), "docs/python.md")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("40 (40, 68, 2) ")
    assert f"{tmp_path}/nowhere.mp4 unreadable" in printed[2]
    assert printed[3:5] == ["20", "3 clips, 1 rejects"]


@pytest.mark.slow
def test_the_notebook_runs(
    assets: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    if assets is not None:
        monkeypatch.setenv("LRS3_LOADER_ASSETS", str(assets))
    namespace = run_python(["".join(cell["source"]) for cell in cells("code")], NOTEBOOK.name)
    assert "4 clips, 0 rejects; landmarks differ by " in capsys.readouterr().out
    assert namespace["difference"] < 1e-3  # type: ignore[operator]


def test_the_stored_notebook_is_small_and_of_no_particular_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 250_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert all(cell["outputs"] for cell in cells("code")[1:])
    assert not [output for cell in cells("code") for output in cell["outputs"] if output.get("name") == "stderr"]


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 3
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
