from __future__ import annotations

import dataclasses
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import Camera, apply_pose, project
from lrs3_loader.face.model.ict import convert_ict
from lrs3_loader.face.model.morphable import FaceModel
from support.face_factory import MIRROR, small_model

pytestmark = pytest.mark.smoke

MODEL = small_model()


@pytest.fixture(scope="session")
def ict(shared_assets: Path) -> FaceModel:
    return convert_ict(shared_assets / "ict_facekit.tar.xz")


def test_vertices_match_slow_sums_and_broadcast() -> None:
    generator = torch.Generator().manual_seed(0)
    id, exp = torch.randn(2, 1, MODEL.num_id, generator=generator), torch.randn(5, MODEL.num_exp, generator=generator)
    vertices = MODEL.vertices(id, exp)
    assert vertices.shape == (2, 5, 68, 3)
    expected = MODEL.mean[40].clone()
    for mode in range(MODEL.num_id):
        expected += id[1, 0, mode] * MODEL.id_basis[40, :, mode]
    for mode in range(MODEL.num_exp):
        expected += exp[3, mode] * MODEL.exp_basis[40, :, mode]
    assert torch.allclose(vertices[1, 3, 40], expected, atol=1e-6)
    assert torch.allclose(MODEL.landmarks(id, exp), vertices[..., MODEL.landmark_verts, :], atol=1e-6)
    assert torch.allclose(MODEL.idexp_lm3d(id, exp), 10 * (MODEL.landmarks(id, exp) - MODEL.landmark_mean), atol=1e-5)
    with pytest.raises(ValueError, match="expected 6 coefficients"):
        MODEL.landmarks(id, id)


def test_vertices_are_differentiable() -> None:
    exp = torch.zeros(MODEL.num_exp, requires_grad=True)
    MODEL.vertices(torch.zeros(MODEL.num_id), exp)[57, 1].backward()
    assert torch.allclose(exp.grad, MODEL.exp_basis[57, 1])


def test_normals_point_outwards_with_unit_length_and_match_a_slow_loop() -> None:
    vertices = MODEL.mean
    normals = MODEL.normals(torch.stack((vertices, 2 * vertices)))
    expected = np.zeros((68, 3))
    for a, b, c in MODEL.triangles.tolist():
        normal = np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
        for corner in (a, b, c):
            expected[corner] += normal
    used = np.abs(expected).sum(1) > 0
    expected[used] /= np.linalg.norm(expected[used], axis=1, keepdims=True)
    assert np.abs(normals[0].numpy() - expected).max() < 1e-5
    assert torch.allclose(normals[0], normals[1], atol=1e-5)
    assert (normals[0, used, 2] > 0).all()


def test_projection_matches_a_slow_one() -> None:
    pose = torch.tensor([0.2, -0.4, 0.1, 0.3, -0.2, -5.0])
    camera = Camera.for_frame(480, 640)
    rx, ry, rz = (float(angle) for angle in pose[:3])
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    about_z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    pixels = project(MODEL.mean, pose, camera).numpy()
    for point, pixel in zip(MODEL.mean.numpy(), pixels, strict=True):
        x, y, z = about_z @ about_y @ about_x @ point + pose[3:].numpy()
        focal = 1015 / 224 * 640
        expected = (319.5 + focal * x / (10 - z), 239.5 - focal * y / (10 - z))
        assert np.allclose(pixel, expected, atol=1e-3)


def test_deep3d_camera_equals_the_original_matrix() -> None:
    """Its renderer: points @ rot + trans, z -> 10 - z, times a 3x3 matrix; its landmarks count rows from below."""
    pose = torch.tensor([0.1, 0.3, -0.2, 0.1, 0.2, 0.3])
    points = apply_pose(MODEL.mean, pose).numpy().astype(np.float64)
    points[:, 2] = 10 - points[:, 2]
    image = points @ np.array([[1015.0, 0, 112], [0, 1015, 112], [0, 0, 1]]).T
    image = image[:, :2] / image[:, 2:]
    expected = np.stack((image[:, 0], 224 - 1 - image[:, 1]), 1)
    # Half a pixel right and up of the middle of the crop, which Camera.for_frame takes.
    camera = Camera(focal_px=1015.0, centre_x_px=112.0, centre_y_px=224 - 1 - 112.0)
    assert np.allclose(project(MODEL.mean, pose, camera), expected, atol=1e-3)


