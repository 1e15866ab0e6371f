"""FLAME, on synthetic files: the real ones need a registration."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array, csc_matrix, csr_matrix

from benchmarks.coefficients import neutral_expression
from lrs3_loader.errors import RunError
from lrs3_loader.face.fit.fitter import FitConfig, LandmarkFitter
from lrs3_loader.face.model.convert import convert_face_model
from lrs3_loader.face.model.flame import JAW_OPEN, convert_flame
from lrs3_loader.face.model.morphable import FaceModel
from support.flame_files import (
    NUM_VERTICES,
    PLACES,
    chumpy_era,
    full_embedding,
    make_flame,
    slow_articulated,
    write_files,
)

MADE = make_flame()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path, MADE)


def test_a_neutral_face_has_hardly_any_expression(source: Path) -> None:
    """In standard deviations over speech, of 0.5 px of noise; no blendshape score tells of FLAME's modes."""
    model = convert_flame(source)
    assert not LandmarkFitter(model).uses_blendshapes
    _, mean = neutral_expression(model, FitConfig.fast())
    assert mean < 0.3  # measured: 0.21; speech has 1


def landmarks_of(vertices: np.ndarray) -> np.ndarray:
    return (vertices[MADE["f"][5:]] * PLACES[..., None]).sum(1)


def test_shape_and_expression_follow_flames_formula(source: Path) -> None:
    model = convert_flame(source)
    assert (model.num_id, model.num_exp, model.num_vertices) == (100, 53, NUM_VERTICES + 68)
    assert model.exp_names[-3:] == ("jaw_open", "jaw_turn", "jaw_roll")
    rng = np.random.default_rng(1)
    id, exp = rng.standard_normal(100), rng.standard_normal(53)
    exp[50:] = 0
    shape = np.zeros(400)
    shape[:100], shape[300:350] = id, exp[:50]
    expected = 10 * slow_articulated(MADE, shape, np.zeros((5, 3)))
    centre = 10 * landmarks_of(MADE["v_template"]).mean(0)
    got = model.vertices(torch.tensor(id, dtype=torch.float32), torch.tensor(exp, dtype=torch.float32)).numpy()
    assert np.allclose(got[:NUM_VERTICES], expected - centre, atol=1e-4)
    assert np.allclose(got[NUM_VERTICES:], landmarks_of(expected) - centre, atol=1e-4)  # appended, moving along
    assert model.landmark_verts.tolist() == list(range(NUM_VERTICES, NUM_VERTICES + 68))
    assert model.landmark_mean.mean(0).abs().max() < 1e-5


def jaw_error(model: FaceModel, mode: int, axis: int, angle: float) -> float:
    """Largest error of the folded jaw at ``angle``, decimetres."""
    angles = np.zeros((5, 3))
    angles[2, axis] = angle
    moved = 10 * (slow_articulated(MADE, np.zeros(400), angles) - MADE["v_template"])
    exp = torch.zeros(model.num_exp)
    exp[mode] = angle
    folded = (model.vertices(torch.zeros(model.num_id), exp) - model.mean)[:NUM_VERTICES]
    return float(np.abs(folded.numpy() - moved).max())


def test_the_folded_jaw_is_flames_own_at_both_ends_and_close_in_between(source: Path) -> None:
    model = convert_flame(source)
    reach = 10 * np.linalg.norm(MADE["v_template"] - MADE["J_regressor"][2] @ MADE["v_template"], axis=1).max()
    assert jaw_error(model, 50, 0, JAW_OPEN) < 1e-5
    assert jaw_error(model, 50, 0, 0.0) < 1e-6
    assert 1e-4 < jaw_error(model, 50, 0, JAW_OPEN / 2) < 1.5 * JAW_OPEN**2 / 8 * reach
    for mode, axis in ((51, 1), (52, 2)):
        assert jaw_error(model, mode, axis, 0.01) < 1e-3
        assert jaw_error(model, mode, axis, -0.01) < 1e-3


def test_the_jaw_can_be_left_out_and_modes_chosen(source: Path) -> None:
    model = convert_flame(source, num_id=300, num_exp=100, jaw=False)
    assert (model.num_id, model.num_exp) == (300, 100)
    assert len(model.exp_sigma) == 100
    assert convert_face_model("flame", source, flame_jaw=False).num_exp == 50
    for counts in ((0, 50), (301, 50), (100, 101)):
        with pytest.raises(ValueError, match="FLAME has up to 300 and 100 modes"):
            convert_flame(source, num_id=counts[0], num_exp=counts[1])


