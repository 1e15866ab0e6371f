from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrs3_loader.config import (
    CorpusConfig,
    DecodeConfig,
    LandmarkConfig,
    PlanConfig,
    RunConfig,
    WorkerConfig,
    as_json,
    demo_defaults,
    resolve,
)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: PlanConfig(shard_frames=0), "shard_frames"),
        (lambda: DecodeConfig(min_frames=-1), "min_frames"),
        (lambda: LandmarkConfig(min_valid_fraction=1.5), "min_valid_fraction"),
        (lambda: LandmarkConfig(frame_batch=0), "frame_batch"),
        (lambda: CorpusConfig(limit=0), "limit"),
        (lambda: WorkerConfig(num_workers=0), "num_workers"),
    ],
)
def test_wrong_values_are_refused_by_name(build, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=name):
        build()


@pytest.mark.parametrize(("device", "batch", "dtype"), [("cpu", 32, "float32"), ("cuda", 256, "bfloat16")])
def test_resolving_leaves_nothing_to_the_device(device: str, batch: int, dtype: str) -> None:
    config = resolve(RunConfig(), device)
    assert config.landmarks.frame_batch == batch
    assert config.speech.dtype == dtype
    assert config.speech.batch_seconds is not None
    assert resolve(config, "cpu") == resolve(config, "cuda") == config


def test_what_the_user_chose_is_kept() -> None:
    chosen = RunConfig(landmarks=LandmarkConfig(frame_batch=7))
    assert resolve(chosen, "cuda").landmarks.frame_batch == 7


def test_saved_config_is_plain_json() -> None:
    config = demo_defaults(RunConfig(corpus=CorpusConfig(corpus=Path("/data/x"), splits=("test",))))
    plain = as_json(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["corpus"]["corpus"] == "/data/x"
    assert plain["face"]["face_model"] == "demo"