def test_the_frame_camera_scales_with_the_frame() -> None:
    pose = torch.tensor([0.1, 0.3, -0.2, 0.1, 0.2, -3.0])
    small, large = (project(MODEL.mean, pose, Camera.for_frame(size, 2 * size)) for size in (100, 300))
    assert torch.allclose((small + 0.5) * 3 - 0.5, large, atol=1e-3)
    with pytest.raises(ValueError, match="positive size"):
        Camera.for_frame(0, 10)


def test_save_and_load_give_the_same_model_and_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.model"
    MODEL.save(first)
    loaded = FaceModel.load(first)
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()
    for field in dataclasses.fields(FaceModel):
        value, other = getattr(MODEL, field.name), getattr(loaded, field.name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    dataclasses.replace(MODEL, exp_bounds=None).save(first)
    assert FaceModel.load(first).exp_bounds is None


def test_the_hash_is_over_every_number() -> None:
    digest = MODEL.sha256(dense=True)
    assert digest == MODEL.sha256(dense=False) == dataclasses.replace(MODEL, name="other").sha256(dense=True)
    for name in ("mean", "id_basis", "exp_basis", "id_sigma", "exp_sigma", "exp_bounds"):
        changed = getattr(MODEL, name).clone()
        changed.view(-1)[0] += 1e-6 * (1 + changed.view(-1)[0].abs())
        assert dataclasses.replace(MODEL, **{name: changed}).sha256(dense=True) != digest


def _damaged(tmp_path: Path, **changes: np.ndarray | None) -> Path:
    MODEL.save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as file:
        arrays = {name: file[name] for name in file.files} | changes
    path = tmp_path / "damaged.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "lacks mean"),
        ({"format": np.array("other")}, "format"),
        ({"mean": MODEL.mean[:-1].numpy()}, "id_basis must be|68"),
        ({"mean": np.full((68, 3), np.nan, np.float32)}, "mean holds values that are not finite"),
        ({"triangles": np.array([[0, 1, 68]], np.int32)}, "triangles must lie in 0..67"),
        ({"landmark_verts": np.arange(68, dtype=np.float32)}, "landmark_verts has the type float32"),
        ({"exp_sigma": np.zeros(6, np.float32)}, "exp_sigma must be above 0"),
        ({"exp_bounds": np.ones((2, 6), np.float32)}, "exp_bounds"),
        ({"exp_names": np.array(["same"] * 6)}, "exp_names must be unique"),
        ({"unit": np.array("metre")}, "unit must be 'decimetre'"),
        ({"source_sha256": np.array("none")}, "64 hex digits"),
        ({"mean": 10 * MODEL.mean.numpy()}, "unit not decimetre"),
        ({"mean": MODEL.mean.numpy() * np.float32([-1, 1, 1])}, "mirrored"),
        ({"mean": MODEL.mean.numpy() * np.float32([1, -1, 1])}, "upside down"),
        ({"mean": MODEL.mean.numpy() * np.float32([1, 1, -1])}, "reversed"),
        ({"mean": MODEL.mean.numpy() + np.float32(3)}, "not centred"),
        ({"mean": np.array([{"a": 1}], dtype=object)}, "does not hold plain numbers"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, changes: dict, message: str) -> None:
    path = _damaged(tmp_path, **changes)
    with pytest.raises(RunError, match=message) as error:
        FaceModel.load(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_models_are_refused_by_name(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.npz", tmp_path / "cut.npz"
    text.write_text("no model")
    MODEL.save(cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    for path in (tmp_path / "absent.npz", text, cut, tmp_path):
        with pytest.raises(RunError, match=str(path)):
            FaceModel.load(path)


def test_ict_is_the_face_in_our_units_and_axes(ict: FaceModel) -> None:
    assert (ict.num_vertices, ict.num_id, ict.num_exp, len(ict.triangles)) == (9_409 + 68, 100, 53, 18_460)
    assert ict.licence == "MIT"
    points = ict.landmark_mean
    assert torch.allclose(points.mean(0), torch.zeros(3), atol=1e-5)
    assert float((points[45] - points[36]).norm()) == pytest.approx(0.910, abs=0.001)  # outer eye corners, decimetres
    assert float(points[16, 0] - points[0, 0]) == pytest.approx(1.483, abs=0.001)
    normals = ict.normals(ict.mean)
    nose = (ict.mean[:9_409] - points[30]).norm(dim=1).argmin()
    assert normals[nose, 2] > 0.85  # the nose tip faces the camera
    jaw_open = ict.landmark_exp_basis[..., ict.exp_names.index("jawOpen")]
    assert jaw_open[8, 1] < -0.2
    assert jaw_open[62].norm() < 0.3 * jaw_open[66].norm()
    left = ict.landmark_exp_basis[..., ict.exp_names.index("eyeBlink_L")].norm(dim=1)
    assert left[42:48].max() > 10 * left[36:42].max()  # the person's left is on the right of the image


def test_distances_of_icts_landmarks_from_their_vertices_grow_with_the_face(ict: FaceModel) -> None:
    """So a face of 1.1 times the size has landmarks like the mean face's, not of another shape."""
    modes = ict.exp_basis[:9_409].flatten(1)
    marks = ict.landmark_verts
    verts = torch.stack([(modes - ict.exp_basis[mark].flatten()).abs().sum(1).argmin() for mark in marks])
    points = ict.mean[verts] - ict.mean[verts].mean(0)
    changes = torch.einsum("kc,kci->i", points, ict.id_basis[verts]) / points.square().sum()
    mode = int(changes.abs().argmax())
    grown = 1 + 3 * changes[mode]
    assert abs(grown - 1) > 0.03
    person = ict.vertices(3 * torch.eye(ict.num_id)[mode], torch.zeros(ict.num_exp))
    distances, before = person[marks] - person[verts], ict.mean[marks] - ict.mean[verts]
    assert before.norm(dim=1).max() > 0.1
    assert torch.allclose(distances, grown * before, atol=1e-4)


def test_ict_is_mirror_symmetric(ict: FaceModel) -> None:
    flip = torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(ict.landmark_mean, ict.landmark_mean[MIRROR] * flip, atol=2e-3)
    for name in ("jawOpen", "mouthPucker"):
        mode = ict.landmark_exp_basis[..., ict.exp_names.index(name)]
        assert torch.allclose(mode, mode[MIRROR] * flip, atol=0.02)


def test_ict_comes_out_alike_from_a_folder_and_a_zip(ict: FaceModel, shared_assets: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_assets / "ict_facekit.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "FaceXModel"
    packed = tmp_path / "ICT-FaceKit-master.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"ICT-FaceKit-master/FaceXModel/{path.name}")
    for source in (folder, tmp_path, packed):
        model = convert_ict(source)
        assert model.source_sha256 == ict.source_sha256
        assert torch.equal(model.exp_basis, ict.exp_basis)
    (folder / "identity042.obj").unlink()
    with pytest.raises(RunError, match=r"identity042\.obj"):
        convert_ict(folder)
    (folder / "identity042.obj").write_text("v 1 2 3\n")
    with pytest.raises(RunError, match=r"identity042\.obj does not begin"):
        convert_ict(folder)


def test_ict_sources_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(__file__, "README")
    for source in (tmp_path / "absent", tmp_path, other, Path(__file__)):
        with pytest.raises(RunError, match=str(source)):
            convert_ict(source)
