"""Checks that runs may be read as one stream: equal models and conventions, and no clip twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrs3_loader.errors import RunError, UnreachableError
from lrs3_loader.io.safe_load import decode_json
from lrs3_loader.run.ledger import TAR_FOLDER
from lrs3_loader.run.record import RECORD_FILE, differences
from lrs3_loader.stream.remote import is_remote, open_remote
from lrs3_loader.stream.sources import Source

_NO_FEATURES = {"speech_detector", "speaking", "renderer"}  # models that only measure or draw
#: What the features of a model do not depend on: where its files lie, by which software and kernels it ran.
_IGNORED = {"licence", "model", "transformers", "kernels"}
_MAX_LINES, _MAX_TEXT = 6, 120


def require_agreement(locations: Iterable[str]) -> None:
    """Compare the models and conventions of the runs that are read together, and of tars that lie in a run.

    Raises:
        RunError: they differ; the message names what does.
    """
    runs = list(dict.fromkeys(map(_run_of, locations)))
    first: tuple[str, dict[str, Any]] | None = None
    for location in runs if len(runs) > 1 else []:
        meaning = _meaning(location)
        if meaning is None:
            continue
        if first is None:
            first = location, meaning
            continue
        lines = [
            line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]}..." for line in differences(first[1], meaning)
        ]
        if lines:
            more = f" and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
            raise RunError(
                f"{first[0]} and {location} cannot be read as one stream: they differ in "
                f"{'; '.join(lines[:_MAX_LINES])}{more}. Extract both with the same models and options, or read one"
            )


def require_unique_keys(sources: Iterable[Source]) -> None:
    """Check that no clip comes twice, as when a run is given twice or two corpora have equal names.

    Raises:
        RunError: one does.
    """
    seen: dict[str, Source] = {}
    twice: list[tuple[str, Source, Source]] = []
    for source in sources:
        for key, _ in source.samples or ():
            if seen.setdefault(key, source) is not source:
                twice.append((key, seen[key], source))
    if twice:
        key, one, other = twice[0]
        raise RunError(
            f"{len(twice)} clips come twice, such as {key} of {one.url} and {other.url}; give each run once, or choose "
            "with select= or where="
        )


def _run_of(location: str) -> str:
    """Return the folder or URL of the run that a tar lies in; other locations are runs."""
    folder, _, name = location.removesuffix("/").rpartition("/")
    return folder.removesuffix(f"/{TAR_FOLDER}") if name.endswith(".tar") else location.removesuffix("/")


def _meaning(location: str) -> dict[str, Any] | None:
    """Return what decides the meaning of a run's arrays; None where there is no record of it."""
    if location.startswith("pipe:"):
        return None
    try:
        where = f"{location}/{RECORD_FILE}"
        with open_remote(where) if is_remote(location) else open(Path(location) / RECORD_FILE, "rb") as file:
            record = decode_json(file.read())
        models, config = record["models"], record["config"]
        regression, fields = config.get("regression", {}), record.get("fields", {})
        return {
            "models": {name: _without(model) for name, model in models.items() if name not in _NO_FEATURES},
            "conventions": {
                "format": record.get("format"),
                "idexp_lm3d": regression.get("idexp", "fit"),
                "mel_like": config.get("decode", {}).get("mel_like", "librosa"),
                "units": {name: fields[name].get("unit") for name in ("lm68", "pose", "exp", "mel") if name in fields},
            },
        }
    except (OSError, UnreachableError, ValueError, KeyError, AttributeError, TypeError):
        return None  # whoever opens the run says what is wrong with it


def _without(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name not in _IGNORED}
