"""The Basel Face Model 2009 with Guo's expressions, as Deep3DFaceRecon uses it: 80 identity and 64 expression modes.

Two sources: ``BFM_model_front.mat``, which Deep3DFaceRecon makes of the originals, or the originals themselves with
the index files that Deep3DFaceRecon ships. Both give the same model. Its conventions, which published coefficients
rely on, are kept: decimetres, the mean shape less the mean of its vertices as the origin, bases already multiplied by
the standard deviations (so ``id_sigma`` and ``exp_sigma`` are 1), and the expression model's own mean left out.
Colours are brought from 0..255 to 0..1. Vertex numbers in the files start at 1; here they start at 0.

Licence: BFM 2009 is given to researchers who apply for it, for research only, and may not be passed on.

Paysan et al., "A 3D Face Model for Pose and Illumination Invariant Face Recognition" (AVSS 2009); for the expressions
Guo et al., "CNN-based Real-time Dense Face Reconstruction" (TPAMI 2018); for the selection of vertices Deng et al.,
"Accurate 3D Face Reconstruction with Weakly-Supervised Learning" (CVPRW 2019).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.surface import orient_outwards
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel
from lrs3_loader.io.files import file_sha256
from lrs3_loader.io.mat_files import read_mat

FRONT = "BFM_model_front.mat"
ORIGINAL = "01_MorphableModel.mat"
EXPRESSIONS = "Exp_Pca.bin"
EXPRESSION_SIGMA = "std_exp.txt"
FRONT_INDEX = "BFM_front_idx.mat"
EXPRESSION_INDEX = "BFM_exp_idx.mat"
INFO = "facemodel_info.mat"

LICENCE = "LicenseRef-BFM-2009 (research only, not to be passed on)"
NUM_ID, NUM_EXP, NUM_TEX = 80, 64, 80
UNITS_PER_DECIMETRE = 1e5  # the originals are in micrometres
_COLOURS = 255.0
_INSIDE = np.array([0.0, 0.0, -0.5])  # a point inside the head, relative to the landmarks' centroid

_BASEL = "apply for it at https://faces.dmi.unibas.ch/bfm/main.php?nav=1-2&id=downloads"
_SHIPPED = "it comes with https://github.com/microsoft/Deep3DFaceReconstruction (folder BFM)"
_ORIGINALS = {  # the originals and the index files, and where to get them
    ORIGINAL: _BASEL,
    EXPRESSIONS: "it is part of CoarseData of https://github.com/Juyong/3DFace",
    EXPRESSION_SIGMA: _SHIPPED,
    FRONT_INDEX: _SHIPPED,
    EXPRESSION_INDEX: _SHIPPED,
    INFO: _SHIPPED,
}
_MADE = f"Deep3DFaceRecon makes it of {ORIGINAL} ({_BASEL}); from the originals, convert with bfm-2009 instead"


def convert_bfm_front(source: Path) -> FaceModel:
    """Read the model from ``BFM_model_front.mat``, or from a folder that contains it.

    Raises ``RunError`` that names a file which is missing (and where to apply for it), damaged, or different.
    """
    path = source / FRONT if source.is_dir() else source
    keys = ("meanshape", "idBase", "exBase", "meantex", "texBase", "tri", "keypoints")
    arrays = _read_mat(path, FRONT, keys)
    try:
        return _build(arrays, file_sha256(path))
    except ValueError as error:
        raise RunError(f"{path} is not {FRONT} as Deep3DFaceRecon makes it: {error}") from error


def convert_bfm_2009(folder: Path) -> FaceModel:
    """Read the model from a folder with the original files and Deep3DFaceRecon's index files.

    Raises ``RunError`` that names a file which is missing (and where to get it), damaged, or inconsistent.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; bfm-2009 needs one with {', '.join(_ORIGINALS)}")
    shape = _read_mat(folder / ORIGINAL, ORIGINAL, ("shapePC", "shapeEV", "shapeMU", "texPC", "texEV", "texMU"))
    front = _read_mat(folder / FRONT_INDEX, FRONT_INDEX, ("idx",))["idx"]
    trimmed = _read_mat(folder / EXPRESSION_INDEX, EXPRESSION_INDEX, ("trimIndex",))["trimIndex"]
    info = _read_mat(folder / INFO, INFO, ("tri", "keypoints"))
    try:
        # Of the original's 53,490 vertices the expressions have 53,215 (trimIndex), of which the face is 35,709 (idx).
        in_trimmed = _from_one("idx", front, trimmed.size)
        in_original = _from_one("trimIndex", trimmed, shape["shapeMU"].size // 3)[in_trimmed]
        exp_basis = _read_expressions(folder, trimmed.size)
        arrays = {
            "meanshape": _rows(shape["shapeMU"], in_original) / UNITS_PER_DECIMETRE,
            "idBase": _modes("shape", shape["shapePC"], shape["shapeEV"], in_original, NUM_ID) / UNITS_PER_DECIMETRE,
            "exBase": _rows(exp_basis, in_trimmed) / UNITS_PER_DECIMETRE,
            "meantex": _rows(shape["texMU"], in_original),
            "texBase": _modes("tex", shape["texPC"], shape["texEV"], in_original, NUM_TEX),
            **info,
        }
        listing = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_ORIGINALS))
        return _build(arrays, hashlib.sha256(listing.encode()).hexdigest())
    except ValueError as error:
        raise RunError(f"the files of BFM 2009 in {folder} do not fit together: {error}") from error


def _check_exists(path: Path, where: str) -> None:
    if not path.is_file():
        raise RunError(f"{path} not found: {where}. Its licence: {LICENCE}")


