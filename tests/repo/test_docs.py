"""The documents keep their word: the format is read by what it says alone, links lead somewhere, options exist."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lrs3_loader.errors import REASONS
from lrs3_loader.types import FIELDS
from support.paths import REPO
from support.run_factory import full_features, make_run

DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
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
        data = (out / "shards" / f"{shard}.tar").read_bytes()
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_tools_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (document.parent / target).exists(), target
    for tool in re.findall(r"(?:python|torchrun[^\n`]*?) (tools/\w+\.py)", text):
        assert (REPO / tool).is_file(), tool


def test_options_that_documents_name_exist() -> None:
    sources = [*(REPO / "tools").rglob("*.py"), *(REPO / "lrs3_loader").rglob("*.py")]
    known = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    others = {"nproc-per-node", "nnodes", "node-rank", "master-addr", "master-port", "standalone"}  # of torchrun
    others |= {"shm-size", "help"}
    for document in DOCUMENTS:
        for option in set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_-]+)", document.read_text(encoding="utf-8"))):
            name = option.replace("-", "_")
            fits = re.search(rf"\b{name}\b", known) or f'"{option}"' in known or option.startswith("no-")
            assert fits or option.replace("_", "-") in others, f"{document.name}: --{option}"
