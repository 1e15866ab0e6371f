"""Audio-video offsets of a run's clips, which ``verify --sync`` writes to ``sync.jsonl``."""

from __future__ import annotations

from typing import Any

from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import check_types, decode_json
from lrs3_loader.io.storage import Store

OFFSETS_FILE = "sync.jsonl"
MAX_OFFSET = 10


def read_offsets(store: Store) -> list[dict[str, Any]] | None:
    """Read the offsets of the run in a store; None if they were not measured, ``RunError`` if the file is damaged."""
    path = store.where(OFFSETS_FILE)
    try:
        lines = [decode_json(line) for line in store.read(OFFSETS_FILE).splitlines()]
        for line in lines:
            measured = isinstance(line, dict) and line.get("offset_frames") is not None
            check_types(line, {"key": str, "in_training": bool})
            check_types(
                line, {"offset_frames": int, "confidence": float} if measured else {"offset_frames": type(None)}
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, or measure again with verify.py --sync") from error
    return lines