def test_pickles_of_the_chumpy_era_give_the_same_model(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.pkl"
    old.write_bytes(chumpy_era(MADE, monkeypatch))
    assert b"chumpy.ch" in old.read_bytes()
    assert b"scipy.sparse.csc\n" in old.read_bytes()
    ours, theirs = convert_flame(old), convert_flame(source)
    for name in ("mean", "id_basis", "exp_basis", "triangles"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_the_older_pair_of_embeddings_gives_the_same_landmarks(source: Path, tmp_path: Path) -> None:
    expected = convert_flame(source)
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "flame2023.pkl").write_bytes(source.read_bytes())
    static = {"lmk_face_idx": np.arange(22, 73), "lmk_b_coords": PLACES[17:]}
    (folder / "flame_static_embedding.pkl").write_bytes(pickle.dumps(static, protocol=2))
    dynamic = {"lmk_face_idx": np.tile(np.arange(5, 22), (79, 1)), "lmk_b_coords": np.tile(PLACES[:17], (79, 1, 1))}
    dynamic["lmk_face_idx"][1:] = 0  # turned heads: not used
    np.save(folder / "flame_dynamic_embedding.npy", np.array(dynamic), allow_pickle=True)
    model = convert_flame(folder)
    assert torch.equal(model.landmark_mean, expected.landmark_mean)
    (folder / "flame_dynamic_embedding.npy").unlink()
    with pytest.raises(RunError, match=r"flame_static_embedding\.pkl does not say where FLAME's 68 landmarks lie"):
        convert_flame(folder)


def test_tensors_in_the_embedding_are_passed_over(source: Path, tmp_path: Path) -> None:
    embedding = full_embedding() | {"dynamic_lmk_faces_idx": torch.zeros(79, 17)}
    write_files(tmp_path, MADE, embedding)
    assert torch.equal(convert_flame(tmp_path).mean, convert_flame(source).mean)


def test_missing_files_are_named_with_where_to_get_them(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none\.pkl not found: register at https://flame\.is\.tue\.mpg\.de"):
        convert_flame(tmp_path / "none.pkl")
    (tmp_path / "landmark_embedding.npy").unlink()
    with pytest.raises(RunError, match=r"holds no landmark_embedding\.npy, .*yfeng95/DECA"):
        convert_flame(source)
    source.unlink()
    with pytest.raises(RunError, match=r"holds none of .*generic_model\.pkl.*register at"):
        convert_flame(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapedirs": MADE["shapedirs"][..., :300]}, r"shapedirs must be \[224, 3, 400\], got \[224, 3, 300\]"),
        ({"posedirs": MADE["posedirs"][..., :9]}, "posedirs must be"),
        ({"weights": MADE["weights"][:, :4]}, "weights must be"),
        ({"J_regressor": MADE["J_regressor"][:, :-1]}, "J_regressor must be"),
        ({"kintree_table": np.array([[0, 0, 0, 1, 1], range(5)])}, r"its joints hang on \[0, 0, 1, 1\]"),
        ({"f": MADE["f"].ravel()}, r"f must be \[F, 3\]"),
        ({"f": MADE["f"] + NUM_VERTICES}, r"f names vertices \d+\.\.\d+ of 224"),
    ],
)
def test_pickles_of_another_layout_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write_files(tmp_path, MADE | changes)
    with pytest.raises(RunError, match=f"is not FLAME as released: {message}"):
        convert_flame(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_lmk_faces_idx": np.arange(6, 74)}, r"it names triangles 6\.\.73 of 73"),
        ({"full_lmk_faces_idx": np.arange(5, 72)}, "expected 68 landmarks, got 67"),
        ({"full_lmk_bary_coords": 2 * PLACES}, "its barycentric coordinates do not sum to 1"),
        ({"full_lmk_bary_coords": torch.zeros(68, 3)}, "expected an array"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write_files(tmp_path, MADE, full_embedding() | changes)
    with pytest.raises(RunError, match=f"does not say where FLAME's 68 landmarks lie: {message}"):
        convert_flame(tmp_path)


def test_a_face_in_another_unit_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, MADE | {"v_template": 1000 * MADE["v_template"]})
    with pytest.raises(RunError, match=r"do not give a face: .*unit not decimetre"):
        convert_flame(tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def test_pickles_cannot_run_anything(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source.write_bytes(pickle.dumps(MADE | {"bs_style": Bomb()}, protocol=2))
    with pytest.raises(RunError, match=r"is not FLAME as released: refused: posix\.system \(only numpy arrays"):
        convert_flame(source)
    write_files(tmp_path, MADE, full_embedding() | {"more": Bomb()})
    with pytest.raises(RunError, match=r"landmarks lie: refused: posix\.system"):
        convert_flame(source)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", [csc_matrix, csr_matrix, csc_array])
@pytest.mark.parametrize("protocol", range(6))
def test_sparse_matrices_of_every_protocol_give_the_same_model(source: Path, kind: type, protocol: int) -> None:
    expected = convert_flame(source)
    source.write_bytes(pickle.dumps(MADE | {"J_regressor": kind(MADE["J_regressor"])}, protocol=protocol))
    assert torch.equal(convert_flame(source).exp_basis, expected.exp_basis)


def spoilt_matrix(**changes: object) -> object:
    matrix = csc_matrix(MADE["J_regressor"])
    vars(matrix).update(changes)
    return matrix


INDICES = np.arange(5 * NUM_VERTICES, dtype=np.int32) % 5
STARTS = np.arange(0, 5 * NUM_VERTICES + 1, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": INDICES + 1}, "indices lie outside"),
        ({"indices": INDICES - 1}, "indices lie outside"),
        ({"indptr": STARTS[::-1].copy()}, "do not fit together"),
        ({"indptr": STARTS * 2**60}, "do not fit together"),
        ({"_shape": (5, 2**40)}, "a sparse matrix of 5 x 1099511627776"),
        ({"_shape": (-5, -NUM_VERTICES)}, "a sparse matrix of -5"),
        ({"_shape": 7}, "without a shape"),
        ({"data": np.array(["x"])}, "expected an array of numbers"),
    ],
)
def test_damaged_sparse_matrices_are_refused(source: Path, changes: dict[str, object], message: str) -> None:
    source.write_bytes(pickle.dumps(MADE | {"J_regressor": spoilt_matrix(**changes)}, protocol=2))
    with pytest.raises(RunError, match=f"is not FLAME as released: .*{message}"):
        convert_flame(source)


def test_truncated_files_are_refused(source: Path) -> None:
    for path in (source, source.parent / "landmark_embedding.npy"):
        whole = path.read_bytes()
        for length in (0, 1, 9, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            with pytest.raises(RunError, match=path.name):
                convert_flame(source)
        path.write_bytes(whole)
