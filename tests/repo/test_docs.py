"""What the documents say is true: the format is read by what it says alone, links, paths, names and options exist."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.__main__ import COMMANDS
from lrs3_loader.errors import REASONS
from lrs3_loader.types import FIELDS
from support.paths import REPO
from support.run_factory import full_features, make_run

DOCUMENTS = [
    *(REPO / name for name in ("README.md", "BENCH.md", "CONTRIBUTING.md")),
    *sorted((REPO / "docs").glob("*.md")),
    *sorted((REPO / "lrs3_loader").rglob("*.md")),
]
LENGTHS = [[12, 30, 0], [9, 40]]


def read_by_the_document(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """A reader after docs/shard-format.md, with the standard library and numpy."""
    record = json.loads((out / "run.json").read_bytes())
    manifest = (out / "manifest.jsonl").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == record["plan_sha256"]
    deciding = {name: record[name] for name in ("config", "device_type", "models", "plan_sha256")}
    run = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    planned: dict[str, list[str]] = {}
    for line in manifest.decode("ascii").splitlines():
        clip = json.loads(line)
        planned.setdefault(clip["shard"], []).append(clip["key"])
    samples: dict[str, dict[str, np.ndarray]] = {}
    for shard, keys in planned.items():
        ledger = json.loads((out / "ledger" / f"{shard}.json").read_text(encoding="utf-8"))
        generation = f".g{ledger['generation']}" if ledger.get("generation") else ""
        data = (out / "shards" / f"{shard}{generation}.tar").read_bytes()
        assert (ledger["run"], ledger["num_bytes"]) == (run, len(data))
        assert ledger["sha256"] == hashlib.sha256(data).hexdigest()
        assert sorted([key for key, _ in ledger["samples"]] + [key for key, _, _ in ledger["rejects"]]) == sorted(keys)
        found: dict[str, dict[str, np.ndarray]] = {}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                if extension.endswith(".npy"):
                    array = np.load(io.BytesIO(file.read()), allow_pickle=False)
                    found.setdefault(key, {})[extension.removesuffix(".npy")] = array
        assert [[key, len(arrays["lm68"])] for key, arrays in found.items()] == ledger["samples"]
        samples |= found
    return samples


def test_a_reader_made_after_the_document_reads_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LENGTHS)
    found = read_by_the_document(run.path)
    assert len(found) == 4
    clip = run.shards[1].clips[1]
    for name, array in full_features(clip, 40, seed=1001).arrays.items():
        np.testing.assert_array_equal(found[clip.key][name], array)


def test_the_format_names_every_field_and_every_reason() -> None:
    text = (REPO / "docs" / "shard-format.md").read_text(encoding="utf-8")
    for name, spec in FIELDS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | "))
        shape = row.split("|")[2].strip()
        assert shape == f"[{', '.join(map(str, spec.shape))}]"
        assert spec.dtype.replace("float", "f") in row.split("|")[3]
    listed = re.search(r"Reasons: ([^.]+)\.", text)
    assert listed is not None
    assert sorted(re.findall(r"`(\w+)`", listed[1])) == sorted(REASONS)


each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(REPO).as_posix().replace("/", "-")
)


def anchors(document: Path) -> set[str]:
    """The names that a browser gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@each_document
def test_paths_that_documents_name_exist(document: Path) -> None:
    """``folder/file.py`` from the root of the repository, with ``::name`` of a test where there is one."""
    named = r"(?<![\w./-])((?:lrs3_loader|tools|tests|docs)/[\w./-]*\w/?)(?:::(\w+))?"
    for path, test in re.findall(named, document.read_text(encoding="utf-8")):
        assert (REPO / path).exists(), path
        if test:
            assert f"def {test}(" in (REPO / path).read_text(encoding="utf-8"), f"{path}::{test}"


@each_document
def test_names_that_documents_import_exist(document: Path) -> None:
    """``lrs3_loader.module.Name``, and ``from lrs3_loader.module import Name`` in blocks of Python."""
    text = document.read_text(encoding="utf-8")
    names = re.findall(r"`(lrs3_loader(?:\.\w+)+)", text)
    for module, imported in re.findall(r"^from (lrs3_loader[\w.]*) import (.+)$", text, re.MULTILINE):
        names += [f"{module}.{name.strip()}" for name in imported.split(",")]
    for name in names:
        parent, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(parent), last) or importlib.util.find_spec(name), name


def test_stages_of_the_architecture_are_where_it_says() -> None:
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(lrs3_loader/[\w/]+\.py)` \|$", text, re.MULTILINE)
    assert len(rows) > 10
    for name, path in rows:
        assert re.search(rf"^(def|class) {name}\b", (REPO / path).read_text(encoding="utf-8"), re.MULTILINE), name


def test_rules_of_the_architecture_name_a_test_each() -> None:
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    rules = re.split(r"^\*\*", text.partition("## Rules")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
    assert len(rules) > 10
    for rule in rules:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", rule), rule


@pytest.mark.parametrize("name", ["README.md", "docs/streaming.md", "docs/quality.md", "docs/architecture.md"])
def test_python_of_the_documents_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their blocks of Python, one after another, on small runs in place of those that they name."""
    run, person = make_run(tmp_path / "run", LENGTHS), make_run(tmp_path / "person", LENGTHS, split="person")
    text = (REPO / name).read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "block"}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        block = block.replace("/data/lrs3-shards", str(run.path)).replace("num_workers=4", "num_workers=0")
        block = block.replace("runs/demo/shards/", f"{run.path}/shards/")
        block = block.replace("/data/person-shards", str(person.path))
        exec(compile(block, name, "exec", dont_inherit=True), namespace)


@each_document
def test_commands_that_documents_name_exist(document: Path) -> None:
    """Those that begin a line or stand in backticks."""
    called = r"^(?:.*`)?(?:torchrun .*-m lrs3_loader|python -m lrs3_loader|lrs3-loader) ([a-z][\w-]*)"
    named = re.findall(called, document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(COMMANDS)


def test_options_that_documents_name_exist() -> None:
    sources = [*(REPO / "tools").rglob("*.py"), *(REPO / "lrs3_loader").rglob("*.py")]
    known = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    others = {"nproc-per-node", "nnodes", "node-rank", "master-addr", "master-port", "standalone"}  # of torchrun
    others |= {"help"}
    for document in DOCUMENTS:
        for option in set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]+)", document.read_text(encoding="utf-8"))):
            name = option.replace("-", "_")
            fits = re.search(rf"\b{name}\b", known) or f'"{option}"' in known or option.startswith("no-")
            assert fits or option.replace("_", "-") in others, f"{document.name}: --{option}"
