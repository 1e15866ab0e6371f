"""Do fitted coefficients mean what they are called? Against MediaPipe's blendshape scores on real clips.

Letters: T frames of a clip, E expression modes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.fit_clips import Measured, read_clips
from benchmarks.fit_truth import bfm_shaped_model, speaking_clip
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import FaceConfig
from lrs3_loader.extraction.models import load_face_model
from lrs3_loader.face.fit.expression_prior import score_of_mode, without_side
from lrs3_loader.face.fit.fitter import FitConfig, FitInput, FitResult, LandmarkFitter
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES
from lrs3_loader.face.model.morphable import FaceModel

#: Names of modes that exclude each other; with ``*``, on either side.
OPPOSITES = (
    ("mouthLeft", "mouthRight"), ("jawLeft", "jawRight"), ("eyeLookIn*", "eyeLookOut*"), ("eyeLookUp*", "eyeLookDown*"),
    ("eyeBlink*", "eyeWide*"), ("mouthSmile*", "mouthFrown*"), ("browDown*", "browOuterUp*"),
)  # fmt: skip
ON = 0.2  # a coefficient above this counts as on
VARIES = 0.03  # standard deviation of a score over a clip from which on a correlation says something
_NEUTRAL_CLIPS, _NEUTRAL_FRAMES = 8, 50


@dataclass(frozen=True)
class Agreement:
    """One mode (both sides together) against its score over real clips."""

    name: str
    correlation: float  # over the frames of all clips
    within_clips: float  # mean over the clips in which the score varies, by their frames; NaN: it varies in none
    least: float  # of those clips
    num_clips: int
    score_p95: float
    exp_p95: float


@dataclass(frozen=True)
class Meaning:
    """What one way to fit makes of real clips."""

    agreements: list[Agreement]
    both_on: dict[str, tuple[float, float]]  # share of frames with both opposites on: of all clips, of the worst clip
    relative_error: float  # mean over clips
    relative_mouth_error: float
    id_norm: float  # mean length of the identities, in standard deviations

    def of(self, name: str) -> Agreement:
        return next(each for each in self.agreements if each.name == name)


def judge(model: FaceModel, clips: Sequence[Measured], results: Sequence[FitResult]) -> Meaning:
    """Compare the results of clips that have scores with these."""
    names = dict.fromkeys(without_side(name) for name in model.exp_names)
    agreements = [_agreement(model, name, clips, results) for name in names]
    both_on = {}
    for pair in OPPOSITES:
        shares = [_share_on(model, pair, result.exp) for result in results]
        lengths = [len(result.exp) for result in results]
        mean = math.fsum(a * n for a, n in zip(shares, lengths, strict=True)) / sum(lengths)
        both_on["/".join(pair).replace("*", "")] = (mean, max(shares))
    return Meaning(
        agreements=[each for each in agreements if each is not None],
        both_on=both_on,
        relative_error=statistics.mean(result.relative_error for result in results),
        relative_mouth_error=statistics.mean(result.relative_mouth_error for result in results),
        id_norm=statistics.mean(float((result.id / model.id_sigma).norm()) for result in results),
    )


def _agreement(
    model: FaceModel, name: str, clips: Sequence[Measured], results: Sequence[FitResult]
) -> Agreement | None:
    found, scored = [], []
    for mode, each in enumerate(model.exp_names):
        column = score_of_mode(each)
        if without_side(each) == name and column is not None:
            found.append(mode)
            scored.append(column)
    if not found:
        return None
    parts = []
    for clip, result in zip(clips, results, strict=True):
        assert clip.blendshapes is not None
        exp, scores = result.exp[clip.valid], clip.blendshapes[clip.valid]
        parts += [(exp[:, mode], scores[:, column]) for mode, column in zip(found, scored, strict=True)]
    exp, scores = (torch.cat(part) for part in zip(*parts, strict=True))
    varied = [(correlation(*part), len(part[0])) for part in parts if float(part[1].std()) > VARIES]
    num_frames = sum(count for _, count in varied)
    return Agreement(
        name=name,
        correlation=correlation(exp, scores),
        within_clips=math.fsum(r * count for r, count in varied) / num_frames if varied else math.nan,
        least=min((r for r, _ in varied), default=math.nan),
        num_clips=len(varied) // len(found),
        score_p95=float(scores.quantile(0.95)),
        exp_p95=float(exp.quantile(0.95)),
    )


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Pearson's correlation of two series; 0 where one is constant."""
    first, second = first.double() - first.double().mean(), second.double() - second.double().mean()
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size > 0 else 0.0


