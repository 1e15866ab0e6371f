"""Settings as JSON, and the names that settings had in earlier versions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lrs3_loader.config.run import QualityConfig, RunConfig

#: (section, earlier name, present name) of renamed config fields.
_RENAMED_FIELDS = (("decode", "max_sound_gap_seconds", "max_av_mismatch_seconds"),)


def upgrade_saved(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a config from the ``run.json`` of an earlier version to the present names, with defaults for new ones."""
    upgraded = dict(saved)
    upgraded.setdefault("kernels", "plain")
    upgraded.setdefault("quality", as_json(QualityConfig(level="none", speech_detector="energy")))
    for section, old, new in _RENAMED_FIELDS:
        if old in upgraded.get(section, {}):
            upgraded[section] = {new if name == old else name: value for name, value in upgraded[section].items()}
    for section, default in as_json(RunConfig()).items():
        if isinstance(default, dict) and ("decode" in upgraded or section in upgraded):
            upgraded[section] = default | upgraded.get(section, {})
    return upgraded


def with_current_flags(argv: Sequence[str]) -> list[str]:
    """Replace command-line flags of earlier versions by those of the renamed config fields."""
    flags = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-") for _, old, new in _RENAMED_FIELDS}
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        words.append(f"{flags[name]}{equals}{value}" if (name := flag.replace("_", "-")) in flags else word)
    return _collect_encoders(words)


def _collect_encoders(words: Sequence[str]) -> list[str]:
    """Turn ``--hubert A --hubert B --hubert C`` into ``--hubert A --also-hubert B C``."""
    kept: list[str] = []
    encoders: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--hubert" or word.startswith("--hubert="):
            value = word.partition("=")[2] if "=" in word else next(waiting, None)
            encoders += [] if value is None else [value]
            kept += ["--hubert"] if value is None else []
        else:
            kept.append(word)
    first = ["--hubert", encoders[0]] if encoders else []
    return [*kept, *first, *(["--also-hubert", *encoders[1:]] if encoders[1:] else [])]


def as_json(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to nested plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain
