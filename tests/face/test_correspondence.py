"""Dense correspondence: the canonical face's file, the nearest place on a mesh, registration, and existing indices."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.demo import demo_head
from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.surface import (
    connected_triangles,
    face_normals,
    nearest_on_surface,
    on_border,
    orient_outwards,
    vertex_normals,
)
from lrs3_loader.face.geometry.topology import IBUG68
from lrs3_loader.face.model import convert
from lrs3_loader.face.model import ict as ict_module
from lrs3_loader.face.model.canonical import (
    CanonicalFace,
    has_canonical_face,
    load_canonical_face,
    parse_metadata,
)
from lrs3_loader.face.model.correspondence import DOUBTFUL, register, with_dense, with_dense_index
from lrs3_loader.face.model.ict import convert_ict
from lrs3_loader.face.model.morphable import FaceModel
from support.canonical_factory import bent, bent_model, made_canonical, metadata_bytes, write_task
from support.paths import TESTS

CANONICAL = made_canonical()
BENT = bent_model(CANONICAL)


@pytest.fixture(scope="module")
def real_canonical(shared_assets: Path) -> CanonicalFace:
    return load_canonical_face(shared_assets / "face_landmarker.task")


@pytest.fixture(scope="module")
def ict(shared_assets: Path, real_canonical: CanonicalFace) -> FaceModel:
    model = convert_ict(shared_assets / "ict_facekit.tar.xz")
    return dataclasses.replace(model, dense=register(model, real_canonical))


# The canonical face


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_is_read_in_both_encodings(packed: bool) -> None:
    face = parse_metadata(metadata_bytes(CANONICAL, packed))
    assert np.array_equal(face.verts, CANONICAL.verts.astype(np.float32))
    assert np.array_equal(face.triangles, CANONICAL.triangles)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no canonical mesh"),
        (metadata_bytes(CANONICAL)[:-1000], "ends inside a field"),
        (metadata_bytes(CANONICAL, vertex_type=1), "of another type"),
        (metadata_bytes(dataclasses.replace(CANONICAL, verts=CANONICAL.verts[:-1])), "holds 2335 floats"),
        (metadata_bytes(dataclasses.replace(CANONICAL, triangles=CANONICAL.triangles + 1)), "do not fit its vertices"),
        (
            metadata_bytes(dataclasses.replace(CANONICAL, triangles=np.uint64([[0, 1, 2**63]]))),
            "do not fit its vertices",
        ),
        (b"\x0b", "wire type 3"),
        (b"\x80" * 11, "ends inside a number"),
    ],
)
def test_other_or_damaged_metadata_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_metadata(data)


def test_a_task_file_without_the_face_is_named(tmp_path: Path) -> None:
    task = write_task(tmp_path / "whole.task", CANONICAL)
    assert has_canonical_face(task)
    assert np.allclose(load_canonical_face(task).verts, CANONICAL.verts, atol=1e-5)
    with zipfile.ZipFile(tmp_path / "other.task", "w") as archive:
        archive.writestr("face_detector.tflite", b"")
    (tmp_path / "text.task").write_text("no zip")
    for name in ("other.task", "text.task", "none.task"):
        assert not has_canonical_face(tmp_path / name)
        with pytest.raises(RunError, match=rf"{name} is not a face_landmarker\.task file with the canonical face"):
            load_canonical_face(tmp_path / name)


def test_the_real_canonical_face_is_a_symmetric_face_in_centimetres(real_canonical: CanonicalFace) -> None:
    assert real_canonical.triangles.shape == (898, 3)
    mirror = real_canonical.mirror()
    assert np.array_equal(mirror[mirror], np.arange(468))
    assert np.array_equal(real_canonical.verts[mirror], real_canonical.verts * [-1, 1, 1])
    assert mirror[33] == 263
    assert np.linalg.norm(real_canonical.verts[33] - real_canonical.verts[263]) == pytest.approx(8.89, abs=0.01)
    normals = vertex_normals(real_canonical.verts, real_canonical.triangles)
    assert normals[4, 2] > 0.8  # the nose tip looks forward


# Meshes


def slow_nearest(point: np.ndarray, corners: np.ndarray) -> float:
    """Distance to a triangle: the least over a fine grid of places in it."""
    steps = np.linspace(0, 1, 201)
    b, c = np.meshgrid(steps, steps)
    b, c = b[b + c <= 1], c[b + c <= 1]
    places = corners[0] + b[:, None] * (corners[1] - corners[0]) + c[:, None] * (corners[2] - corners[0])
    return float(np.linalg.norm(places - point, axis=1).min())


def test_nearest_matches_a_slow_search() -> None:
    rng = np.random.default_rng(2)
    verts, points = rng.standard_normal((12, 3)), 1.5 * rng.standard_normal((30, 3))
    triangles = np.array([rng.permutation(12)[:3] for _ in range(8)])
    found = nearest_on_surface(points, np.zeros((30, 3)), verts, triangles, min_normal_cosine=-1)
    places = (verts[triangles[found.triangle]] * found.barycentric[..., None]).sum(1)
    assert np.allclose(np.linalg.norm(places - points, axis=1), found.distance)
    assert (found.barycentric >= 0).all()
    assert np.allclose(found.barycentric.sum(1), 1)
    for point, distance in zip(points, found.distance, strict=True):
        slow = min(slow_nearest(point, verts[triangle]) for triangle in triangles)
        assert distance <= slow + 1e-12
        assert distance == pytest.approx(slow, abs=0.02)


def test_nearest_prefers_what_faces_the_same_way() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0.1], [1, 0, 0.1], [0, 1, 0.1]], dtype=float)
    triangles = np.array([[0, 2, 1], [3, 4, 5]])  # the nearer one faces away
    point, normal = np.array([[0.2, 0.2, 0.02]]), np.array([[0.0, 0.0, 1.0]])
    found = nearest_on_surface(point, normal, verts, triangles)
    assert (found.triangle[0], found.normal_cosine[0]) == (1, 1.0)
    only_away = nearest_on_surface(point, normal, verts, triangles[:1])
    assert (only_away.triangle[0], only_away.normal_cosine[0]) == (0, -1.0)


def test_borders_parts_and_winding() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 0], [6, 5, 0], [5, 6, 0]], dtype=float)
    triangles = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    points = np.array([[0.5, 0, 0], [0.5, 0.5, 0], [0.7, 0.2, 0], [5.2, 5.2, 0]])
    found = nearest_on_surface(points, np.tile([0.0, 0, 1], (4, 1)), verts, triangles)
    assert on_border(found, triangles).tolist() == [True, False, False, False]
    assert connected_triangles(triangles, 7, 3).tolist() == [0, 1]
    assert connected_triangles(triangles, 7, 5).tolist() == [2]
    behind = np.array([0.5, 0.5, -1.0])
    assert orient_outwards(verts, triangles, behind) is triangles
    assert np.array_equal(orient_outwards(verts, triangles[:, ::-1], behind)[0], [2, 0, 1])
    assert (face_normals(verts, triangles)[:, 2] == [1, 1, 1]).all()


# Registration


def test_a_bent_face_is_found_again() -> None:
    """The points of the canonical face, bent by a known smooth map, within a millimetre of the truth."""
    model = dataclasses.replace(BENT, dense=register(BENT, CANONICAL))
    assert model.dense is not None
    expected = bent(CANONICAL.verts / 10)
    expected -= expected[list(IBUG68)].mean(0)
    error = np.linalg.norm(model.dense_mean.numpy() - expected, axis=1)
    weight = model.dense.weight.numpy()
    trusted = weight > 0.3
    assert trusted.sum() > 200
    assert error[trusted].mean() < 0.002
    assert error[trusted].max() < 0.01
    assert error[~trusted].mean() > error[trusted].mean()


def test_eyes_and_lips_lie_on_the_landmarks_themselves() -> None:
    model = dataclasses.replace(BENT, dense=register(BENT, CANONICAL))
    assert model.dense is not None
    points = list(IBUG68[36:])
    assert torch.allclose(model.dense_mean[points], model.landmark_mean[36:], atol=1e-6)
    assert torch.allclose(model.dense_exp_basis[points], model.landmark_exp_basis[36:], atol=1e-6)
    assert (model.dense.weight[points] == 1).all()


def test_doubtful_points_have_no_weight() -> None:
    dense = register(BENT, CANONICAL)
    doubtful = sorted(set(DOUBTFUL) - set(IBUG68[36:]))
    assert (dense.weight[doubtful] == 0).all()
    # Without the lower third of the mesh, what belongs there comes to lie on its border.
    high = BENT.mean[BENT.triangles][..., 1].mean(1) > -0.55
    cut = dataclasses.replace(BENT, triangles=BENT.triangles[high])
    lost = np.flatnonzero((CANONICAL.verts[:, 1] < -7) & ~np.isin(np.arange(468), IBUG68))
    assert (dense.weight[lost] > 0).sum() > 10
    assert (register(cut, CANONICAL).weight[lost] == 0).all()


def test_other_parts_of_the_mesh_are_not_skin() -> None:
    dense = register(BENT, CANONICAL)
    assert (dense.triangle < len(BENT.triangles) - 1).all()


def test_ict_is_registered_symmetrically(ict: FaceModel, real_canonical: CanonicalFace) -> None:
    """ICT-FaceKit is mirror symmetric but for its triangulation."""
    assert ict.dense is not None
    mirror, weight = real_canonical.mirror(), ict.dense.weight
    assert torch.equal(weight, weight[mirror])
    points = ict.dense_mean.numpy()
    gap = np.linalg.norm(points * [-1, 1, 1] - points[mirror], axis=1)
    assert gap.mean() < 2e-4  # decimetres: 0.02 mm
    assert gap.max() < 1.5e-2  # measured: 1.1 mm, beside landmarks that lie off the mesh
    assert int((gap > 5e-3).sum()) < 10
    assert (ict.dense.weight > 0).sum() > 430
    assert int((weight >= 0.5).sum()) > 270


def test_ict_points_lie_where_mediapipe_sees_them(ict: FaceModel) -> None:
    """On four real clips fitted to 68 points, the others are 2 mm off in the mean, and the weights know which."""
    sys.path.insert(0, str(TESTS / "golden"))
    from landmark_codec import read_golden

    from lrs3_loader.face.fit.fitter import FitInput, LandmarkFitter
    from lrs3_loader.face.geometry.camera import Camera, project

    assert ict.dense is not None
    sizes = {"may_512_25fps_48k_stereo": (512, 512), "glasses_512x480_30fps": (480, 512)}
    sizes |= {"silent_480_30fps_44k": (480, 480), "smallface_1280x720_30fps": (720, 1280)}
    errors = []
    for name, (height, width) in sizes.items():
        seen = read_golden(TESTS / "golden" / f"landmarks_task_{name}.xz").xy[::4, :468]
        seen = torch.tensor(seen, dtype=torch.float32)
        clip = FitInput(seen[:, list(IBUG68)], torch.ones(len(seen), dtype=torch.bool), height, width)
        (fit,) = LandmarkFitter(ict)([clip])
        points = project(
            ict.dense.interpolate(ict.vertices(fit.id, fit.exp), ict.triangles),
            fit.pose,
            Camera.for_frame(height, width),
        )
        eyes = (seen[:, 33] - seen[:, 263]).norm(dim=-1)[:, None]
        errors.append(((points - seen).norm(dim=-1) / eyes * 90).mean(0))  # outer eye corners are 90 mm apart
    others = np.setdiff1d(np.arange(468), IBUG68)
    error, weight = torch.stack(errors).mean(0)[others], ict.dense.weight[others]
    assert error.mean() < 2.4  # measured: 2.1
    assert (error * weight).sum() / weight.sum() < 2.0  # measured: 1.7
    assert error[weight == 0].mean() > 1.1 * error[weight > 0.5].mean()  # measured: 1.9 and 1.5 mm


def test_the_demo_head_is_registered_too(real_canonical: CanonicalFace) -> None:
    dense = register(demo_head(), real_canonical)
    assert (dense.weight > 0).sum() > 400
    model = dataclasses.replace(demo_head(), dense=dense)
    points = model.dense_mean.numpy()[dense.weight.numpy() > 0.3]
    mirrored = model.dense_mean.numpy()[real_canonical.mirror()][dense.weight.numpy() > 0.3] * [-1, 1, 1]
    assert np.linalg.norm(points - mirrored, axis=1).mean() < 2e-3


# On a face model


def test_dense_bases_follow_the_vertices() -> None:
    model = dataclasses.replace(BENT, dense=register(BENT, CANONICAL))
    assert model.dense is not None
    id, exp = torch.randn(3, 1, 2), torch.randn(4, 2)
    offsets = id @ model.dense_id_basis.flatten(0, 1).T + exp @ model.dense_exp_basis.flatten(0, 1).T
    points = model.dense_mean + offsets.unflatten(-1, (468, 3))
    assert points.shape == (3, 4, 468, 3)
    vertices = model.vertices(id[2, 0], exp[1])
    for point in (0, 33, 200):
        corners = vertices[model.triangles[model.dense.triangle[point]]]
        expected = sum(corners[k] * model.dense.barycentric[point, k] for k in range(3))
        assert torch.allclose(points[2, 1, point], expected, atol=1e-5)
    with pytest.raises(ValueError, match="the face model bent has no dense correspondence"):
        BENT.dense_mean  # noqa: B018


def test_files_keep_it_and_older_files_need_not_have_it(tmp_path: Path) -> None:
    model = dataclasses.replace(BENT, dense=register(BENT, CANONICAL)).to("cpu")
    assert model.dense is not None
    model.save(tmp_path / "dense.npz")
    loaded = FaceModel.load(tmp_path / "dense.npz")
    assert loaded.dense is not None
    for name in ("triangle", "barycentric", "weight"):
        assert torch.equal(getattr(loaded.dense, name), getattr(model.dense, name))
    BENT.save(tmp_path / "older.npz")
    assert FaceModel.load(tmp_path / "older.npz").dense is None
    arrays = dict(np.load(tmp_path / "dense.npz"))
    del arrays["dense_weight"]
    np.savez(tmp_path / "half.npz", **arrays)
    with pytest.raises(RunError, match="it lacks dense_weight"):
        FaceModel.load(tmp_path / "half.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triangle": torch.zeros(467, dtype=torch.int64)}, r"dense triangle must be torch.int64 \[468\]"),
        ({"triangle": torch.full((468,), -1)}, "numbered from 0, got -1"),
        ({"barycentric": torch.full((468, 3), 0.5)}, "at least 0 and sum to 1"),
        ({"barycentric": torch.tensor([[2.0, -1.0, 0.0]]).repeat(468, 1)}, "at least 0 and sum to 1"),
        ({"weight": torch.full((468,), 1.1)}, "weights must lie in 0"),
        ({"weight": torch.full((468,), torch.nan)}, "weights must lie in 0"),
    ],
)
def test_dense_points_check_themselves(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(register(BENT, CANONICAL), **changes)


def test_dense_triangles_must_be_the_models(tmp_path: Path) -> None:
    far = dataclasses.replace(register(BENT, CANONICAL), triangle=torch.full((468,), len(BENT.triangles)))
    with pytest.raises(ValueError, match="dense triangles must lie in"):
        dataclasses.replace(BENT, dense=far)


# Existing indices


def index_of(model: FaceModel) -> np.ndarray:
    index = np.random.default_rng(3).permutation(model.num_vertices - 3)[:468]
    index[[5, 77]] = -1
    return index


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_an_existing_index_is_used(tmp_path: Path, suffix: str) -> None:
    index, path = index_of(BENT), tmp_path / f"index{suffix}"
    if suffix == ".npy":
        np.save(path, index)
    else:
        np.savetxt(path, index, fmt="%d")
    model = with_dense_index(BENT, path)
    assert model.dense is not None
    has = index >= 0
    assert torch.equal(model.dense_mean[has], BENT.mean[index[has]])
    assert np.array_equal(model.dense.weight.numpy(), has.astype(np.float32))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.arange(467), r"expected 468 whole numbers, got int64 \[467\]"),
        (np.arange(468) + 0.5, "expected 468 whole numbers"),
        (np.arange(468) + BENT.num_vertices, "vertex numbers must lie in -1"),
        (np.arange(468) - 2, "vertex numbers must lie in -1"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, index: np.ndarray, message: str) -> None:
    np.save(tmp_path / "index.npy", index)
    with pytest.raises(RunError, match=rf"index\.npy is no dense correspondence for the face model bent: .*{message}"):
        with_dense_index(BENT, tmp_path / "index.npy")
    with pytest.raises(RunError, match=r"none\.npy is no dense correspondence"):
        with_dense_index(BENT, tmp_path / "none.npy")


def test_an_index_of_a_vertex_without_triangles_is_refused(tmp_path: Path) -> None:
    loose = dataclasses.replace(BENT, triangles=BENT.triangles[:-1])
    np.save(tmp_path / "index.npy", np.full(468, loose.num_vertices - 1))
    with pytest.raises(RunError, match=f"vertex {loose.num_vertices - 1} belongs to no triangle"):
        with_dense_index(loose, tmp_path / "index.npy")


def test_flames_own_embedding_is_used(tmp_path: Path) -> None:
    points, at = np.arange(0, 210, 2), np.arange(105) + 40
    places = np.random.default_rng(4).dirichlet([1, 1, 1], 105)
    path = tmp_path / "mediapipe_landmark_embedding.npz"
    np.savez(path, landmark_indices=points, lmk_face_idx=at, lmk_b_coords=places)
    model = with_dense_index(BENT, path)
    assert model.dense is not None
    assert (model.dense.weight > 0).sum() == 105
    expected = (BENT.mean.numpy()[BENT.triangles.numpy()[at]] * places[..., None]).sum(1)
    assert np.allclose(model.dense_mean[points], expected, atol=1e-5)
    np.savez(path, landmark_indices=points, lmk_face_idx=at + len(BENT.triangles), lmk_b_coords=places)
    with pytest.raises(RunError, match="points or triangles that do not exist"):
        with_dense_index(BENT, path)


def test_conversion_adds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "convert_ict", lambda source: BENT)
    task = write_task(tmp_path / "face_landmarker.task", CANONICAL)
    expected = with_dense(BENT, task).dense
    assert expected is not None
    found = convert.convert_face_model("ict", tmp_path, task).dense
    assert found is not None
    assert torch.equal(found.triangle, expected.triangle)
    np.save(tmp_path / "index.npy", np.arange(468))
    model = convert.convert_face_model("ict", tmp_path, task, tmp_path / "index.npy")  # goes before the task file
    assert torch.equal(model.dense_mean, model.mean[:468])
    assert "468 of 468 points have a weight" in convert.describe_model(model)
    assert convert.convert_face_model("ict", tmp_path).dense is None


def test_ict_in_the_cache_has_it_where_the_task_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LRS3_LOADER_ASSETS", raising=False)
    monkeypatch.setattr(ict_module, "convert_ict", lambda source: BENT)
    (tmp_path / "FaceXModel").mkdir()
    without = FaceModel.load(Assets(tmp_path).face_model_path("ict"))
    write_task(tmp_path / "face_landmarker.task", CANONICAL)
    having = FaceModel.load(Assets(tmp_path).face_model_path("ict"))
    assert without.dense is None
    assert having.dense is not None
    assert torch.equal(
        having.dense.weight, register(BENT, load_canonical_face(tmp_path / "face_landmarker.task")).weight
    )
