from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from benchmarks.fit_truth import angle_between
from lrs3_loader.face.geometry import rotation

RANDOM = Rotation.random(200, random_state=np.random.default_rng(0))


def test_euler_matches_scipy_both_ways() -> None:
    angles = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (200, 3)) * [3.1, 1.5, 3.1])
    matrix = rotation.euler_to_matrix(angles)
    expected = Rotation.from_euler("xyz", angles.numpy()).as_matrix()
    assert np.abs(matrix.numpy() - expected).max() < 1e-12
    assert (rotation.matrix_to_euler(matrix) - angles).abs().max() < 1e-10


def test_euler_axes_in_words() -> None:
    """Positive rx turns the face (z) down, positive ry to the right of the image, positive rz counter-clockwise."""
    forward, up = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
    nod, turn, tilt = rotation.euler_to_matrix(0.3 * torch.eye(3))
    assert (nod @ forward)[1] < 0
    assert (turn @ forward)[0] > 0
    assert (tilt @ up)[0] < 0


@pytest.mark.parametrize("ry", [np.pi / 2, -np.pi / 2])
def test_euler_at_gimbal_lock_still_gives_the_same_rotation(ry: float) -> None:
    matrix = rotation.euler_to_matrix(torch.tensor([0.4, ry, 0.9], dtype=torch.float64))
    angles = rotation.matrix_to_euler(matrix)
    assert angles[2] == 0
    assert (rotation.euler_to_matrix(angles) - matrix).abs().max() < 1e-9


def test_quaternions_match_scipy() -> None:
    matrix = torch.from_numpy(RANDOM.as_matrix())
    quaternion = rotation.matrix_to_quaternion(matrix)
    expected = RANDOM.as_quat()[:, [3, 0, 1, 2]]
    expected *= np.where(expected[:, :1] < 0, -1, 1)
    assert np.abs(quaternion.numpy() - expected).max() < 1e-12
    assert (rotation.quaternion_to_matrix(3 * quaternion) - matrix).abs().max() < 1e-12


def test_quaternion_of_half_turns() -> None:
    turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64))
    assert torch.equal(rotation.matrix_to_quaternion(turns).abs(), torch.eye(4, dtype=torch.float64)[1:])


@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-4, 9.9e-4, 1.1e-3, 0.5, 3.0])
def test_axis_angle_matches_scipy_at_every_size(length: float) -> None:
    axis = np.array([0.6, -0.48, 0.64])
    matrix = rotation.axis_angle_to_matrix(torch.from_numpy(length * axis))
    assert np.abs(matrix.numpy() - Rotation.from_rotvec(length * axis).as_matrix()).max() < 1e-13


def test_axis_angle_gradient_is_finite_at_zero_and_is_the_cross_product() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    point = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: rotation.axis_angle_to_matrix(v) @ point, zero)
    axes = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(jacobian, -torch.linalg.cross(point.expand(3, 3), axes).T)


def test_interpolation_follows_slerp() -> None:
    ends = Rotation.from_rotvec([[0.1, 0.2, -0.3], [0.5, -0.1, 0.2]])
    first, second = torch.from_numpy(ends.as_matrix())
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)
    path = rotation.interpolate_rotations(first.expand(5, 3, 3), second.expand(5, 3, 3), shares)
    expected = torch.from_numpy(Slerp([0, 1], ends)(shares.numpy()).as_matrix())
    assert torch.rad2deg(angle_between(path, expected)).max() < 0.1
    assert angle_between(path[[0, 2, 4]], expected[[0, 2, 4]]).max() < 1e-9


def test_angle_between_is_exact_for_tiny_and_for_half_turns() -> None:
    vectors = torch.tensor([[1e-6, 0, 0], [0, np.pi - 1e-6, 0]], dtype=torch.float64)
    angles = angle_between(torch.eye(3, dtype=torch.float64), rotation.axis_angle_to_matrix(vectors))
    assert torch.allclose(angles, vectors.norm(dim=-1), rtol=1e-9)
