"""pytorch3d's conventions against ours, and what its rasteriser shows against our own; skipped where it is missing."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fit_truth import angle_between
from lrs3_loader.demo import demo_head
from lrs3_loader.demo.raster import rasterize as own_rasterize
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry import rotation
from lrs3_loader.face.geometry.camera import DISTANCE, Camera, apply_pose, project
from lrs3_loader.face.photometric import render
from lrs3_loader.viz.mesh import MeshPainter, Pytorch3dMeshPainter
from lrs3_loader.viz.view import View
from support.face_factory import small_model
from support.pytorch3d_cameras import cameras_of_pose, matrix_from_pytorch3d, pose_of_cameras

RANDOM = np.random.default_rng(3)
ANGLES = torch.from_numpy(RANDOM.uniform(-1, 1, (50, 3)) * [3.1, 1.5, 3.1])
SHIFTS = torch.from_numpy(RANDOM.normal(size=(50, 3)))


@pytest.fixture(scope="module")
def transforms() -> Any:
    return pytest.importorskip("pytorch3d.transforms", reason="pytorch3d is not installed")


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pytorch3d"):
            raise ImportError("No module named 'pytorch3d'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RunError, match=r"--fit photometric needs pytorch3d \(the extra `render`\)") as caught:
        render.require_pytorch3d("--fit photometric")
    assert "\n" not in str(caught.value)


def test_matrices_go_there_and_back() -> None:
    """Needs no pytorch3d. x to the left, y up, z away: the camera at the origin sees the face at z = distance."""
    turned = rotation.euler_to_matrix(ANGLES)
    there = render.matrix_to_pytorch3d(turned, SHIFTS)
    back = matrix_from_pytorch3d(*there)
    assert torch.allclose(back[0], turned, atol=1e-14)
    assert torch.allclose(back[1], SHIFTS, atol=1e-14)
    points = torch.from_numpy(RANDOM.normal(size=(50, 7, 3)))
    view = points @ there[0] + there[1][:, None]
    ours = points @ turned.transpose(-1, -2) + SHIFTS[:, None]
    assert torch.allclose(view, torch.stack((-ours[..., 0], ours[..., 1], DISTANCE - ours[..., 2]), -1), atol=1e-12)


def test_rotations_equal_pytorch3ds(transforms: Any) -> None:
    turned = rotation.euler_to_matrix(ANGLES)
    assert (transforms.euler_angles_to_matrix(ANGLES.flip(-1), "ZYX") - turned).abs().max() < 1e-12
    assert (
        transforms.matrix_to_euler_angles(turned, "ZYX").flip(-1) - rotation.matrix_to_euler(turned)
    ).abs().max() < 1e-9
    quaternion = rotation.matrix_to_quaternion(turned)
    theirs = transforms.standardize_quaternion(transforms.matrix_to_quaternion(turned))
    assert (theirs - quaternion).abs().max() < 1e-12
    assert (transforms.quaternion_to_matrix(quaternion) - rotation.quaternion_to_matrix(quaternion)).abs().max() < 1e-12
    vectors = SHIFTS * torch.logspace(-9, 0, 50, dtype=torch.float64)[:, None]
    ours = rotation.axis_angle_to_matrix(vectors)
    assert (transforms.axis_angle_to_matrix(vectors) - ours).abs().max() < 1e-7
    angles = angle_between(turned[:-1], turned[1:])
    inner = (angles > 0.1) & (angles < 3.0)  # theirs are coarse near 0 and pi
    assert inner.sum() > 20
    assert (transforms.so3_relative_angle(turned[:-1], turned[1:]) - angles)[inner].abs().max() < 1e-9


@pytest.mark.parametrize(("height", "width"), [(224, 224), (90, 160), (160, 90)])
def test_cameras_project_alike_and_come_back(transforms: Any, height: int, width: int) -> None:
    pose = torch.cat((ANGLES / 3, SHIFTS / 2), 1).float()
    camera = Camera.for_frame(height, width)
    cameras = cameras_of_pose(pose, camera, height, width)
    points = torch.from_numpy(RANDOM.normal(size=(50, 9, 3))).float()
    screen = cameras.transform_points_screen(points, image_size=((height, width),))[..., :2]
    assert (screen - 0.5 - project(points, pose, camera)).abs().max() < 2e-3
    again, pinhole = pose_of_cameras(cameras, height, width)
    assert (again - pose).abs().max() < 2e-5
    expected = torch.tensor([camera.focal_px, camera.focal_px, camera.centre_x_px, camera.centre_y_px])
    assert (pinhole - expected).abs().max() < 1e-3


def test_the_image_equals_our_own_rasterisers(transforms: Any) -> None:
    """The demo head in two poses, in an image that is not square: the same pixels, depths and colours but at edges."""
    model, camera, (height, width) = demo_head(), Camera.for_frame(28, 42), (28, 42)
    pose = torch.tensor([[0.1, 0.4, -0.1, 0.4, -0.1, -1.0], [0.0, -0.2, 0.2, -0.6, 0.2, -3.0]])
    exp = torch.zeros(2, model.num_exp)
    exp[1, 0] = 0.7
    vertices = model.vertices(torch.zeros(2, model.num_id), exp)
    colours = (vertices / 3).cos()
    cameras = cameras_of_pose(pose, camera, height, width)
    shown = render.render(vertices, colours, model.triangles, cameras, height, width)
    depth = render.rasterize(vertices, model.triangles, cameras, height, width).depth
    for k in range(2):
        away = DISTANCE - apply_pose(vertices[k], pose[k])[:, 2]
        at = project(vertices[k], pose[k], camera) + 0.5
        values = np.concatenate((colours[k].numpy(), away[:, None].numpy()), 1)
        pixel, found = own_rasterize(at.numpy(), away.numpy(), values, model.triangles.numpy(), height, width)
        own = np.zeros((height * width, 5), dtype=np.float32)
        own[pixel, :4], own[pixel, 4] = found, 1.0
        theirs = torch.cat((shown[k, ..., :3], depth[k, ..., None], shown[k, ..., 3:]), -1).view(-1, 5).numpy()
        both = (own[:, 4] > 0) & (theirs[:, 4] > 0)
        assert (own[:, 4] != theirs[:, 4]).mean() < 0.006
        assert 0.15 < both.mean() < 0.7
        assert np.quantile(np.abs(own - theirs)[both], 0.98) < 2e-3


def test_finer_drawing_is_averaged_and_stays_in_place(transforms: Any) -> None:
    model, camera = demo_head(), Camera.for_frame(24, 24)
    vertices, pose = model.mean[None], torch.tensor([[0.0, 0.3, 0.0, 0.1, 0.0, -3.0]])
    cameras = cameras_of_pose(pose, camera, 24, 24)
    colours = torch.ones_like(vertices)
    coarse, fine = (render.render(vertices, colours, model.triangles, cameras, 24, 24, times)[0] for times in (1, 3))
    assert torch.allclose(fine[..., 0], fine[..., 3], atol=1e-6)
    assert ((fine[..., 3] - coarse[..., 3]).abs() > 1e-6).float().mean() < 0.25  # edges alone
    row, column = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    for where in (row, column):
        centres = [(where * shown[..., 3]).sum() / shown[..., 3].sum() for shown in (coarse, fine)]
        assert abs(centres[0] - centres[1]) < 0.05


def test_where_nothing_is_nothing_is_seen(transforms: Any) -> None:
    model = small_model()
    cameras = cameras_of_pose(torch.tensor([[0.0, 0, 0, 50, 0, 0]]), Camera.for_frame(16, 16), 16, 16)
    hits = render.rasterize(model.mean[None], model.triangles, cameras, 16, 16)
    assert (hits.triangle == -1).all()
    assert hits.depth.isinf().all()
    assert not hits.interpolate(torch.ones(1, 68, 2), model.triangles).any()


def test_the_preview_draws_the_same_mesh_with_it(transforms: Any) -> None:
    model, view = demo_head(), View(left=30, top=20, side=160, size=24)
    pose = torch.tensor([0.1, 0.3, -0.05, 0.1, -0.05, -2.0])
    images = []
    for kind in (MeshPainter, Pytorch3dMeshPainter):
        image = np.full((24, 24, 3), 0.5, dtype=np.float32)
        painter = kind(model, torch.zeros(model.num_id), Camera.for_frame(224, 224), view)
        painter.draw(image, torch.zeros(model.num_exp), pose, 0.7)
        images.append(image)
    own, theirs = images
    assert (np.abs(own - 0.5).max(2) > 0.02).mean() > 0.3
    assert np.quantile(np.abs(own - theirs), 0.97) < 0.01
    assert np.abs(own - theirs).mean() < 0.004
