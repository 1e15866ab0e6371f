"""Synthetic files of FLAME's keys, shapes and pickle dialects, around the landmarks of the demo head."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csc_matrix

from lrs3_loader.demo import demo_head

NUM_VERTICES, NUM_FACES = 3 * 68 + 20, 68 + 5
SHIFT = np.array([0.01, -0.03, 0.02])  # where the original has its face, metres
_RNG = np.random.default_rng(11)
PLACES = _RNG.dirichlet([2, 2, 2], 68)  # of the landmarks in triangles 5 to 72


def make_flame() -> dict[str, Any]:
    """The arrays of a FLAME pickle: landmark k lies in a triangle of its own, number 5 + k, at ``PLACES[k]``."""
    rng = np.random.default_rng(12)
    landmarks = demo_head().landmark_mean.numpy().astype(np.float64) / 10 + SHIFT
    corners = 0.003 * rng.standard_normal((68, 3, 3))
    corners += (landmarks - (corners * PLACES[..., None]).sum(1))[:, None]
    template = np.concatenate([corners.reshape(-1, 3), rng.uniform(-0.1, 0.1, (20, 3))])
    own = np.arange(3 * 68).reshape(68, 3)
    weights = rng.dirichlet(np.ones(5), NUM_VERTICES)
    return {
        "v_template": template,
        "f": np.concatenate([rng.integers(0, NUM_VERTICES, (5, 3)), own]).astype(np.uint32),
        "shapedirs": 0.001 * rng.standard_normal((NUM_VERTICES, 3, 400)),
        "posedirs": 0.002 * rng.standard_normal((NUM_VERTICES, 3, 36)),
        "J_regressor": rng.dirichlet(np.ones(NUM_VERTICES), 5),
        "weights": weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], range(5)], dtype=np.uint32),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def full_embedding() -> dict[str, Any]:
    """The contents of ``landmark_embedding.npy``."""
    return {
        "full_lmk_faces_idx": np.arange(5, 73)[None],
        "full_lmk_bary_coords": PLACES[None],
        "static_lmk_faces_idx": np.arange(22, 73),
        "static_lmk_bary_coords": PLACES[17:],
    }


def write_files(folder: Path, made: dict[str, Any], embedding: dict[str, Any] | None = None) -> Path:
    (folder / "generic_model.pkl").write_bytes(pickle.dumps(made, protocol=2))
    np.save(folder / "landmark_embedding.npy", np.array(embedding or full_embedding()), allow_pickle=True)
    return folder / "generic_model.pkl"


def chumpy_era(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The same as a pickle of chumpy arrays and an old sparse matrix, which name modules that are gone."""
    kinds = {}
    for module, name in (("chumpy", "array"), ("chumpy.ch", "Ch"), ("scipy.sparse.csc", "csc_matrix")):
        kinds[name] = type(name, (), {"__module__": module})
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, kinds[name])
        monkeypatch.setitem(sys.modules, module, stand_in)

    def instance(name: str, **attributes: Any) -> Any:
        made_up = kinds[name]()
        made_up.__dict__.update(attributes)
        return made_up

    changed = {name: instance("Ch", x=made[name], _dirty_vars={"x"}, _itr=None) for name in ("v_template", "shapedirs")}
    matrix = csc_matrix(made["J_regressor"])
    parts = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
    changed["J_regressor"] = instance("csc_matrix", **parts, _shape=matrix.shape, maxprint=50)
    data = pickle.dumps(made | changed, protocol=2)
    monkeypatch.undo()
    return data


def slow_articulated(made: dict[str, Any], shape: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """FLAME itself, one vertex at a time: modes, pose correctives, skinning of all five joints.

    shape: [400]; angles: [5, 3], a rotation vector for each joint.
    """
    rotations = [_rodrigues(angle) for angle in angles]
    shaped = made["v_template"] + made["shapedirs"] @ shape
    joints = made["J_regressor"] @ made["v_template"]  # of the mean face, as the reader takes it
    feature = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    posed = shaped + made["posedirs"] @ feature
    world = []
    for joint in range(5):
        parent = int(made["kintree_table"][0, joint])
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if joint else 0)
        world.append(world[parent] @ local if joint else local)
    result = np.zeros_like(posed)
    for vertex in range(len(posed)):
        for joint in range(5):
            moved = world[joint] @ np.append(posed[vertex] - joints[joint], 1.0)
            result[vertex] += made["weights"][vertex, joint] * moved[:3]
    return result


def _rodrigues(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