def _share_on(model: FaceModel, pair: tuple[str, str], exp: torch.Tensor) -> float:
    """Share of frames in which both of a pair are on, on the side where that is more frequent."""
    shares = [0.0]
    for side in ("_L", "_R") if pair[0].endswith("*") else ("",):
        first, second = (name.replace("*", side) for name in pair)
        if first in model.exp_names and second in model.exp_names:
            on = [exp[:, model.exp_names.index(name)] > ON for name in (first, second)]
            shares.append(float((on[0] & on[1]).float().mean()))
    return max(shares)


def neutral_expression(model: FaceModel, config: FitConfig) -> tuple[float, float]:
    """What is fitted to random people without any expression (0.5 px of noise): root mean square of the coefficients,
    and of each clip's mean, both in ``exp_sigma``. Scores of a neutral face are 0."""
    inputs = []
    for seed in range(_NEUTRAL_CLIPS):
        still = speaking_clip(model, seed, _NEUTRAL_FRAMES, id_share=1.0, exp_share=0.0).clip
        scores = torch.zeros(_NEUTRAL_FRAMES, len(BLENDSHAPE_NAMES))
        inputs.append(replace(still, blendshapes=scores))
    found = [result.exp / model.exp_sigma for result in LandmarkFitter(model, config)(inputs)]
    whole = torch.stack(found)
    return float(whole.square().mean().sqrt()), float(whole.mean(1).square().mean().sqrt())


def ways(clips: Sequence[Measured]) -> dict[str, tuple[FitConfig, list[FitInput]]]:
    """The default fit, and the same without scores: config and inputs of each."""
    inputs = [replace(clip.fit_input(), lm468=None) for clip in clips]
    return {
        "with scores": (FitConfig.fast(), inputs),
        "without scores": (FitConfig.fast(), [replace(each, blendshapes=None) for each in inputs]),
    }


def run_benchmark(corpus: Path, face_model: str, assets: Assets, people: Sequence[str] = ()) -> Iterator[str]:
    """All tables, line by line. ``corpus``: a folder of real clips; ``face_model`` as ``FaceConfig.face_model``;
    ``people`` as ``calibration.people_of``."""
    from benchmarks import calibration  # which judges by this module

    torch.set_num_threads(1)
    assets.ensure(face_model)
    model = load_face_model(FaceConfig(face_model), assets)
    clips = [clip for clip in read_clips(corpus, assets) if clip.blendshapes is not None]
    if not clips:
        yield "no clip with a face, or a landmarker without blendshape network: nothing to compare with"
        return
    found = {}
    for name, (config, inputs) in ways(clips).items():
        found[name] = judge(model, clips, LandmarkFitter(model, config)(inputs))
    num_frames = sum(len(clip.valid) for clip in clips)
    yield f"{len(clips)} clips, {num_frames} frames, face model {model.name}"
    yield ""
    yield from describe(found)
    yield ""
    yield "| neutral faces, 0.5 px of noise | coefficients, standard deviations | their means over a clip |"
    yield "|---|---|---|"
    for each in (model, bfm_shaped_model()):
        whole, mean = neutral_expression(each, FitConfig.fast())
        yield f"| {each.name} | {whole:.2f} | {mean:.2f} |"

    if people:
        yield ""
        yield from calibration.describe(model, clips, calibration.people_of(clips, people))


def describe(found: dict[str, Meaning]) -> Iterator[str]:
    """Tables of text: what holds for all coefficients, and each with its score."""
    first, second = found
    yield f"| | {first} | {second} |"
    yield "|---|---|---|"
    for pair in found[first].both_on:
        shares = [f"{mean:.1%} ({worst:.1%})" for mean, worst in (way.both_on[pair] for way in found.values())]
        yield f"| {pair} both above {ON}: frames (worst clip) | {' | '.join(shares)} |"
    for title, field, digits in (
        ("error, all landmarks / face", "relative_error", 4),
        ("error, mouth / face", "relative_mouth_error", 4),
        ("length of the identity", "id_norm", 1),
    ):
        yield f"| {title} | {' | '.join(f'{getattr(way, field):.{digits}f}' for way in found.values())} |"
    yield ""
    yield f"| coefficient | r: {first} | in a clip (least; clips) | {second} | in a clip | 95 %: score | coefficient |"
    yield "|---|---|---|---|---|---|---|"
    for ours, plain in zip(*(way.agreements for way in found.values()), strict=True):
        inside, other = "-", "-"
        if ours.num_clips:
            inside = f"{ours.within_clips:.2f} ({ours.least:.2f}; {ours.num_clips})"
            other = f"{plain.within_clips:.2f}"
        yield (
            f"| {ours.name} | {ours.correlation:.2f} | {inside} | {plain.correlation:.2f} | {other} | "
            f"{ours.score_p95:.2f} | {ours.exp_p95:.2f} |"
        )