def _read_mat(path: Path, name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    _check_exists(path, _ORIGINALS.get(name, _MADE))
    try:
        arrays = read_mat(path, keys)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path} as a MATLAB file: {error}") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise RunError(f"{path} is not {name}: it lacks {', '.join(missing)}")
    return arrays


def _read_expressions(folder: Path, num_vertices: int) -> np.ndarray:
    """Read ``Exp_Pca.bin`` and ``std_exp.txt``: modes [3 n, 64] f32, micrometres per standard deviation.

    The file: int32 number of modes M, float32 mean [3 n], float32 modes [M, 3 n]; little-endian.
    """
    path, sigma_path = folder / EXPRESSIONS, folder / EXPRESSION_SIGMA
    for file in (path, sigma_path):
        _check_exists(file, _ORIGINALS[file.name])
    sigma = np.loadtxt(sigma_path).ravel()
    with open(path, "rb") as stream:
        num_modes = int.from_bytes(stream.read(4), "little")
        want = 4 + 4 * 3 * num_vertices * (1 + num_modes)
        if path.stat().st_size != want or num_modes < NUM_EXP or sigma.shape != (num_modes,):
            raise ValueError(
                f"{EXPRESSIONS} with {num_modes} modes of {num_vertices} vertices should have {want} bytes and "
                f"{EXPRESSION_SIGMA} as many numbers as modes, got {path.stat().st_size} bytes and {sigma.size} numbers"
            )
        stream.seek(4 + 4 * 3 * num_vertices)  # past the mean, which Deep3DFaceRecon leaves out
        modes = np.fromfile(stream, dtype="<f4", count=3 * num_vertices * NUM_EXP).reshape(NUM_EXP, -1)
    return (modes * sigma[:NUM_EXP, None]).T


def _modes(name: str, basis: np.ndarray, sigma: np.ndarray, vertices: np.ndarray, count: int) -> np.ndarray:
    """Return the first ``count`` modes times their standard deviations, at n vertices: [3 n, count]."""
    if basis.ndim != 2 or basis.shape[1] != sigma.size or sigma.size < count:
        raise ValueError(f"{name}PC {list(basis.shape)} and {name}EV {list(sigma.shape)} do not fit together")
    return _rows(basis[:, :count], vertices) * sigma.ravel()[:count]


def _rows(values: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Select the rows x, y, z of n vertices: [3 V, M] to [3 n, M]."""
    if values.shape[0] % 3:
        raise ValueError(f"expected three rows per vertex, got {list(values.shape)}")
    picked = values.reshape(-1, 3, values.shape[1])[vertices]
    return picked.reshape(-1, values.shape[1])


def _from_one(name: str, numbers: np.ndarray, count: int) -> np.ndarray:
    """Convert vertex numbers 1..count, in any type and shape of MATLAB's, to i64 from 0, flat."""
    flat = np.asarray(numbers, dtype=np.float64).ravel()
    if flat.size == 0 or not np.array_equal(flat, np.rint(flat)) or flat.min() < 1 or flat.max() > count:
        extent = f"{flat.min():g}..{flat.max():g}" if flat.size else "nothing"
        raise ValueError(f"{name} must number vertices from 1 to {count}, got {extent}")
    return flat.astype(np.int64) - 1


def _build(arrays: dict[str, np.ndarray], digest: str) -> FaceModel:
    mean = np.asarray(arrays["meanshape"], dtype=np.float64).ravel()
    num_rows = mean.size
    want = {"idBase": (num_rows, NUM_ID), "exBase": (num_rows, NUM_EXP), "texBase": (num_rows, NUM_TEX)}
    wrong = [f"{name} {list(arrays[name].shape)}" for name, shape in want.items() if arrays[name].shape != shape]
    if wrong or num_rows % 3 or arrays["meantex"].size != num_rows:
        raise ValueError(
            f"expected bases of {NUM_ID}, {NUM_EXP} and {NUM_TEX} modes with {num_rows} rows as meanshape, "
            f"got {', '.join(wrong) or 'meantex ' + str(list(arrays['meantex'].shape))}"
        )
    verts = mean.reshape(-1, 3)
    verts = verts - verts.mean(0)
    triangles = _from_one("tri", arrays["tri"], len(verts)).reshape(-1, 3)
    landmarks = _from_one("keypoints", arrays["keypoints"], len(verts))
    if landmarks.shape != (NUM_LANDMARKS,):
        raise ValueError(f"expected {NUM_LANDMARKS} keypoints, got {landmarks.size}")
    triangles = orient_outwards(verts, triangles, verts[landmarks].mean(0) + _INSIDE)
    return FaceModel(
        name="bfm2009",
        licence=LICENCE,
        source_sha256=digest,
        mean=_tensor(verts),
        id_basis=_tensor(arrays["idBase"].reshape(len(verts), 3, NUM_ID)),
        exp_basis=_tensor(arrays["exBase"].reshape(len(verts), 3, NUM_EXP)),
        id_sigma=torch.ones(NUM_ID),
        exp_sigma=torch.ones(NUM_EXP),
        triangles=torch.from_numpy(np.ascontiguousarray(triangles)),
        landmark_verts=torch.from_numpy(landmarks),
        id_names=tuple(f"id{number:02d}" for number in range(NUM_ID)),
        exp_names=tuple(f"exp{number:02d}" for number in range(NUM_EXP)),
        tex_mean=_tensor(arrays["meantex"].reshape(-1, 3) / _COLOURS),
        tex_basis=_tensor(arrays["texBase"].reshape(len(verts), 3, NUM_TEX) / _COLOURS),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
