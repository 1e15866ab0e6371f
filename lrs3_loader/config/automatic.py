"""Values of settings that are left to the program: by the device, by the run that is resumed, or for the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lrs3_loader.config.run import RunConfig

#: On a GPU: bytes that one frame, one aligned crop and one second of audio take during processing (rounded up), and
#: the largest batch that still increases speed.
_FRAME_BYTES, _MOST_FRAMES = 12 << 20, 1024
_CROP_BYTES, _MOST_CROPS = 16 << 20, 512
_SECOND_BYTES, _MOST_SECONDS = 16 << 20, 1280
_AUTO_FIELDS = {
    "landmarks": ("frame_batch",),
    "speech": ("dtype", "batch_seconds"),
    "regression": ("dtype", "batch"),
    "quality": ("level", "speech_detector"),
}


def resolve(config: RunConfig, device_type: str, free_bytes: int = 16 << 30) -> RunConfig:
    """Replace automatic values by those for the device, so that the saved config is complete.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        free_bytes: free memory of the GPU. Each kind of batch may take an eighth of it.
    """
    on_gpu = device_type != "cpu"

    def batch(on_cpu: int, bytes_each: int, most: int) -> int:
        if not on_gpu:
            return on_cpu
        fitting = max(free_bytes // 8 // bytes_each, 16)
        return min(1 << (fitting.bit_length() - 1), most)

    automatic: dict[str, Any] = {
        "landmarks": {"frame_batch": batch(32, _FRAME_BYTES, _MOST_FRAMES)},
        "speech": {
            "dtype": "bfloat16" if on_gpu else "float32",
            "batch_seconds": float(batch(20, _SECOND_BYTES, _MOST_SECONDS)),
        },
        "regression": {
            "dtype": "float16" if on_gpu else "float32",
            "batch": batch(8, _CROP_BYTES, _MOST_CROPS),
        },
        "quality": {"level": "full", "speech_detector": "silero" if find_spec("silero_vad") else "energy"},
    }
    if not on_gpu:  # on a GPU, that is found out when the models are loaded
        automatic["kernels"] = "plain"
    return _with_absolute_paths(inherit_auto_values(config, automatic))


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Make the paths of the corpus and of local models absolute: a run may be resumed from another folder."""

    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    corpus, checkpoint, speech = config.corpus.corpus, config.regression.checkpoint, config.speech
    models = tuple(name if name == "demo" else absolute(name) for name in speech.models)
    face_model = config.face.face_model
    return dataclasses.replace(
        config,
        corpus=dataclasses.replace(config.corpus, corpus=corpus.absolute() if isinstance(corpus, Path) else corpus),
        face=dataclasses.replace(
            config.face, face_model=absolute(face_model) if face_model.endswith(".npz") else face_model
        ),
        speech=dataclasses.replace(speech, model=models[0], also=models[1:]),
        regression=dataclasses.replace(config.regression, checkpoint=checkpoint and checkpoint.absolute()),
    )


def inherit_auto_values(config: RunConfig, saved: Mapping[str, Any]) -> RunConfig:
    """Replace automatic values by those in ``saved``, the config in the ``run.json`` of the run to resume.

    Equal batches on every launch give equal bytes, however much memory of the GPU is free.
    """
    parts: dict[str, Any] = {}
    for part, names in _AUTO_FIELDS.items():
        own, theirs = getattr(config, part), saved.get(part, {})
        chosen = {name: theirs[name] for name in names if getattr(own, name) in (None, "auto") and name in theirs}
        parts[part] = dataclasses.replace(own, **chosen)
    if config.kernels == "auto" and "kernels" in saved:
        parts["kernels"] = saved["kernels"]
    return dataclasses.replace(config, **parts)


def demo_defaults(config: RunConfig) -> RunConfig:
    """Select models that need no download, for a demo run."""
    return dataclasses.replace(
        config,
        face=dataclasses.replace(config.face, face_model="demo"),
        speech=dataclasses.replace(config.speech, model="demo"),
    )
