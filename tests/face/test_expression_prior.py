"""The prior of expressions from blendshape scores."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lrs3_loader.face.fit.expression_prior import GAINS, RESTING, ExpressionPrior, score_of_mode
from lrs3_loader.face.fit.fitter import FitConfig, FitInput, LandmarkFitter
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES
from lrs3_loader.face.model.morphable import FaceModel
from support.face_factory import small_model, speaking_clip

PLAIN = small_model()
NAMED = dataclasses.replace(
    PLAIN, exp_names=("jawOpen", "mouthSmile_L", "mouthPucker", "browInnerUp_R", "eyeBlinkLeft", "press")
)
CONFIG = FitConfig()


def clip_of(scores: torch.Tensor, valid: torch.Tensor) -> FitInput:
    return FitInput(torch.zeros(len(valid), 68, 2), valid, 224, 224, blendshapes=scores)


@pytest.mark.smoke
def test_modes_have_the_scores_of_their_names() -> None:
    named = {name: score_of_mode(name) for name in (*NAMED.exp_names, "browInnerUp_L", "eyeLookIn_R", "jaw_open")}
    found = {name: None if place is None else BLENDSHAPE_NAMES[place] for name, place in named.items()}
    assert found == {
        "jawOpen": "jawOpen",
        "mouthSmile_L": "mouthSmileLeft",
        "mouthPucker": "mouthPucker",
        "browInnerUp_R": "browInnerUp",
        "eyeBlinkLeft": "eyeBlinkLeft",
        "press": None,
        "browInnerUp_L": "browInnerUp",
        "eyeLookIn_R": "eyeLookInRight",
        "jaw_open": None,
    }
    assert {*RESTING, *GAINS} <= {name.removesuffix("Left").removesuffix("Right") for name in BLENDSHAPE_NAMES}


def test_scores_give_the_mean_frame_by_frame() -> None:
    """As one number after another; frames without a face and modes without a score have the general prior."""
    scores = torch.rand(5, 52, generator=torch.Generator().manual_seed(0))
    scores[3] = torch.nan
    valid = torch.tensor([True, True, True, False, True])
    plain = clip_of(scores, valid)
    mean, precision = ExpressionPrior(NAMED, CONFIG)([plain, dataclasses.replace(plain, blendshapes=None)])
    for frame in range(10):
        for mode, name in enumerate(NAMED.exp_names):
            column = score_of_mode(name)
            if frame >= 5 or not valid[frame] or column is None:
                wanted, sigma = 0.0, float(NAMED.exp_sigma[mode]) / math.sqrt(CONFIG.exp_weight)
            else:
                base = name.removesuffix("_L").removesuffix("_R")
                rest, score = RESTING.get(base, 0.0), float(scores[frame, column])
                wanted = min(1.0, GAINS.get(base, 1.0) * max(0.0, score - rest) / (1 - rest))
                factor = 0.5 if name == "jawOpen" else 1.0
                sigma = min(CONFIG.score_sigma * factor, float(NAMED.exp_sigma[mode]) / 3)
            assert float(mean[frame, mode]) == pytest.approx(wanted, abs=1e-6)
            assert float(precision[frame, mode]) ** -0.5 == pytest.approx(sigma, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "config"),
    [(PLAIN, CONFIG), (NAMED, dataclasses.replace(CONFIG, score_sigma=math.inf)), (NAMED, FitConfig.geneface(NAMED))],
    ids=["no names", "switched off", "geneface"],
)
def test_other_models_and_modes_use_no_scores(model: FaceModel, config: FitConfig) -> None:
    fitter = LandmarkFitter(model, config)
    assert not fitter.uses_blendshapes
    clip, *_ = speaking_clip(PLAIN, 4, 12)
    (plain,) = fitter([clip])
    (scored,) = fitter([dataclasses.replace(clip, blendshapes=torch.ones(12, 52))])
    assert torch.equal(plain.exp, scored.exp)


def test_scores_tell_apart_what_landmarks_do_not() -> None:
    """Two modes that move the landmarks alike: the one whose score is high is on."""
    alike = PLAIN.exp_basis.clone()
    alike[..., 2] = alike[..., 0]
    model = dataclasses.replace(NAMED, exp_basis=alike)
    clip, _, exp, _ = speaking_clip(dataclasses.replace(PLAIN, exp_basis=alike), 6, 20, noise_px=0.1)
    true = exp[:, 0] + exp[:, 2]
    for name, other in (("jawOpen", "mouthPucker"), ("mouthPucker", "jawOpen")):
        scores = torch.zeros(20, 52)
        scores[:, BLENDSHAPE_NAMES.index(name)] = (true / GAINS[name]).clamp(0, 1)
        (result,) = LandmarkFitter(model)([dataclasses.replace(clip, blendshapes=scores)])
        on, off = (result.exp[:, model.exp_names.index(each)] for each in (name, other))
        assert float(on.mean()) > 5 * float(off.abs().mean())
    (unscored,) = LandmarkFitter(model)([clip])
    assert float((unscored.exp[:, 0] - unscored.exp[:, 2]).abs().max()) < 0.5  # shared


def test_a_clip_with_scores_has_the_same_numbers_in_any_company() -> None:
    generator = torch.Generator().manual_seed(1)
    clips = []
    for seed, num_frames in enumerate((40, 12, 40, 3)):
        scores = torch.rand(num_frames, 52, generator=generator) if seed != 2 else None
        clips.append(dataclasses.replace(speaking_clip(PLAIN, seed, num_frames)[0], blendshapes=scores))
    together = LandmarkFitter(NAMED)(clips)
    for clip, result in zip(clips, together, strict=True):
        (alone,) = LandmarkFitter(NAMED)([clip])
        for name in ("id", "exp", "pose"):
            assert torch.equal(getattr(alone, name), getattr(result, name))


@pytest.mark.parametrize(
    ("scores", "message"), [(torch.zeros(3, 51), r"\[T, 52\]"), (torch.full((3, 52), torch.nan), "finite")]
)
def test_bad_scores_are_refused(scores: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_of(scores, torch.ones(3, dtype=torch.bool))
