"""Is the calibration of the expression prior true of people that it was not made of?

Every person's clips are fitted with what the clips of all others give for resting scores and gains.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.coefficients import Meaning, judge, ways
from benchmarks.fit_clips import Measured
from lrs3_loader.face.fit.expression_prior import GAINS, RESTING, ExpressionPrior, score_of_mode, without_side
from lrs3_loader.face.fit.fitter import FitResult, LandmarkFitter
from lrs3_loader.face.model.morphable import FaceModel

#: Of the blendshape network to landmarks that ICT's own mode moves, where these have other explanations, so that the
#: slope of coefficients fitted to them alone is too low: the gain is the mean of both.
RESPONSES = {"mouthPucker": 0.85}
_DECILE, _STEP = 0.1, 0.05


@dataclass(frozen=True)
class Calibration:
    """By names without sides, see ``expression_prior``."""

    resting: dict[str, float]
    gains: dict[str, float]


def people_of(clips: Sequence[Measured], people: Sequence[str]) -> list[str]:
    """Name the person of each clip: the one of ``people`` that occurs in its name, else the name itself."""
    return [next((each for each in people if each.lower() in clip.name.lower()), clip.name) for clip in clips]


def calibrate(
    model: FaceModel, clips: Sequence[Measured], plain: Sequence[FitResult], people: Sequence[str]
) -> Calibration:
    """Find resting scores and gains of the names that have any, in steps of 0.05.

    Args:
        plain: the fits of ``clips`` without scores.
        people: of each clip; every person counts once for a resting score.
    """
    resting = {name: _in_steps(_resting(model, name, clips, people)) for name in RESTING if _modes(model, name)}
    gains = {}
    for name in filter(partial(_modes, model), GAINS):
        slope = _slope(model, name, clips, plain, resting.get(name, 0.0))
        gains[name] = _in_steps((slope + RESPONSES[name]) / 2 if name in RESPONSES else slope)
    return Calibration(resting, gains)


def _in_steps(value: float) -> float:
    return round(_STEP * round(value / _STEP), 2)


def _modes(model: FaceModel, name: str) -> list[tuple[int, int]]:
    """Modes of this name, of one side or both, each with the column of its score."""
    found = [(mode, score_of_mode(each)) for mode, each in enumerate(model.exp_names) if without_side(each) == name]
    return [(mode, column) for mode, column in found if column is not None]


def _scores(clip: Measured, column: int) -> torch.Tensor:
    assert clip.blendshapes is not None
    return clip.blendshapes[clip.valid, column].double()


def _resting(model: FaceModel, name: str, clips: Sequence[Measured], people: Sequence[str]) -> float:
    deciles: dict[str, list[float]] = {}
    for clip, person in zip(clips, people, strict=True):
        for _, column in _modes(model, name):
            deciles.setdefault(person, []).append(float(_scores(clip, column).quantile(_DECILE)))
    return statistics.median(map(statistics.mean, deciles.values()))


def _slope(model: FaceModel, name: str, clips: Sequence[Measured], plain: Sequence[FitResult], resting: float) -> float:
    """Slope of coefficients against scores above ``resting`` within the clips, by least squares; 1 if none varies."""
    products, squares = [], []
    for clip, result in zip(clips, plain, strict=True):
        for mode, column in _modes(model, name):
            above = (_scores(clip, column) - resting).clamp(min=0) / (1 - resting)
            above = above - above.mean()
            products.append(float(above @ result.exp[clip.valid, mode].double()))
            squares.append(float(above @ above))
    return math.fsum(products) / math.fsum(squares) if any(squares) else 1.0


def hold_out(
    model: FaceModel, clips: Sequence[Measured], people: Sequence[str]
) -> tuple[Meaning, Meaning, Mapping[str, Calibration]]:
    """What the calibration of this package makes of the clips, what those of the other people make, and the latter."""
    config, inputs = ways(clips)["with scores"]
    plain_config, plain_inputs = ways(clips)["without scores"]
    plain = LandmarkFitter(model, plain_config)(plain_inputs)
    results: dict[int, FitResult] = {}
    found = {}
    for person in dict.fromkeys(people):
        others = [number for number, each in enumerate(people) if each != person]
        found[person] = calibrate(
            model, [clips[k] for k in others], [plain[k] for k in others], [people[k] for k in others]
        )
        own = [number for number, each in enumerate(people) if each == person]
        prior = ExpressionPrior(model, config, found[person].resting, found[person].gains)
        fitted = LandmarkFitter(model, config, exp_prior=prior)([inputs[number] for number in own])
        results |= dict(zip(own, fitted, strict=True))
    held_out = judge(model, clips, [results[number] for number in range(len(clips))])
    return judge(model, clips, LandmarkFitter(model, config)(inputs)), held_out, found


def describe(model: FaceModel, clips: Sequence[Measured], people: Sequence[str]) -> Iterator[str]:
    """The table of text."""
    ours, held_out, found = hold_out(model, clips, people)
    yield f"| {len(found)} people | as it comes | calibrated on the others |"
    yield "|---|---|---|"
    worst = (f"{max(way.both_on.values())[0]:.1%}" for way in (ours, held_out))
    yield f"| opposites both above 0.2: frames, of the worst pair | {' | '.join(worst)} |"
    for title, field in (("error, all landmarks / face", "relative_error"), ("error, mouth", "relative_mouth_error")):
        yield f"| {title} | {' | '.join(f'{getattr(way, field):.4f}' for way in (ours, held_out))} |"
    for kind, given in (("gains", GAINS), ("resting", RESTING)):
        for name, value in given.items():
            values = [getattr(each, kind)[name] for each in found.values() if name in getattr(each, kind)]
            if not values:
                continue
            spread = f"{min(values):.2f} to {max(values):.2f}"
            agreement = (
                f"r = {way.of(name).correlation:.2f}, {way.of(name).within_clips:.2f}" for way in (ours, held_out)
            )
            first, second = agreement
            yield f"| {name}, {kind.removesuffix('s')} | {value:.2f}: {first} | {spread}: {second} |"
