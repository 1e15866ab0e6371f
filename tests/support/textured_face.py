"""A small face with a surface and a colour for every vertex, and clips of it, of known truth, drawn by pytorch3d."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator

from benchmarks.fit_truth import smooth_noise
from lrs3_loader.face.fit.fitter import FitInput
from lrs3_loader.face.geometry.camera import Camera, apply_pose, project
from lrs3_loader.face.image.crops import FaceCrops, crop_to_landmarks
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.face.photometric.appearance import FLAT, Appearance
from support.face_factory import small_model

NUM_TEXTURES = 6


def grid_face(side: int = 32, textured: bool = False) -> FaceModel:
    """``small_model``'s 68 points, and a grid of ``side`` x ``side`` vertices through them that moves as they do.

    textured: with smooth random modes of colour.
    """
    model = small_model()
    points = model.mean.numpy()
    x, y = np.meshgrid(np.linspace(-0.95, 0.95, side), np.linspace(1.0, -1.2, side))
    place = np.stack((x.ravel(), y.ravel()), 1)
    columns = [points[:, 2:], model.id_basis.flatten(1).numpy(), model.exp_basis.flatten(1).numpy()]
    spline = RBFInterpolator(points[:, :2], np.concatenate(columns, 1), smoothing=1e-3)
    depth, id_basis, exp_basis = np.split(spline(place), np.cumsum([c.shape[1] for c in columns])[:2], 1)
    number = np.arange(side * side).reshape(side, side) + 68
    a, b, c, d = (part.ravel() for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))

    def joined(first: torch.Tensor, second: np.ndarray) -> torch.Tensor:
        return torch.cat((first, torch.tensor(second, dtype=torch.float32).view(-1, *first.shape[1:])))

    model = replace(
        model,
        name="grid",
        mean=joined(model.mean, np.concatenate((place, depth), 1)),
        id_basis=joined(model.id_basis, id_basis),
        exp_basis=joined(model.exp_basis, exp_basis),
        triangles=torch.from_numpy(np.concatenate([np.stack((a, c, b), 1), np.stack((b, c, d), 1)])),
    )
    if not textured:
        return model
    modes = [0.12 * (paint(model, seed) - paint(model, seed + 50)) for seed in range(NUM_TEXTURES)]
    return replace(model, tex_mean=paint(model, 99), tex_basis=torch.stack(modes, 2))


def paint(model: FaceModel, seed: int) -> torch.Tensor:
    """[V, 3] skin with spots of its own, and darker brows, eyes and lips."""
    rng = np.random.default_rng([5, seed])
    place = model.mean[:, :2].numpy()
    colour = np.tile(np.array([0.75, 0.58, 0.48]) + rng.normal(0, 0.05, 3), (len(place), 1))
    for _ in range(40):
        near = np.square(place - rng.uniform([-0.8, -1.0], [0.8, 0.8])).sum(1) / (2 * rng.uniform(0.04, 0.12) ** 2)
        colour += np.exp(-near)[:, None] * rng.normal(0, 0.08, 3)
    for first, stop, tint in (
        (17, 27, (-0.3, -0.28, -0.25)),
        (36, 48, (-0.3, -0.2, -0.1)),
        (48, 68, (-0.1, -0.25, -0.2)),
    ):
        away = np.square(place[:, None] - place[None, first:stop]).sum(2).min(1)
        colour += np.exp(-away / (2 * 0.045**2))[:, None] * tint
    return torch.tensor(np.clip(colour, 0.05, 1), dtype=torch.float32)


def random_light(seed: int) -> torch.Tensor:
    """[9, 3]: from one side, a little coloured."""
    rng = np.random.default_rng([6, seed])
    light = 0.25 * FLAT * rng.uniform(-1, 1, (9, 1)) * [[0], [1], [1], [1.2], [0.2], [0.2], [0.2], [0.2], [0.2]]
    light = light * rng.uniform(0.9, 1.1, (1, 3))
    light[0] = FLAT * 0.9
    light[2] += 0.1 * FLAT
    return torch.tensor(light, dtype=torch.float32)


@dataclass(frozen=True)
class DrawnClip:
    """What the fit gets, and the truth."""

    input: FitInput
    id: torch.Tensor
    exp: torch.Tensor  # [T, E]
    pose: torch.Tensor  # [T, 6]
    frames: torch.Tensor  # [T, size, size, 3] u8


def draw_clip(
    model: FaceModel,
    seed: int,
    num_frames: int = 8,
    size: int = 80,
    albedo: torch.Tensor | None = None,
    noise_px: float = 0.8,
) -> DrawnClip:
    """A random person who moves face and head, in random light, with noise on pixels and landmarks."""
    from lrs3_loader.face.photometric import render
    from support.pytorch3d_cameras import cameras_of_pose

    rng = np.random.default_rng([4, seed])
    id = torch.tensor(0.7 * rng.standard_normal(model.num_id), dtype=torch.float32)
    curves = 0.35 * (smooth_noise(rng, num_frames, model.num_exp, 1.5) + 0.8)
    exp = torch.tensor(np.clip(curves, 0, 1), dtype=torch.float32)
    turn = np.deg2rad(4 * smooth_noise(rng, num_frames, 3, 4) + rng.uniform(-1, 1, 3) * [5, 12, 5])
    shift = 0.03 * smooth_noise(rng, num_frames, 3, 4) + [0, 0, 1.5]
    pose = torch.tensor(np.column_stack((turn, shift)), dtype=torch.float32)
    vertices = model.vertices(id, exp)
    normals = apply_pose(model.normals(vertices), torch.cat((pose[:, :3], torch.zeros(num_frames, 3)), 1))
    albedo = paint(model, seed) if albedo is None else albedo
    colours = Appearance(albedo, random_light(seed), torch.zeros(len(albedo))).colours(normals)
    camera = Camera.for_frame(size, size)
    cameras = cameras_of_pose(pose, camera, size, size)
    drawn = render.render(vertices, colours, model.triangles, cameras, size, size)
    wall = torch.tensor([0.2, 0.35, 0.3])
    image = (
        drawn[..., :3]
        + (1 - drawn[..., 3:]) * wall
        + 0.004 * torch.tensor(rng.standard_normal(drawn.shape[:3]))[..., None]
    )
    frames = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    landmarks = project(model.landmarks(id, exp), pose, camera)
    landmarks = landmarks + torch.tensor(noise_px * rng.standard_normal(landmarks.shape), dtype=torch.float32)
    crops = FaceCrops()
    crops.append(*crop_to_landmarks(frames, landmarks))
    valid = torch.ones(num_frames, dtype=torch.bool)
    return DrawnClip(FitInput(landmarks, valid, size, size, crops=crops), id, exp, pose, frames)


def expression_error(model: FaceModel, found: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the landmarks' motion by expression, each clip's mean taken off: error over motion (RMS)."""

    def motion(exp: torch.Tensor) -> torch.Tensor:
        offsets = exp @ model.landmark_exp_basis.flatten(0, 1).T
        return offsets - offsets.mean(0)

    return float((motion(found) - motion(truth)).norm() / motion(truth).norm())
