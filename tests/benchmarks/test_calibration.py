"""Calibration of the expression prior on some people and its measurement on others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import calibration
from benchmarks.fit_clips import Measured
from lrs3_loader.face.fit.expression_prior import GAINS, RESTING
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES
from support.face_factory import small_model, speaking_clip

MODEL = dataclasses.replace(
    small_model(), exp_names=("jawOpen", "mouthSmile_L", "mouthPucker", "browInnerUp", "eyeBlink_L", "press")
)


def scored_clip(name: str, seed: int, jaw_gain: float, resting_blink: float) -> Measured:
    """A clip whose scores are those of a network with this gain of the jaw and this score of open eyes."""
    clip, _, exp, _ = speaking_clip(MODEL, seed, 40, noise_px=0.05)
    scores = torch.zeros(40, len(BLENDSHAPE_NAMES))
    scores[:, BLENDSHAPE_NAMES.index("jawOpen")] = exp[:, 0] / jaw_gain
    blink = exp[:, 4] - exp[:, 4].quantile(0.1)
    scores[:, BLENDSHAPE_NAMES.index("eyeBlinkLeft")] = (resting_blink + blink).clamp(0, 1)
    return Measured(name, clip.lm68, clip.valid, clip.height, clip.width, blendshapes=scores)


def test_clips_belong_to_people() -> None:
    clips = [scored_clip(name, 0, 1.0, 0.0) for name in ("all/May_1", "all/kim", "all/MAYA_2")]
    assert calibration.people_of(clips, ["may"]) == ["may", "all/kim", "may"]


def test_gains_and_resting_scores_are_found_and_people_are_held_out() -> None:
    """Two people alike, and a third whose scores mean something else: who is left out does not count."""
    clips = [scored_clip(name, seed, 1.25, 0.15) for seed, name in enumerate(("a1", "a2", "b"))]
    clips.append(scored_clip("c", 3, 2.5, 0.4))
    people = calibration.people_of(clips, ["a"])
    assert people == ["a", "a", "b", "c"]
    plain = LandmarkFitter(MODEL, FitConfig.fast())(
        [dataclasses.replace(clip.fit_input(), blendshapes=None) for clip in clips]
    )
    found = calibration.calibrate(MODEL, clips[:3], plain[:3], people[:3])
    assert found.gains["jawOpen"] == pytest.approx(1.25, abs=0.11)
    assert found.resting["eyeBlink"] == pytest.approx(0.15, abs=0.01)
    assert found.gains.keys() == GAINS.keys() & {"jawOpen", "mouthPucker", "browInnerUp", "eyeBlink"}
    assert found.resting.keys() == RESTING.keys() & {"eyeBlink"}
    _, _, left_out = calibration.hold_out(MODEL, clips, people)
    assert left_out["c"] == found
    assert left_out["a"].gains["jawOpen"] > found.gains["jawOpen"]  # the third counts there
    lines = list(calibration.describe(MODEL, clips, people))
    assert lines[0].startswith("| 3 people |")
    assert sum("gain |" in line for line in lines) == 4
