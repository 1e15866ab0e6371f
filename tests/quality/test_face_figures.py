"""Figures of the face on points and poses whose motion, noise and identity are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.quality.face import RIGID_POINTS, face_figures, identity_figures

NUM = 101


def flat_face(size: float = 100.0, centre: tuple[float, float] = (112.0, 112.0)) -> np.ndarray:
    """68 points whose box is a square of this size."""
    points = np.random.default_rng(0).uniform(0, 1, (68, 2))
    points[:2], points[30] = [[0, 0], [1, 1]], [0.5, 0.5]
    return (points - 0.5) * size + np.array(centre)


def measure(points: np.ndarray, angles: np.ndarray | None = None, valid: np.ndarray | None = None) -> dict[str, float]:
    pose = np.zeros((len(points), 6), np.float32)
    if angles is not None:
        pose[:, :3] = np.radians(angles)
    valid = np.ones(len(points), bool) if valid is None else valid
    return face_figures(points.astype(np.float32), pose, valid, 224, 300)


def test_size_share_and_zoom() -> None:
    zoom = np.linspace(1, 1.5, NUM)
    points = np.stack([flat_face(100 * factor) for factor in zoom])
    figures = measure(points)
    assert figures["face_side_min_px"] == pytest.approx(100)
    assert figures["face_share_min"] == pytest.approx(100**2 / (224 * 300))
    assert figures["face_share_mean"] == pytest.approx(np.square(100 * zoom).mean() / (224 * 300))
    assert figures["face_size_ratio"] == pytest.approx(1.475 / 1.025)


def test_frames_without_the_face_do_not_count() -> None:
    points, valid = np.stack([flat_face()] * NUM), np.ones(NUM, bool)
    points[40:45] = 3.0
    valid[40:45] = False
    assert measure(points, valid=valid) == measure(np.stack([flat_face()] * NUM))


def test_a_face_that_leaves_the_frame_is_not_complete() -> None:
    points = np.stack([flat_face(centre=(112, 112)), flat_face(centre=(0, 112))])
    figures = measure(points)
    inside = (points[1, :, 0] >= -0.5).mean()
    assert 0.3 < inside < 0.7
    assert figures["face_inside_min"] == pytest.approx(inside)
    assert figures["face_inside_mean"] == pytest.approx((1 + inside) / 2)
    assert figures["features_inside_min"] == pytest.approx((points[1, 17:, 0] >= -0.5).mean())


def test_a_head_turn_has_its_angles_and_speed() -> None:
    yaw = np.linspace(-30, 30, NUM)  # 60 degrees in 4 seconds
    angles = np.stack([np.full(NUM, 5.0), yaw, np.zeros(NUM)], 1)
    figures = measure(np.stack([flat_face()] * NUM), angles)
    assert [figures[f"yaw_p{p}"] for p in ("05", "50", "95")] == pytest.approx([-27, 0, 27], abs=1e-4)
    assert figures["pitch_p50"] == pytest.approx(5, abs=1e-5)
    assert figures["roll_p95"] == 0
    assert figures["turn_speed_p95"] == pytest.approx(15, rel=1e-3)
    assert figures["turn_1s_mean"] == pytest.approx(15, rel=1e-4)
    assert figures["turn_1s_max"] == pytest.approx(15, rel=1e-4)
    assert figures["off_axis_max"] == pytest.approx(np.hypot(30, 5), rel=1e-5)


def test_a_face_that_moves_has_its_speed() -> None:
    points = np.stack([flat_face(centre=(80 + 0.8 * t, 112)) for t in range(NUM)])  # 20 pixels a second
    figures = measure(points)
    assert figures["shift_speed_p95"] == pytest.approx(0.2, rel=1e-4)
    assert figures["shift_1s_max"] == pytest.approx(20 / 2 / 224, rel=1e-4)  # the mean of x and y
    assert figures["landmark_jitter"] < 1e-3


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_jitter_is_the_noise_of_the_landmarks(sigma: float) -> None:
    points = np.stack([flat_face(centre=(80 + 0.4 * t, 112)) for t in range(400)])
    points += np.random.default_rng(1).normal(0, sigma, points.shape)
    for t in range(400):  # the box, and with it the size, stays
        centre = np.array([80 + 0.4 * t, 112])
        points[t, :2] = [centre - 50, centre + 50]
    assert measure(points)["landmark_jitter"] == pytest.approx(sigma, rel=0.06)


def test_clips_of_a_frame_or_two_have_what_can_be_measured() -> None:
    one, two = measure(flat_face()[None]), measure(np.stack([flat_face()] * 2))
    assert np.isnan(one["landmark_jitter"])
    assert "turn_speed_p95" not in one
    assert two["turn_speed_p95"] == 0
    assert two["shift_1s_max"] == 0


def person(seed: int) -> np.ndarray:
    """The mesh of a person; two differ by a random change of the rigid points."""
    base = np.random.default_rng(0).normal(size=(468, 3)) * [40, 40, 20]
    return base + np.random.default_rng(seed).normal(0, 4, base.shape)


def filmed(mesh: np.ndarray, num_frames: int, seed: int, noise: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(seed)
    angles = np.radians(np.linspace(-20, 25, num_frames))[:, None] * [0.3, 1.0, 0.2]
    turned = mesh @ euler_to_matrix(torch.from_numpy(angles)).numpy().transpose(0, 2, 1)
    scale = np.linspace(1, 1.3, num_frames)[:, None, None]
    return (turned * scale + [100, 90, 0] + random.normal(0, noise, turned.shape)).astype(np.float32)


def test_two_people_in_one_clip_show() -> None:
    alone = identity_figures(filmed(person(1), 60, 0))
    joined = np.concatenate([filmed(person(1), 30, 0), filmed(person(2), 30, 1)])
    two = identity_figures(joined)
    shapes = [mesh[list(RIGID_POINTS)] - mesh[list(RIGID_POINTS)].mean(0) for mesh in (person(1), person(2))]
    sizes = [np.sqrt(np.ptp(shape[:, :2], axis=0).prod()) for shape in shapes]
    apart = 100 * np.sqrt(np.square(shapes[0] / sizes[0] - shapes[1] / sizes[1]).sum(-1).mean())
    assert two["identity_change"] == pytest.approx(apart, rel=0.15)
    assert two["identity_jump"] == pytest.approx(apart, rel=0.15)
    for name in ("identity_change", "identity_jump", "identity_spread"):
        assert alone[name] < 0.35 * two[name]


def test_faces_that_alternate_show() -> None:
    meshes = [filmed(person(1 + t // 4 % 2), 60, 0)[t] for t in range(60)]
    alone = identity_figures(filmed(person(1), 60, 0))
    mixed = identity_figures(np.stack(meshes))
    assert mixed["identity_jump"] > 3 * alone["identity_jump"]
    assert mixed["identity_spread"] > 3 * alone["identity_spread"]


def test_identity_needs_two_frames() -> None:
    assert identity_figures(filmed(person(1), 1, 0)) == {}
    assert identity_figures(filmed(person(1), 2, 0, noise=0.0))["identity_change"] == pytest.approx(0, abs=1e-3)
