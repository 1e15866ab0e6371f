"""The fitting benchmark as tables of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.fit import Comparisons, HeldOut, SmallFace, compare_with_adam, held_out, small_faces, truth_table
from benchmarks.fit_clips import Measured, read_clips
from benchmarks.fit_truth import bfm_shaped_model, speaking_clip
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import FaceConfig
from lrs3_loader.extraction.models import load_face_model
from lrs3_loader.face.fit.fitter import FitConfig
from lrs3_loader.face.model.morphable import FaceModel

_SYNTHETIC_FRAMES = (40, 75, 125)


def synthetic_clips(model: FaceModel) -> list[Measured]:
    """Speaking clips of the model itself, for where there are no real ones."""
    clips = []
    for seed, num_frames in enumerate(_SYNTHETIC_FRAMES):
        given = speaking_clip(model, seed, num_frames).clip
        clips.append(Measured(f"synthetic {seed}", given.lm68, given.valid, given.height, given.width))
    return clips


def run_benchmark(
    corpus: Path | None, face_model: str, assets: Assets, num_clips: int, num_frames: int, num_runs: int
) -> Iterator[str]:
    """All tables, line by line.

    Args:
        corpus: folder of real clips; None for synthetic ones, without the comparison of dense points.
        face_model: as ``FaceConfig.face_model``.
        num_clips: synthetic truths for each model and kind of noise, of ``num_frames`` each.
        num_runs: of each timing.
    """
    torch.set_num_threads(1)
    if face_model != "demo":
        assets.ensure_face_model(face_model)
    model = load_face_model(FaceConfig(face_model), assets)
    clips = synthetic_clips(model) if corpus is None else list(read_clips(corpus, assets))
    yield f"{len(clips)} clips, face model {model.name}, one thread, processor time"
    yield ""
    yield from describe_comparisons(compare_with_adam(model, clips, num_runs))
    yield ""
    yield from describe_small(small_faces(model, clips))
    yield ""
    if model.dense is not None and all(clip.dense is not None for clip in clips):
        for name, config in (("fast", FitConfig.fast()), ("best", FitConfig.best())):
            yield from describe_held_out(name, clips, held_out(model, clips, config))
            yield ""
    models = [model, bfm_shaped_model()]
    yield from describe_truth(models, num_clips, num_frames)


def describe_comparisons(found: Comparisons) -> Iterator[str]:
    yield "| clip | frames | objective: Adam | ours | lower by | px all / mouth: Adam | ours | frames/s: Adam | ours |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for clip in found.clips:
        yield (
            f"| {clip.name} | {clip.num_frames} | {clip.adam_objective:.3f} | {clip.objective:.3f} | {clip.gain:.1%} | "
            f"{clip.adam_px[0]:.2f} / {clip.adam_px[1]:.2f} | {clip.px[0]:.2f} / {clip.px[1]:.2f} | "
            f"{clip.num_frames / clip.adam_seconds:.0f} | {clip.num_frames / clip.seconds:.0f} |"
        )
    adam = sum(clip.adam_seconds for clip in found.clips)
    fine = sum(clip.adam_fine_seconds for clip in found.clips)
    yield ""
    yield (
        f"all clips: Adam {found.num_frames / adam:.0f} frames/s ({found.num_frames / fine:.0f} with its lost stage), "
        f"ours {found.num_frames / found.seconds:.0f} in one call: {found.speedup:.1f} times ({found.fine_speedup:.1f})"
    )


def describe_small(found: Sequence[SmallFace]) -> Iterator[str]:
    yield "| face / frame | clips | degrees moved at most: Adam | ours, same objective | ours, fast |"
    yield "|---|---|---|---|---|"
    for row in found:
        yield (
            f"| 1/{round(1 / row.share)} | {len(row.default)} | {_largest(row.adam)} | "
            f"{_largest(row.same_objective)} | {_largest(row.default)} |"
        )


def _largest(values: Sequence[float]) -> str:
    return f"{max(values):.2f}" if values else "-"


def describe_held_out(name: str, clips: Sequence[Measured], found: HeldOut) -> Iterator[str]:
    yield f"| clip ({name}) | lips: 68 points | dense | around the mouth: 68 points | dense |"
    yield "|---|---|---|---|---|"
    columns = (found.lips_68, found.lips_dense, found.around_68, found.around_dense)
    for clip, *values in zip(clips, *columns, strict=True):
        yield f"| {clip.name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"
    means = (math.fsum(column) / len(column) for column in columns)
    yield "| mean, % of the face's size | " + " | ".join(f"{value:.3f}" for value in means) + " |"


def describe_truth(models: Sequence[FaceModel], num_clips: int, num_frames: int) -> Iterator[str]:
    yield f"{num_clips} synthetic clips of {num_frames} frames in each row"
    yield "| model, noise, config | expression error (worst) | rotation, degrees (worst) | px | not converged |"
    yield "|---|---|---|---|---|"
    for name, row in truth_table(models, num_clips, num_frames):
        yield (
            f"| {name} | {row.expression:.3f} ({row.worst_expression:.3f}) | {row.rotation_degrees:.2f} "
            f"({row.worst_rotation_degrees:.2f}) | {row.reprojection_px:.3f} | {row.num_unconverged} |"
        )
