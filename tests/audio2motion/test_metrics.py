"""The figures against slow and obvious references, and the baselines against closed forms."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lrs3_loader.audio2motion.baselines import Ridge, RidgeClip, windows
from lrs3_loader.audio2motion.evaluate import ClipFigures, MotionEvaluation
from lrs3_loader.audio2motion.metrics import (
    centred_mouth_error_mm,
    diversity_mm,
    mouth_error_mm,
    mouth_speed_mm,
    opening_correlation,
    velocity_error_mm,
)
from lrs3_loader.audio2motion.targets import Target
from lrs3_loader.demo.head import demo_head

RANDOM = np.random.default_rng(0)
TRUE, FOUND = RANDOM.normal(size=(2, 12, 68, 3))
VALID = np.ones(12, dtype=bool)
VALID[[4, 9]] = False


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5)


def test_errors_are_mean_distances_over_the_mouth_and_the_frames_with_a_face() -> None:
    frames = [t for t in range(12) if VALID[t]]
    slow = np.mean([distance(FOUND[t, p], TRUE[t, p]) for t in frames for p in range(48, 68)])
    assert mouth_error_mm(FOUND, TRUE, VALID) == pytest.approx(slow)
    shifted = FOUND + np.array([3.0, -4.0, 12.0])
    assert mouth_error_mm(FOUND, FOUND + np.array([3.0, -4.0, 12.0]), VALID) == pytest.approx(13)
    assert centred_mouth_error_mm(shifted, FOUND, VALID) == pytest.approx(0, abs=1e-12)
    assert centred_mouth_error_mm(shifted, TRUE, VALID) == pytest.approx(centred_mouth_error_mm(FOUND, TRUE, VALID))


def test_velocities_are_of_neighbouring_frames_with_a_face() -> None:
    steps = [t for t in range(11) if VALID[t] and VALID[t + 1]]
    slow = np.mean(
        [distance(FOUND[t + 1, p] - FOUND[t, p], TRUE[t + 1, p] - TRUE[t, p]) for t in steps for p in range(48, 68)]
    )
    assert velocity_error_mm(FOUND, TRUE, VALID) == pytest.approx(slow)
    line = np.arange(12.0)[:, None, None] * np.array([0.0, 0.6, 0.8]) + np.zeros((12, 68, 3))
    assert mouth_speed_mm(line, VALID) == pytest.approx(1)
    assert velocity_error_mm(FOUND, TRUE, np.arange(12) % 2 == 0) == 0


def test_opening_is_correlated_by_pearson() -> None:
    gaps = [(each[:, 62, 1] - each[:, 66, 1])[VALID] for each in (FOUND, TRUE)]
    assert opening_correlation(FOUND, TRUE, VALID) == pytest.approx(np.corrcoef(*gaps)[0, 1])
    assert opening_correlation(-2 * TRUE + 7, TRUE, VALID) == pytest.approx(-1)
    assert opening_correlation(np.zeros_like(TRUE), TRUE, VALID) == 0


def test_diversity_is_the_mean_over_pairs() -> None:
    samples = RANDOM.normal(size=(4, 12, 68, 3))
    slow = np.mean([mouth_error_mm(samples[a], samples[b], VALID) for a, b in combinations(range(4), 2)])
    assert diversity_mm(samples, VALID) == pytest.approx(slow)
    assert diversity_mm([TRUE, TRUE], VALID) == 0


def test_targets_are_in_millimetres() -> None:
    head = demo_head()
    exp = RANDOM.uniform(size=(3, head.num_exp)).astype(np.float32)
    import torch

    moved = head.landmarks(torch.zeros(head.num_id), torch.from_numpy(exp)) - head.landmark_mean  # decimetres
    np.testing.assert_allclose(Target("exp", head).landmark_offsets_mm(exp), 100 * moved.numpy(), atol=1e-4)
    idexp = head.idexp_lm3d(torch.zeros(head.num_id), torch.from_numpy(exp)).reshape(3, 204).numpy()
    np.testing.assert_allclose(Target("idexp_lm3d").landmark_offsets_mm(idexp), 100 * moved.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="exp needs the face model"):
        Target("exp")
    with pytest.raises(ValueError, match="must be one of idexp_lm3d, exp, got 'pose'"):
        Target("pose")


def test_windows_are_the_frames_around_each() -> None:
    inputs = RANDOM.normal(size=(8, 3))
    x = windows(inputs)
    assert x.shape == (4, 3 * 11 + 1)
    frames = [(inputs[2 * t] + inputs[2 * t + 1]) / 2 for t in range(4)]
    around = x[1, :-1].reshape(3, 11)
    for offset in range(-5, 6):
        expected = frames[1 + offset] if 0 <= 1 + offset < 4 else np.zeros(3)
        np.testing.assert_allclose(around[:, 5 + offset], expected)
    assert (x[:, -1] == 1).all()


def make_clips(noise: float) -> list[RidgeClip]:
    random = np.random.default_rng(1)
    truth = random.normal(size=(2 * 11 + 1, 3))
    clips = []
    for number in range(10):
        inputs = random.normal(size=(40, 2))
        motion = windows(inputs) @ truth + noise * random.normal(size=(20, 3))
        valid = random.uniform(size=20) > 0.2
        clips.append(RidgeClip(f"speaker{number // 2}", inputs, np.where(valid[:, None], motion, 99.0), valid))
    return clips


def test_ridge_regression_is_least_squares_with_penalty_rows() -> None:
    clips = make_clips(noise=0.5)
    fitted = Ridge.fit(clips, ridges=[7.0])
    x = np.concatenate([windows(clip.inputs)[clip.valid] for clip in clips])
    y = np.concatenate([clip.motion[clip.valid] for clip in clips])
    penalty = np.sqrt(7.0) * np.eye(x.shape[1])[:-1]  # none for the constant
    closed, *_ = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([y, np.zeros((len(penalty), 3))]), None)
    np.testing.assert_allclose(fitted.weights, closed, atol=1e-8)
    np.testing.assert_allclose(fitted(clips[0].inputs), windows(clips[0].inputs) @ closed, atol=1e-8)


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_the_ridge_is_that_with_the_least_error_on_other_speakers(noise: float) -> None:
    clips, ridges = make_clips(noise), [1e-3, 1.0, 1e2, 1e4]
    asked = {"speaker0"}  # of five speakers every fifth
    errors = []
    for ridge in ridges:
        part = Ridge.fit([clip for clip in clips if clip.speaker not in asked], [ridge])
        errors.append(
            sum(((part(clip.inputs) - clip.motion)[clip.valid] ** 2).sum() for clip in clips if clip.speaker in asked)
        )
    assert Ridge.fit(clips, ridges).ridge == ridges[int(np.argmin(errors))]
    assert (Ridge.fit(clips, ridges).ridge > 1) == (noise > 0)


def test_one_speaker_is_not_enough_for_a_ridge() -> None:
    with pytest.raises(ValueError, match="need two"):
        Ridge.fit(make_clips(0.0)[:2])


def test_an_evaluation_averages_over_the_clips_that_have_a_figure() -> None:
    evaluation = MotionEvaluation.of([ClipFigures("b", {"x": 3.0, "sync": 0.5}), ClipFigures("a", {"x": 1.0})])
    assert evaluation.figures == {"x": 2.0, "sync": 0.5}
    assert [clip.key for clip in evaluation.clips] == ["a", "b"]
    assert evaluation.details()["clips"]["b"] == {"x": 3.0, "sync": 0.5}
    with pytest.raises(ValueError, match="no clip"):
        MotionEvaluation.of([])
