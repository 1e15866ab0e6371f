"""Talking-face clips in, training-ready WebDataset shards out.

    import lrs3_loader

    features = lrs3_loader.extract("clip.mp4")        # one file; ``Extractor`` keeps the models loaded
    run = lrs3_loader.open_run("/data/lrs3-shards")   # a run of ``lrs3-loader extract``, local or at a URL
    sample = run["pretrain/spk01/00001"]              # features of one clip
    table = run.table()                               # figures of all clips
    stream = lrs3_loader.ShardStream("/data/lrs3-shards", task="audio2motion", batch_size=16)

docs/python.md describes all of it. Names are imported when they are first used, because torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrs3_loader.api import Extractor, extract
    from lrs3_loader.config import (
        DecodeConfig,
        FaceConfig,
        LandmarkConfig,
        QualityConfig,
        RegressionConfig,
        RunConfig,
        SpeakingConfig,
        SpeechConfig,
    )
    from lrs3_loader.errors import ClipError, RunError
    from lrs3_loader.run.reader import Run, open_run
    from lrs3_loader.stream import ShardStream
    from lrs3_loader.types import Clip, ClipFeatures, Reject

__version__ = "0.2.0"

#: The module of each public name.
_MODULES = {
    "extract": "api",
    "Extractor": "api",
    "open_run": "run.reader",
    "Run": "run.reader",
    "ShardStream": "stream",
    "Clip": "types",
    "ClipFeatures": "types",
    "Reject": "types",
    "ClipError": "errors",
    "RunError": "errors",
    "RunConfig": "config",
    "DecodeConfig": "config",
    "LandmarkConfig": "config",
    "FaceConfig": "config",
    "SpeechConfig": "config",
    "RegressionConfig": "config",
    "SpeakingConfig": "config",
    "QualityConfig": "config",
}

__all__ = [
    "Clip",
    "ClipError",
    "ClipFeatures",
    "DecodeConfig",
    "Extractor",
    "FaceConfig",
    "LandmarkConfig",
    "QualityConfig",
    "RegressionConfig",
    "Reject",
    "Run",
    "RunConfig",
    "RunError",
    "ShardStream",
    "SpeakingConfig",
    "SpeechConfig",
    "__version__",
    "extract",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
