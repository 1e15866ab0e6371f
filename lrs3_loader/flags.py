"""Settings by the names of their flags: ``min_frames`` is ``decode.min_frames``, set by ``--min-frames``."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrs3_loader.config import RunConfig, upgrade_saved
from lrs3_loader.io.storage import Url, location

#: Sections of ``RunConfig`` that say which clips there are and how they become shards.
CORPUS_SECTIONS = ("corpus", "plan")


def flag_names(kind: type = RunConfig) -> dict[tuple[str, ...], str]:
    """Return the flag of each setting by its place: ``("decode", "min_frames")`` is set by ``--min-frames``."""
    return {place: flag for place, flag, _ in _settings(kind)}


def _settings(kind: type) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield place, flag and type of each setting of a config."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(plain):
            for place, flag, inner in _settings(typing.cast(type, plain)):
                yield (name, *place), flag, inner
            continue
        given = [extra.name for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "name", None)]
        yield (name,), "--" + (given[0] if given else name).replace("_", "-"), plain


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return a config with other values for some settings, given by flag: ``{"min_frames": 8, "hubert": "demo"}``.

    Those of the corpus and of the division into shards are not among them.

    Raises:
        TypeError: there is no such setting (the message names the nearest one), or the value is of another type.
        ValueError: a value is not one of those allowed.
    """
    known = {
        flag[2:].replace("-", "_"): (place, hint)
        for place, flag, hint in _settings(RunConfig)
        if place[0] not in CORPUS_SECTIONS
    }
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        place, hint = known[name]
        section, field = place if len(place) == 2 else ("", place[0])
        sections.setdefault(section, {})[field] = _checked(name, hint, value)
    values = sections.pop("", {})
    values |= {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **values)


def _checked(name: str, hint: Any, value: Any) -> Any:
    """Return the value of a setting, in the type that its dataclass has."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(option) or option for option in options)
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if choices:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if float in kinds and type(value) is int:
        return float(value)
    if tuple in kinds and isinstance(value, list):
        return tuple(value)
    if not any(isinstance(value, kind) and (kind is bool) == isinstance(value, bool) for kind in kinds):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    return value


def config_from_json(saved: Mapping[str, Any]) -> RunConfig:
    """Make the config of a run from its ``run.json``; the inverse of ``config.as_json``.

    Raises:
        ValueError: it has settings that this version does not know, or values that are none.
    """
    return typing.cast(RunConfig, _from_json(RunConfig, upgrade_saved(saved)))


def _from_json(kind: type, plain: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    if unknown := sorted(plain.keys() - hints):
        raise ValueError(f"this version does not know the setting {unknown[0]}")
    try:
        return kind(**{name: _value(hints[name], value) for name, value in plain.items()})
    except TypeError as error:
        raise ValueError(str(error)) from error


def _value(hint: Any, plain: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_json(typing.cast(type, hint), plain)
    if isinstance(plain, str) and Path in typing.get_args(hint):
        return location(plain) if Url in typing.get_args(hint) else Path(plain)
    return tuple(plain) if isinstance(plain, list) else plain
