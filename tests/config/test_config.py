from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrs3_loader.config import (
    CorpusConfig,
    DecodeConfig,
    FaceConfig,
    LandmarkConfig,
    PlanConfig,
    QualityConfig,
    RegressionConfig,
    RunConfig,
    SpeechConfig,
    WorkerConfig,
    as_json,
    demo_defaults,
    inherit_auto_values,
    resolve,
    upgrade_saved,
    with_current_flags,
)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: PlanConfig(shard_frames=0), "shard_frames"),
        (lambda: DecodeConfig(min_frames=-1), "min_frames"),
        (lambda: LandmarkConfig(min_valid_fraction=1.5), "min_valid_fraction"),
        (lambda: LandmarkConfig(frame_batch=0), "frame_batch"),
        (lambda: CorpusConfig(limit=0), "limit"),
        (lambda: QualityConfig(max_scene_cuts=-1), "max_scene_cuts"),
        (lambda: QualityConfig(level="basic", max_scene_cuts=0), "quality full"),
        (lambda: QualityConfig(scene_cut_strength=0.0), "scene_cut_strength"),
        (lambda: WorkerConfig(num_workers=0), "num_workers"),
    ],
)
def test_wrong_values_are_refused_by_name(build, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=name):
        build()


@pytest.mark.parametrize(
    ("device", "free_gib", "batches", "dtypes"),
    [
        ("cpu", 0, (32, 20.0, 8), ("float32", "float32")),
        ("cuda", 0, (16, 16.0, 16), ("bfloat16", "float16")),
        ("cuda", 22, (128, 128.0, 128), ("bfloat16", "float16")),
        ("cuda", 78, (512, 512.0, 512), ("bfloat16", "float16")),
        ("cuda", 1000, (1024, 1280.0, 512), ("bfloat16", "float16")),
    ],
)
def test_resolving_leaves_nothing_to_the_device(
    device: str, free_gib: int, batches: tuple[int, float, int], dtypes: tuple[str, str]
) -> None:
    config = resolve(RunConfig(), device, free_gib << 30)
    assert (config.landmarks.frame_batch, config.speech.batch_seconds, config.regression.batch) == batches
    assert (config.speech.dtype, config.regression.dtype) == dtypes
    assert resolve(config, "cuda", 1 << 30) == config
    assert config.kernels == ("plain" if device == "cpu" else "auto")  # that is found out when models are loaded
    assert resolve(config, "cpu") == replace(config, kernels="plain")


def test_a_run_keeps_the_batches_it_was_begun_with() -> None:
    begun = resolve(RunConfig(), "cuda", 78 << 30)
    later = resolve(inherit_auto_values(RunConfig(), as_json(begun)), "cuda", 4 << 30)
    assert later == begun
    chosen = RunConfig(landmarks=LandmarkConfig(frame_batch=7))
    assert inherit_auto_values(chosen, as_json(begun)).landmarks.frame_batch == 7


def test_runs_without_levels_of_quality_go_on_without() -> None:
    saved = as_json(resolve(RunConfig(), "cpu"))
    assert saved["quality"]["level"] == "full"
    del saved["quality"]
    resumed = resolve(inherit_auto_values(RunConfig(), upgrade_saved(saved)), "cpu")
    assert resumed.quality.level == "none"
    assert as_json(resumed) == upgrade_saved(saved)


def test_what_the_user_chose_is_kept() -> None:
    chosen = RunConfig(landmarks=LandmarkConfig(frame_batch=7))
    assert resolve(chosen, "cuda").landmarks.frame_batch == 7


def test_saved_config_is_plain_json() -> None:
    config = demo_defaults(RunConfig(corpus=CorpusConfig(corpus=Path("/data/x"), splits=("test",))))
    plain = as_json(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["corpus"]["corpus"] == "/data/x"
    assert plain["face"]["face_model"] == "demo"


def test_config_fields_are_known_by_their_earlier_names() -> None:
    saved = as_json(RunConfig(decode=DecodeConfig(max_av_mismatch_seconds=0.75)))
    old = saved | {"decode": dict(saved["decode"])}
    old["decode"]["max_sound_gap_seconds"] = old["decode"].pop("max_av_mismatch_seconds")
    assert upgrade_saved(old) == upgrade_saved(saved) == saved
    assert "max_sound_gap_seconds" in old["decode"]


@pytest.mark.parametrize("old", ["--max-sound-gap-seconds", "--max_sound_gap_seconds"])
def test_flags_are_known_by_their_earlier_names(old: str) -> None:
    words = [old, "0.5", f"{old}=0.5", "--limit", "3", "sound-gap"]
    new = "--max-av-mismatch-seconds"
    assert with_current_flags(words) == [new, "0.5", f"{new}=0.5", "--limit", "3", "sound-gap"]


def test_local_models_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hubert").mkdir()
    Path("face.npz").touch()
    config = RunConfig(
        face=FaceConfig(face_model="face.npz"),
        speech=SpeechConfig(model="hubert", also=("demo", "facebook/hubert-base-ls960")),
        regression=RegressionConfig(checkpoint=Path("epoch_20.pth")),
    )
    config = resolve(config, "cpu")
    assert config.face.face_model == str(tmp_path / "face.npz")
    assert config.speech.models == (str(tmp_path / "hubert"), "demo", "facebook/hubert-base-ls960")
    assert config.regression.checkpoint == tmp_path / "epoch_20.pth"
    assert resolve(RunConfig(), "cpu").face.face_model == "ict"
