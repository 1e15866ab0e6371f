"""``run.json``, the record of a run: its settings, models and plan, and what of it decides the bytes of shards."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from lrs3_loader.config import RunConfig, as_json
from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import Store

RECORD_FILE = "run.json"
MANIFEST_FILE = "manifest.jsonl"
_GROWN = re.compile(r"manifest\.g([1-9]\d{0,5})\.jsonl")
_SECTIONS = {f"{name}?": dict for name, section in as_json(RunConfig()).items() if isinstance(section, dict)}
_RECORD = {
    "config": {**_SECTIONS, "corpus?": {"corpus?": str, "layout?": str}, "face?": {"face_model?": str}},
    "plan_sha256": str,
    "manifest?": {"file": str, "sha256": str},
    "models": {str: {"name?": str, "model?": str, "licence?": str, "sha256?": str}},
    "device_type": str,
    "software?": {str: str},
    "earlier?": [str],
}


def read_record(store: Store) -> dict[str, Any]:
    """Read the ``run.json`` of a run.

    Raises:
        RunError: there is no run, or it is damaged.
    """
    try:
        record: dict[str, Any] = decode_json(store.read(RECORD_FILE))
        check_types(record, _RECORD)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{store.root} holds no run (no {RECORD_FILE} there)") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{store.root}/{RECORD_FILE} is damaged ({error}); begin another run") from error
    return record


def manifest_of(record: dict[str, Any]) -> tuple[str, str]:
    """Return the name of a run's manifest and its SHA-256, by its ``run.json``.

    Raises:
        RunError: it names another file than a manifest.
    """
    named = record.get("manifest", {"file": MANIFEST_FILE, "sha256": record["plan_sha256"]})
    if named["file"] != MANIFEST_FILE and not _GROWN.fullmatch(named["file"]):
        raise RunError(f"{RECORD_FILE} is damaged ({named['file']!r:.100} is no manifest); begin another run")
    return named["file"], named["sha256"]


def next_manifest(record: dict[str, Any]) -> str:
    """Return the name of the manifest that a run has once it has grown again."""
    match = _GROWN.fullmatch(manifest_of(record)[0])
    return f"manifest.g{int(match[1]) + 1 if match else 1}.jsonl"


def write_record(store: Store, record: dict[str, Any]) -> None:
    """Write the ``run.json`` of a run."""
    with store.write(RECORD_FILE) as file:
        file.write((json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def run_hash(record: dict[str, Any]) -> str:
    """Hash the parts of ``run.json`` that decide the bytes of shards: config, plan and model files, not software."""
    deciding = {name: record[name] for name in ("config", "plan_sha256", "models", "device_type")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def with_fields_added(record: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the ``run.json`` of a run to which fields are added.

    Its hash changes, and the one that it had is listed as ``earlier``: shards under it are sound, and lack the fields.
    """
    return {**record, **now, "earlier": [*record.get("earlier", []), run_hash(record)]}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Compare two nested configs; return a line ``name: old -> new`` for each difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        lines = [differences(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in names]
        return [line for part in lines for line in part]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]
