"""BFM 2009, on synthetic files of its keys, shapes and index bases: the real ones need a licence."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.model.bfm import convert_bfm_2009, convert_bfm_front
from lrs3_loader.face.model.convert import convert_face_model, describe_model, save_face_model
from lrs3_loader.face.model.morphable import FaceModel
from support.bfm_files import NUM_FRONT, TRIANGLES, make_originals, slow_front, write_front, write_originals
from support.paths import REPO

MADE = make_originals()
FRONT = slow_front(MADE)
TOOL = REPO / "tools" / "assets.py"


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    write_originals(tmp_path, MADE)
    return tmp_path


@pytest.fixture
def front(tmp_path: Path) -> Path:
    write_front(tmp_path / "BFM_model_front.mat", MADE)
    return tmp_path / "BFM_model_front.mat"


def test_front_has_deep3ds_shapes_units_and_origin(front: Path) -> None:
    model = convert_bfm_front(front)
    assert (model.num_vertices, model.num_id, model.num_exp) == (NUM_FRONT, 80, 64)
    assert model.licence.startswith("LicenseRef-BFM-2009")
    assert len(model.source_sha256) == 64
    mean = FRONT["meanshape"].reshape(-1, 3)
    assert np.allclose(model.mean, mean - mean.mean(0), atol=1e-6)
    assert model.mean.mean(0).abs().max() < 1e-6
    assert np.allclose(model.id_basis.reshape(-1, 80), FRONT["idBase"], atol=1e-6)
    assert np.allclose(model.exp_basis.reshape(-1, 64), FRONT["exBase"], atol=1e-6)
    assert (model.id_sigma == 1).all()
    assert (model.exp_sigma == 1).all()
    assert model.landmark_verts.tolist() == list(range(68))  # the file's start at 1


def test_vertices_follow_deep3ds_formula(front: Path) -> None:
    """Its shape: id_base . id + exp_base . exp + mean, as rows x, y, z of each vertex."""
    model = convert_bfm_front(front)
    rng = np.random.default_rng(0)
    id, exp = rng.standard_normal(80), rng.standard_normal(64)
    offsets = FRONT["idBase"] @ id + FRONT["exBase"] @ exp
    mean = FRONT["meanshape"].reshape(-1, 3)
    expected = mean - mean.mean(0) + offsets.reshape(-1, 3)
    got = model.vertices(torch.tensor(id, dtype=torch.float32), torch.tensor(exp, dtype=torch.float32))
    assert np.allclose(got, expected, atol=1e-4)
    idexp = model.idexp_lm3d(torch.tensor(id, dtype=torch.float32), torch.tensor(exp, dtype=torch.float32))
    assert np.allclose(idexp, 10 * offsets.reshape(-1, 3), atol=1e-3)


def test_colours_are_brought_to_0_1(front: Path) -> None:
    model = convert_bfm_front(front)
    assert model.tex_mean is not None
    assert model.tex_basis is not None
    assert np.allclose(model.tex_mean, FRONT["meantex"].reshape(-1, 3) / 255, atol=1e-6)
    assert np.allclose(model.tex_basis.reshape(-1, 80), FRONT["texBase"] / 255, atol=1e-6)


def test_triangles_are_wound_outwards(front: Path) -> None:
    model = convert_bfm_front(front)
    assert np.array_equal(np.sort(model.triangles, axis=1), np.sort(TRIANGLES, axis=1))
    used = model.triangles.unique()
    assert (model.normals(model.mean)[used, 2] > 0).all()


def test_the_originals_give_the_same_model(originals: Path, front: Path) -> None:
    ours, theirs = convert_bfm_2009(originals), convert_bfm_front(front)
    for name in ("mean", "id_basis", "exp_basis", "tex_mean", "tex_basis"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5), name
    assert torch.equal(ours.triangles, theirs.triangles)
    assert torch.equal(ours.landmark_verts, theirs.landmark_verts)
    assert ours.source_sha256 != theirs.source_sha256


def test_geneface_keypoints_are_one_further_on(tmp_path: Path) -> None:
    """GeneFace indexes vertices with the file's keypoints as they stand, without subtracting 1."""
    keypoints = FRONT["keypoints"].copy()
    keypoints[0, 0] = 40  # an inner vertex; the last of all has no next one
    keypoints[0, 67] = 67
    write_front(tmp_path / "BFM_model_front.mat", MADE, keypoints=keypoints)
    model = convert_bfm_front(tmp_path)
    shifted = dataclasses.replace(model, landmark_verts=model.landmark_verts + 1)
    id, exp = torch.ones(80), torch.ones(64)
    offsets = FRONT["idBase"].sum(1) + FRONT["exBase"].sum(1)
    expected = 10 * offsets.reshape(-1, 3)[keypoints.ravel().astype(int)]
    assert np.allclose(shifted.idexp_lm3d(id, exp), expected, atol=1e-3)
    assert not np.allclose(model.idexp_lm3d(id, exp), expected, atol=1e-1)


