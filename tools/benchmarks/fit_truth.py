"""Synthetic clips of known truth for landmark fitting, a face model of BFM's shape, and what a fit gets wrong.

Letters: T frames, I identity modes, E expression modes, V vertices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lrs3_loader.demo import demo_head
from lrs3_loader.face.fit.fitter import FitInput, FitResult
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.geometry.rotation import euler_to_matrix, matrix_to_quaternion
from lrs3_loader.face.model.morphable import FaceModel

NUM_BFM_ID, NUM_BFM_EXP = 80, 64
_NUM_SAMPLES = 240  # faces that a synthetic model is the principal components of
_NUM_WAVES = 96  # of a random field


class Truth(NamedTuple):
    """A clip's landmarks with noise, and what they were made of."""

    clip: FitInput
    id: torch.Tensor  # [I] f32
    exp: torch.Tensor  # [T, E] f32
    pose: torch.Tensor  # [T, 6] f32


def smooth_noise(rng: np.random.Generator, num_frames: int, num_columns: int, frames: float) -> np.ndarray:
    """[T, C] Gaussian noise of unit variance, each column smoothed over ``frames`` (a standard deviation)."""
    reach = int(4 * frames)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / frames) ** 2)
    kernel /= np.sqrt(np.square(kernel).sum())
    noise = rng.standard_normal((num_frames + 2 * reach, num_columns))
    return np.stack([np.convolve(column, kernel, "valid") for column in noise.T], 1)


def speaking_clip(
    model: FaceModel,
    seed: int,
    num_frames: int = 60,
    size: tuple[int, int] = (224, 224),
    depth: float = 10.0,
    noise_px: float = 0.5,
    exp_frames: Sequence[float] = (2.5,),
    id_share: float = 0.8,
    correlated_noise_px: float = 0.0,
    exp_share: float = 1.0,
) -> Truth:
    """A random person who speaks and moves the head by about 5 degrees.

    Args:
        size: height and width of the frame in pixels.
        depth: decimetres from the camera; a face 10 away fills two thirds of the frame.
        noise_px: standard deviation of the landmarks' noise in a frame 224 wide.
        exp_frames: how smooth the expression is over time: equal parts of ``smooth_noise`` of these widths.
        id_share: size of the identity in its standard deviations.
        correlated_noise_px: standard deviation of a further error, constant over each landmark's frames: detectors
            and models do not mean quite the same points.
        exp_share: size of the expression in its standard deviations; 0 for a neutral face.
    """
    rng = np.random.default_rng(seed)
    id = id_share * rng.standard_normal(model.num_id) * model.id_sigma.numpy()
    exp = np.stack([smooth_noise(rng, num_frames, model.num_exp, width) for width in exp_frames]).sum(0)
    exp = exp_share * model.exp_sigma.numpy() * (exp / np.sqrt(len(exp_frames)) + 0.3)
    if model.exp_bounds is not None:
        exp = np.clip(exp, *model.exp_bounds.numpy())
    turn = np.deg2rad(5 * smooth_noise(rng, num_frames, 3, 8) + rng.uniform(-1, 1, 3) * [8, 20, 6])
    shift = 0.05 * depth / 10 * smooth_noise(rng, num_frames, 3, 10) + [0, 0, 10 - depth]
    tensors = [torch.tensor(value, dtype=torch.float32) for value in (id, exp, np.column_stack((turn, shift)))]
    landmarks = project(model.landmarks(tensors[0], tensors[1]), tensors[2], Camera.for_frame(*size))
    noise = rng.standard_normal(landmarks.shape) * noise_px
    if correlated_noise_px:
        noise = noise + rng.standard_normal(landmarks.shape[1:]) * correlated_noise_px
    measured = landmarks + torch.tensor(noise * max(size) / 224, dtype=torch.float32)
    return Truth(FitInput(measured, torch.ones(num_frames, dtype=torch.bool), *size), *tensors)


def angle_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the angle [...] in [0, pi] between rotations [..., 3, 3]; exact for small angles too."""
    quaternion = matrix_to_quaternion(first.transpose(-1, -2) @ second)
    return 2 * torch.atan2(quaternion[..., 1:].norm(dim=-1), quaternion[..., 0])


def rotation_error(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[T] degrees between poses [T, 6]."""
    return torch.rad2deg(angle_between(euler_to_matrix(first[:, :3]), euler_to_matrix(second[:, :3])))


def expression_error(model: FaceModel, truth: torch.Tensor, found: torch.Tensor) -> float:
    """Error of the expression's vertices, each clip's mean removed, relative to their own motion; [T, E] each."""
    basis = model.exp_basis.reshape(-1, model.num_exp)
    gram = (basis.T @ basis).double()
    true_motion, motion = (exp.double() - exp.double().mean(0) for exp in (truth, found))

    def energy(coefficients: torch.Tensor) -> torch.Tensor:
        return ((coefficients @ gram) * coefficients).sum()

    return float((energy(motion - true_motion) / energy(true_motion)).sqrt())


def errors(model: FaceModel, truth: Truth, result: FitResult) -> tuple[float, float]:
    """(expression vertex error, relative; mean rotation error in degrees)."""
    return expression_error(model, truth.exp, result.exp), float(rotation_error(result.pose, truth.pose).mean())


@lru_cache(maxsize=1)
def bfm_shaped_model() -> FaceModel:
    """A model of BFM's kind: 80 identity and 64 expression modes that are principal components over faces, each
    multiplied by its standard deviation, without bounds or names; identities aligned to the mean face rigidly.

    The faces: the demo head's own modes, and smooth random fields, so that there is detail that 68 points do not tell.
    Sizes as published models have them: people differ by 5 mm, speech moves the mouth by 6 mm (root mean square).
    """
    head, rng = demo_head(), np.random.default_rng(80)
    points = head.mean.numpy().astype(np.float64)
    people = _samples(head.id_basis, head.id_sigma, rng) + 0.013 * _fields(points, rng, length=0.6)
    people = _without_rigid_motion(people, points, head.landmark_mean.numpy())
    near_mouth = np.exp(-0.5 * np.square((points - points[head.landmark_verts[48:].numpy()].mean(0)) / 0.45).sum(1))
    speech = _samples(head.exp_basis, head.exp_sigma, rng)
    speech = speech + 0.008 * near_mouth[:, None] * _fields(points, rng, length=0.3)
    id_basis, exp_basis = _components(people, NUM_BFM_ID), _components(speech, NUM_BFM_EXP)
    digest = hashlib.sha256(np.round(exp_basis, 4).tobytes()).hexdigest()
    return FaceModel(
        name="bfm-shaped",
        licence="as lrs3_loader",
        source_sha256=digest,
        mean=head.mean,
        id_basis=torch.from_numpy(id_basis.astype(np.float32)),
        exp_basis=torch.from_numpy(exp_basis.astype(np.float32)),
        id_sigma=torch.ones(NUM_BFM_ID),
        exp_sigma=torch.ones(NUM_BFM_EXP),
        triangles=head.triangles,
        landmark_verts=head.landmark_verts,
        id_names=tuple(f"id{number}" for number in range(NUM_BFM_ID)),
        exp_names=tuple(f"exp{number}" for number in range(NUM_BFM_EXP)),
    )


def _samples(basis: torch.Tensor, sigma: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    """[samples, V, 3] offsets with normally distributed coefficients."""
    coefficients = rng.standard_normal((_NUM_SAMPLES, len(sigma))) * sigma.numpy()
    return np.einsum("sm,vcm->svc", coefficients, basis.numpy().astype(np.float64))


def _fields(points: np.ndarray, rng: np.random.Generator, length: float) -> np.ndarray:
    """[samples, V, 3] random fields of unit variance with a squared-exponential covariance of ``length`` decimetres
    (sums of cosines: Rahimi and Recht 2007)."""
    waves = rng.standard_normal((3, _NUM_WAVES)) / length
    features = np.cos(points @ waves + rng.uniform(0, 2 * np.pi, _NUM_WAVES)) * np.sqrt(2 / _NUM_WAVES)
    return np.einsum("vw,swc->svc", features, rng.standard_normal((_NUM_SAMPLES, _NUM_WAVES, 3)))


def _without_rigid_motion(samples: np.ndarray, points: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """``samples`` [S, V, 3] less the small turns and shifts that fit them best where ``points`` [V, 3] lie among the
    ``landmarks``: scans are aligned by their faces."""
    inside = (points[:, :2] > landmarks[:, :2].min(0)) & (points[:, :2] < landmarks[:, :2].max(0))
    front = inside.all(1) & (points[:, 2] > landmarks[:, 2].min())
    shifts = np.broadcast_to(np.eye(3)[:, None], (3, *points.shape))
    turns = np.cross(np.eye(3)[:, None], points)
    rigid = np.concatenate((shifts, turns))
    amounts, *_ = np.linalg.lstsq(
        rigid[:, front].reshape(6, -1).T, samples[:, front].reshape(len(samples), -1).T, rcond=None
    )
    return samples - np.einsum("rs,rvc->svc", amounts, rigid)


def _components(samples: np.ndarray, count: int) -> np.ndarray:
    """[V, 3, count] principal components of ``samples`` [S, V, 3] about zero, times their standard deviations.

    Signs are fixed: the largest entry of each is positive.
    """
    flat = samples.reshape(len(samples), -1)
    values, vectors = np.linalg.eigh(flat @ flat.T / len(flat))
    modes = flat.T @ vectors[:, ::-1][:, :count] / np.sqrt(len(flat))
    modes *= np.sign(modes[np.abs(modes).argmax(0), np.arange(count)])
    assert values[-count] > 0, "as many independent samples as modes"
    return modes.reshape(*samples.shape[1:], count)
