"""Synthetic files of BFM 2009's names, keys and layouts, around the landmarks of the demo head; nothing licensed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import savemat

from lrs3_loader.demo import demo_head

NUM_FRONT, NUM_TRIMMED, NUM_ORIGINAL = 68, 90, 120
NUM_MODES, NUM_EXP_MODES = 199, 79
TRIANGLES = np.array([(a + 1, a, 27) for a in range(17, 26)])  # counter-clockwise seen from the front, from 0
CENTRE = np.array([0.02, -0.05, 0.3])  # where the original has its face, decimetres


@dataclass(frozen=True)
class Originals:
    """The contents of the original pair and the index files, as they stand in the files."""

    shape: dict[str, np.ndarray]
    idx: np.ndarray  # [68, 1] from 1, into the trimmed vertices
    trim_index: np.ndarray  # [90, 1] from 1, into the original ones
    exp_mean: np.ndarray  # [270]
    exp_modes: np.ndarray  # [79, 270]
    exp_sigma: np.ndarray  # [79]
    info: dict[str, np.ndarray]


def make_originals() -> Originals:
    rng = np.random.default_rng(7)
    idx = rng.permutation(NUM_TRIMMED)[:NUM_FRONT]
    trim = np.sort(rng.permutation(NUM_ORIGINAL)[:NUM_TRIMMED])
    mean = rng.standard_normal((NUM_ORIGINAL, 3))
    mean[trim[idx]] = demo_head().landmark_mean.numpy() + CENTRE
    shape = {
        "shapePC": 0.02 * rng.standard_normal((3 * NUM_ORIGINAL, NUM_MODES)).astype(np.float32),
        "shapeEV": np.linspace(9e5, 1e4, NUM_MODES, dtype=np.float32)[:, None],
        "shapeMU": (mean.reshape(-1, 1) * 1e5).astype(np.float32),
        "texPC": 0.02 * rng.standard_normal((3 * NUM_ORIGINAL, NUM_MODES)).astype(np.float32),
        "texEV": np.linspace(4000, 50, NUM_MODES, dtype=np.float32)[:, None],
        "texMU": rng.uniform(40, 220, (3 * NUM_ORIGINAL, 1)).astype(np.float32),
    }
    return Originals(
        shape=shape,
        idx=(idx + 1)[:, None].astype(np.uint16),
        trim_index=(trim + 1)[:, None].astype(np.float64),
        exp_mean=rng.standard_normal(3 * NUM_TRIMMED).astype(np.float32),
        exp_modes=rng.standard_normal((NUM_EXP_MODES, 3 * NUM_TRIMMED)).astype(np.float32),
        exp_sigma=np.linspace(5e3, 1e2, NUM_EXP_MODES),
        info={
            "tri": (TRIANGLES[:, ::-1] + 1).astype(np.int32),  # the wrong way round, for the reader to turn
            "keypoints": (np.arange(68) + 1).astype(np.uint16)[None],
        },
    )


def write_originals(folder: Path, made: Originals) -> None:
    savemat(folder / "01_MorphableModel.mat", made.shape)
    savemat(folder / "BFM_front_idx.mat", {"idx": made.idx})
    savemat(folder / "BFM_exp_idx.mat", {"trimIndex": made.trim_index})
    savemat(folder / "facemodel_info.mat", made.info)
    with open(folder / "Exp_Pca.bin", "wb") as file:
        file.write(np.array([NUM_EXP_MODES], dtype="<i4").tobytes())
        file.write(made.exp_mean.astype("<f4").tobytes() + made.exp_modes.astype("<f4").tobytes())
    np.savetxt(folder / "std_exp.txt", made.exp_sigma[None])


def slow_front(made: Originals) -> dict[str, np.ndarray]:
    """The contents of ``BFM_model_front.mat``, one vertex and one mode at a time."""
    rows = 3 * NUM_FRONT
    front = {
        "meanshape": np.zeros((1, rows)),
        "meantex": np.zeros((1, rows)),
        "idBase": np.zeros((rows, 80)),
        "exBase": np.zeros((rows, 64)),
        "texBase": np.zeros((rows, 80)),
    }
    for vertex in range(NUM_FRONT):
        trimmed = int(made.idx[vertex, 0]) - 1
        original = int(made.trim_index[trimmed, 0]) - 1
        for axis in range(3):
            row, source = 3 * vertex + axis, 3 * original + axis
            front["meanshape"][0, row] = made.shape["shapeMU"][source, 0] / 1e5
            front["meantex"][0, row] = made.shape["texMU"][source, 0]
            for mode in range(80):
                for name, letter, unit in (("idBase", "shape", 1e5), ("texBase", "tex", 1.0)):
                    value = float(made.shape[f"{letter}PC"][source, mode]) * float(made.shape[f"{letter}EV"][mode, 0])
                    front[name][row, mode] = value / unit
            for mode in range(64):
                value = float(made.exp_modes[mode, 3 * trimmed + axis]) * made.exp_sigma[mode]
                front["exBase"][row, mode] = value / 1e5
    return front | made.info


def write_front(path: Path, made: Originals, **changes: np.ndarray) -> None:
    extra = {"point_buf": np.ones((NUM_FRONT, 8)), "skinmask": np.ones((1, NUM_FRONT))}
    savemat(path, slow_front(made) | extra | changes)
