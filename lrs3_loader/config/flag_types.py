"""Types of settings that the command line reads in a way of its own, and a check that many settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from lrs3_loader.io.storage import Location, Url, location

Flag = tyro.conf.arg


def rarely(group: str) -> Any:
    """Annotate a dataclass whose flags few runs need, so that help shows them under a title that says so."""
    return tyro.conf.arg(name=f"rarely set: {group}")


_PLACE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="FOLDER|URL",
    instance_from_str=lambda words: location(words[0]),
    is_instance=lambda value: value is None or isinstance(value, (Path, Url)),
    str_from_instance=lambda value: [str(value)],
)
Place = Annotated[Location, _PLACE]
OptionalPlace = Annotated[Location | None, _PLACE]


def _layers(words: list[str]) -> int | tuple[int, ...] | None:
    numbers = tuple(map(int, words[0].split(",")))
    return numbers[0] if len(numbers) == 1 else numbers


Layers = Annotated[
    int | tuple[int, ...] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT[,INT...]",
        instance_from_str=_layers,
        is_instance=lambda value: value is None or isinstance(value, (int, tuple)),
        str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
    ),
    Flag(name="hubert-layer"),
]


def require_positive(config: object, *names: str) -> None:
    """Raise ``ValueError`` if one of these settings is neither None nor above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