def test_a_saved_model_keeps_its_texture(front: Path, tmp_path: Path) -> None:
    model = convert_bfm_front(front)
    model.save(tmp_path / "bfm.npz")
    loaded = FaceModel.load(tmp_path / "bfm.npz")
    assert loaded.tex_mean is not None
    assert loaded.tex_basis is not None
    assert torch.equal(loaded.tex_mean, model.tex_mean)
    assert torch.equal(loaded.tex_basis, model.tex_basis)
    assert loaded.to("cpu").tex_basis is not None


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("01_MorphableModel.mat", "faces.dmi.unibas.ch"),
        ("Exp_Pca.bin", "github.com/Juyong/3DFace"),
        ("std_exp.txt", "Deep3DFaceReconstruction"),
        ("BFM_front_idx.mat", "Deep3DFaceReconstruction"),
        ("BFM_exp_idx.mat", "Deep3DFaceReconstruction"),
        ("facemodel_info.mat", "Deep3DFaceReconstruction"),
    ],
)
def test_a_missing_file_is_named_with_where_to_get_it(originals: Path, name: str, where: str) -> None:
    (originals / name).unlink()
    with pytest.raises(RunError, match=f"{name} not found: .*{where}.*LicenseRef-BFM-2009"):
        convert_bfm_2009(originals)


def test_a_missing_front_file_tells_of_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"BFM_model_front\.mat not found: .*faces\.dmi\.unibas\.ch.*bfm-2009"):
        convert_bfm_front(tmp_path)
    with pytest.raises(RunError, match="is not a folder; bfm-2009 needs one with 01_MorphableModel"):
        convert_bfm_2009(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": np.arange(68)[None]}, r"keypoints must number vertices from 1 to 68, got 0\.\.67"),
        ({"keypoints": np.arange(1, 68)[None]}, "expected 68 keypoints, got 67"),
        ({"tri": MADE.info["tri"] - 18}, "tri must number vertices from 1 to 68, got 0"),
        ({"tri": MADE.info["tri"] + 60}, "tri must number vertices from 1 to 68"),
        ({"idBase": FRONT["idBase"][:, :79]}, r"idBase \[204, 79\]"),
        ({"exBase": FRONT["exBase"][:-3]}, r"exBase \[201, 64\]"),
        ({"meantex": FRONT["meantex"][:, :-3]}, "meantex"),
        ({"meanshape": FRONT["meanshape"] * 1e5}, "unit not decimetre"),
        ({"meanshape": FRONT["meanshape"] * np.tile([1, -1, 1], 68)}, "upside down"),
    ],
)
def test_front_files_of_another_layout_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    write_front(tmp_path / "BFM_model_front.mat", MADE, **changes)
    with pytest.raises(RunError, match=f"is not BFM_model_front.mat as Deep3DFaceRecon makes it: .*{message}"):
        convert_bfm_front(tmp_path)


def test_files_that_are_no_matlab_files_are_refused(tmp_path: Path, originals: Path) -> None:
    (tmp_path / "BFM_model_front.mat").write_bytes(b"<html>" * 100)
    with pytest.raises(RunError, match=r"cannot read .*BFM_model_front\.mat as a MATLAB file"):
        convert_bfm_front(tmp_path)
    (tmp_path / "BFM_model_front.mat").write_bytes((originals / "facemodel_info.mat").read_bytes())
    with pytest.raises(RunError, match="it lacks meanshape, idBase, exBase, meantex, texBase"):
        convert_bfm_front(tmp_path)


@pytest.mark.parametrize("cut", [1, 4 * 270])
def test_a_short_expression_file_is_refused(originals: Path, cut: int) -> None:
    data = (originals / "Exp_Pca.bin").read_bytes()
    (originals / "Exp_Pca.bin").write_bytes(data[:-cut])
    with pytest.raises(RunError, match=r"Exp_Pca\.bin with 79 modes of 90 vertices should have 86404 bytes"):
        convert_bfm_2009(originals)


def test_index_files_that_do_not_fit_are_refused(originals: Path) -> None:
    write_originals(originals, type(MADE)(**{**vars(MADE), "idx": MADE.idx + 60}))
    with pytest.raises(RunError, match="idx must number vertices from 1 to 90"):
        convert_bfm_2009(originals)


def test_describe_says_what_was_made(front: Path) -> None:
    text = describe_model(convert_face_model("bfm-front", front))
    assert "80 identity, 64 expression" in text
    assert "LicenseRef-BFM-2009" in text
    assert "dense     none" in text
    with pytest.raises(ValueError, match="kind must be flame, bfm-front"):
        convert_face_model("bfm", front)  # type: ignore[arg-type]


def test_only_npz_files_are_written(front: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be called something\.npz"):
        save_face_model(convert_bfm_front(front), tmp_path / "face.pkl")
    with pytest.raises(RunError, match="cannot write"):
        save_face_model(convert_bfm_front(front), tmp_path / "none" / "face.npz")


def test_the_tool_converts_and_prints(front: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRS3_LOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LRS3_LOADER_ASSETS", raising=False)
    command = [sys.executable, str(TOOL), "convert", "bfm-front", str(front), "--out", str(tmp_path / "face.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "licence   LicenseRef-BFM-2009" in done.stdout
    assert f"--face-model {tmp_path / 'face.npz'}" in done.stdout
    assert FaceModel.load(tmp_path / "face.npz").num_exp == 64
