"""Linear 3D morphable face models (3DMM) in one neutral format, independent of their source.

    vertices(id, exp) = mean + id_basis . id + exp_basis . exp

Blanz and Vetter, "A morphable model for the synthesis of 3D faces" (SIGGRAPH 1999).

Letters: V vertices, F triangles, I identity modes, E expression modes, X texture modes, L = 468 dense points,
``...`` any leading dimensions.

Unit: decimetre (the outer corners of an adult's eyes are about 0.9 apart). Axes, for a face that looks into
the camera: x to the right of the image (the person's left), y up, z out of the face towards the camera.
Origin: the centroid of the mean face's 68 landmark vertices, unless the model's published coefficients need
another one. Triangles are counter-clockwise seen from outside. "mean" is the face of zero coefficients;
for blendshape models such as ICT-FaceKit it is the generic neutral face.

The file format is an ``.npz`` without pickles; its keys are the fields of ``FaceModel`` plus ``format``.
Texts are unicode arrays. Optional keys: ``exp_bounds``, the texture (``tex_mean``, ``tex_basis``) and the dense
correspondence (``dense_triangle``, ``dense_barycentric`` and ``dense_weight``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.io.files import write_result
from lrs3_loader.io.safe_load import read_npz

FORMAT = "lrs3_loader face model 1"
UNIT = "decimetre"
NUM_LANDMARKS = 68
IDEXP_SCALE = 10.0  # GeneFace stores decimetres x 10
MAX_FILE_BYTES = 4 << 30  # unpacked; a full BFM with 35,709 vertices takes 62 MB

_TEXTS = ("name", "licence", "source_sha256", "unit")
_NAME_LISTS = ("id_names", "exp_names")
_FLOATS = ("mean", "id_basis", "exp_basis", "id_sigma", "exp_sigma")
_INTS = ("triangles", "landmark_verts")
_OPTIONAL_FLOATS = ("exp_bounds", "tex_mean", "tex_basis")
_DENSE = {"dense_triangle": "iu", "dense_barycentric": "f", "dense_weight": "f"}  # kinds of their types in a file


@dataclass(frozen=True, eq=False)
class DensePoints:
    """Dense correspondence: for each of MediaPipe's 468 points, a triangle of a face model, a place in it, a weight.

    The irises (points 468 to 477 of the newer network) belong to no surface and are left out.

    Raises ``ValueError`` for wrong shapes, weights outside 0..1, or barycentric coordinates that leave the triangle.
    """

    triangle: torch.Tensor  # [L] i64, number of the triangle; 0 for a point without counterpart
    barycentric: torch.Tensor  # [L, 3] f32, weights of the triangle's corners; at least 0, sum 1
    weight: torch.Tensor  # [L] f32, 0 (no counterpart, do not use) to 1 (as good as a landmark): inverse variance

    def __post_init__(self) -> None:
        _check_tensor("dense triangle", self.triangle, (NUM_MESH_POINTS,), torch.int64)
        _check_tensor("dense barycentric", self.barycentric, (NUM_MESH_POINTS, 3))
        _check_tensor("dense weight", self.weight, (NUM_MESH_POINTS,))
        if not (self.barycentric >= 0).all() or not ((self.barycentric.sum(1) - 1).abs() < 1e-4).all():
            raise ValueError("dense barycentric coordinates must be at least 0 and sum to 1")
        if not ((self.weight >= 0) & (self.weight <= 1)).all():
            raise ValueError("dense weights must lie in 0..1")
        if self.triangle.min() < 0:
            raise ValueError(f"dense triangles must be numbered from 0, got {int(self.triangle.min())}")

    def to(self, device: torch.device | str) -> DensePoints:
        """Return a copy on ``device``."""
        return DensePoints(self.triangle.to(device), self.barycentric.to(device), self.weight.to(device))

    def interpolate(self, values: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
        """Interpolate ``values`` [..., V, D] at the vertices of ``triangles`` [F, 3] to the points, [..., L, D]."""
        corners = values[..., triangles[self.triangle], :]  # [..., L, 3, D]
        return (corners * self.barycentric[..., None]).sum(-2)


@dataclass(frozen=True, eq=False)
class FaceModel:
    """One linear face model; all tensors are on one device (see ``to``).

    Raises ``ValueError`` for shapes that do not fit together, indices out of range, values that are not finite, and for
    a face in another unit or other axes than the module's (as its 68 landmarks show).
    """

    name: str
    licence: str  # SPDX identifier where there is one
    source_sha256: str  # hash of what it was converted from (64 hex digits)
    mean: torch.Tensor  # [V, 3] f32, decimetres
    id_basis: torch.Tensor  # [V, 3, I] f32, decimetres per unit of coefficient
    exp_basis: torch.Tensor  # [V, 3, E] f32, decimetres per unit of coefficient
    id_sigma: torch.Tensor  # [I] f32 > 0, standard deviation of each coefficient over people
    exp_sigma: torch.Tensor  # [E] f32 > 0, root mean square of each coefficient over speech
    triangles: torch.Tensor  # [F, 3] i64, vertex numbers from 0
    landmark_verts: torch.Tensor  # [68] i64, the vertex of each iBUG-68 landmark, in iBUG's order
    id_names: tuple[str, ...]  # I names
    exp_names: tuple[str, ...]  # E names
    exp_bounds: torch.Tensor | None = None  # [2, E] f32, lowest and highest value (blendshapes: 0 and 1)
    unit: str = UNIT
    dense: DensePoints | None = None  # places of MediaPipe's 468 points
    tex_mean: torch.Tensor | None = None  # [V, 3] f32, mean colour: red, green, blue in 0..1
    tex_basis: torch.Tensor | None = None  # [V, 3, X] f32, colour per unit of coefficient; with tex_mean or not at all

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)
        _check_geometry(self)

    @property
    def num_vertices(self) -> int:
        return len(self.mean)

    @property
    def num_id(self) -> int:
        return self.id_basis.shape[2]

    @property
    def num_exp(self) -> int:
        return self.exp_basis.shape[2]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def to(self, device: torch.device | str) -> FaceModel:
        """Return a copy on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in (*_FLOATS, *_INTS, *self._optional_floats())}
        return replace(self, **moved, dense=None if self.dense is None else self.dense.to(device))

    def _optional_floats(self) -> tuple[str, ...]:
        return tuple(name for name in _OPTIONAL_FLOATS if getattr(self, name) is not None)

    @cached_property
    def landmark_mean(self) -> torch.Tensor:
        """Landmarks [68, 3] of the mean face."""
        return self.mean[self.landmark_verts]

    @cached_property
    def landmark_id_basis(self) -> torch.Tensor:
        """Rows [68, 3, I] of ``id_basis`` at the landmarks."""
        return self.id_basis[self.landmark_verts]

    @cached_property
    def landmark_exp_basis(self) -> torch.Tensor:
        """Rows [68, 3, E] of ``exp_basis`` at the landmarks."""
        return self.exp_basis[self.landmark_verts]

    def vertices(self, id: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """All vertices [..., V, 3] in decimetres for ``id`` [..., I] and ``exp`` [..., E]; both broadcast."""
        return self.mean + linear_offsets(self.id_basis, id) + linear_offsets(self.exp_basis, exp)

    def landmarks(self, id: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """The 68 landmark vertices [..., 68, 3] in decimetres; arguments as for ``vertices``."""
        return self.landmark_mean + self.landmark_offsets(id, exp)

    def landmark_offsets(self, id: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """Offsets of ``landmarks`` from the mean face's, [..., 68, 3] in decimetres."""
        return linear_offsets(self.landmark_id_basis, id) + linear_offsets(self.landmark_exp_basis, exp)

    def idexp_lm3d(self, id: torch.Tensor, exp: torch.Tensor) -> torch.Tensor:
        """GeneFace's ``idexp_lm3d`` [..., 68, 3]: landmark offsets from the mean face, decimetres times 10."""
        return IDEXP_SCALE * self.landmark_offsets(id, exp)

    @cached_property
    def dense_mean(self) -> torch.Tensor:
        """Dense points [468, 3] of the mean face. Raises ``ValueError`` for a model without dense correspondence."""
        return self._at_dense(self.mean)

    @cached_property
    def dense_id_basis(self) -> torch.Tensor:
        """Rows [468, 3, I] of ``id_basis`` at the dense points."""
        return self._at_dense(self.id_basis.flatten(1)).unflatten(-1, self.id_basis.shape[1:])

    @cached_property
    def dense_exp_basis(self) -> torch.Tensor:
        """Rows [468, 3, E] of ``exp_basis`` at the dense points."""
        return self._at_dense(self.exp_basis.flatten(1)).unflatten(-1, self.exp_basis.shape[1:])

    def _at_dense(self, values: torch.Tensor) -> torch.Tensor:
        if self.dense is None:
            raise ValueError(f"the face model {self.name} has no dense correspondence")
        return self.dense.interpolate(values, self.triangles)

    def normals(self, vertices: torch.Tensor) -> torch.Tensor:
        """Return outward unit normals [..., V, 3] at ``vertices`` [..., V, 3]: normalised area-weighted sums.

        On a GPU, the order of ``index_add`` may change the last bits from call to call.
        """
        first, second, third = vertices[..., self.triangles, :].unbind(-2)
        area_normals = torch.linalg.cross(second - first, third - first)
        sums = torch.zeros_like(vertices)
        for corner in range(3):
            sums = sums.index_add(-2, self.triangles[:, corner], area_normals)
        return torch.nn.functional.normalize(sums, dim=-1)

    def _arrays(self, dense: bool) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name).cpu().numpy() for name in _FLOATS}
        arrays |= {name: getattr(self, name).cpu().numpy().astype(np.int32) for name in _INTS}
        arrays |= {name: getattr(self, name).cpu().numpy() for name in self._optional_floats()}
        if dense and self.dense is not None:
            arrays |= {name: getattr(self.dense, name.removeprefix("dense_")).cpu().numpy() for name in _DENSE}
        return arrays

    def sha256(self, dense: bool) -> str:
        """Return a hash of the model's numbers, with or without those of the dense correspondence."""
        digest = hashlib.sha256()
        for name, array in self._arrays(dense).items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the model as a neutral ``.npz``, atomically; equal models give equal bytes."""
        arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT)}
        arrays |= {name: np.array(getattr(self, name), dtype=np.str_) for name in (*_TEXTS, *_NAME_LISTS)}
        arrays |= self._arrays(dense=True)
        with write_result(path) as file:  # a handle: numpy would append .npz to a name without it
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle

    @classmethod
    def load(cls, path: Path) -> FaceModel:
        """Read a neutral ``.npz`` onto the CPU; raises ``RunError`` with the path and what is wrong with it."""
        try:
            return _from_arrays(read_npz(path, MAX_FILE_BYTES))
        except OSError as error:
            raise RunError(f"cannot read the face model {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise RunError(f"{path} is not a face model in this package's format: {error}") from error


def linear_offsets(basis: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Offsets [..., V, 3]: ``basis`` [V, 3, M] times ``coefficients`` [..., M]."""
    if coefficients.shape[-1] != basis.shape[2]:
        raise ValueError(f"expected {basis.shape[2]} coefficients, got {tuple(coefficients.shape)}")
    flat = coefficients @ basis.reshape(-1, basis.shape[2]).T
    return flat.unflatten(-1, basis.shape[:2])


def _check_tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _check_shapes(model: FaceModel) -> None:
    num_vertices, num_id, num_exp = len(model.mean), len(model.id_names), len(model.exp_names)
    want = {
        "mean": (num_vertices, 3),
        "id_basis": (num_vertices, 3, num_id),
        "exp_basis": (num_vertices, 3, num_exp),
        "id_sigma": (num_id,),
        "exp_sigma": (num_exp,),
    }
    if (model.tex_mean is None) != (model.tex_basis is None):
        raise ValueError("tex_mean and tex_basis go together")
    if model.exp_bounds is not None:
        want["exp_bounds"] = (2, num_exp)
    if model.tex_basis is not None:
        want |= {"tex_mean": (num_vertices, 3), "tex_basis": (num_vertices, 3, model.tex_basis.shape[-1])}
    for name, shape in want.items():
        _check_tensor(name, getattr(model, name), shape)
    _check_tensor("landmark_verts", model.landmark_verts, (NUM_LANDMARKS,), torch.int64)
    _check_tensor("triangles", model.triangles, (len(model.triangles), 3), torch.int64)
    if num_vertices == 0 or num_id == 0 or num_exp == 0:
        raise ValueError("a face model needs vertices, identity modes and expression modes")


def _check_values(model: FaceModel) -> None:
    if model.dense is not None and int(model.dense.triangle.max()) >= len(model.triangles):
        raise ValueError(
            f"dense triangles must lie in 0..{len(model.triangles) - 1}, got {int(model.dense.triangle.max())}"
        )
    for name in (*_FLOATS, *model._optional_floats()):
        if not torch.isfinite(getattr(model, name)).all():
            raise ValueError(f"{name} holds values that are not finite")
    for name in _INTS:
        index = getattr(model, name)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(model.mean)):
            raise ValueError(f"{name} must lie in 0..{len(model.mean) - 1}, got {int(index.min())}..{int(index.max())}")
    for name in ("id_sigma", "exp_sigma"):
        if not (getattr(model, name) > 0).all():
            raise ValueError(f"{name} must be above 0")
    if model.exp_bounds is not None and not (model.exp_bounds[0] < model.exp_bounds[1]).all():
        raise ValueError("exp_bounds must hold finite lowest values below the highest ones")
    for name in _NAME_LISTS:
        names = getattr(model, name)
        if len(set(names)) != len(names):
            raise ValueError(f"{name} must be unique")
    if len(model.source_sha256) != 64 or set(model.source_sha256) - set("0123456789abcdef"):
        raise ValueError(f"source_sha256 must be 64 hex digits, got {model.source_sha256!r}")
    if model.unit != UNIT:
        raise ValueError(f"unit must be {UNIT!r}, got {model.unit!r}")


def _check_geometry(model: FaceModel) -> None:
    """Check unit and axes by the mean face's landmarks, where the usual mistakes of a converter show."""
    points = model.landmark_mean.cpu()
    eye_distance = float((points[45] - points[36]).norm())
    if not 0.4 < eye_distance < 1.6:
        raise ValueError(f"outer eye corners are {eye_distance:.3g} apart; about 0.9 is expected: unit not {UNIT}?")
    if not points[45, 0] > points[36, 0]:
        raise ValueError("landmark 45 must lie to the right of landmark 36: x axis or landmark order is mirrored")
    if not points[27, 1] > points[8, 1]:
        raise ValueError("landmark 27 (nose bridge) must lie above landmark 8 (chin): y axis is upside down")
    if not points[30, 2] > points[[36, 45], 2].mean():
        raise ValueError("landmark 30 (nose tip) must lie in front of the eye corners: z axis is reversed")
    if not points.mean(0).norm() < 1.5:
        raise ValueError("the landmarks' centroid lies more than 1.5 decimetres from the origin: model not centred?")


def _from_arrays(arrays: dict[str, np.ndarray]) -> FaceModel:
    if str(arrays.get("format")) != FORMAT:
        raise ValueError(f"its format reads {str(arrays.get('format'))!r}, expected {FORMAT!r}")
    dense = [name for name in _DENSE if name in arrays]  # older files have none
    optional = [name for name in _OPTIONAL_FLOATS if name in arrays]
    needed = {*_TEXTS, *_NAME_LISTS, *_FLOATS, *_INTS, *(_DENSE if dense else ())}
    if missing := sorted(needed - set(arrays)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    tensors = {name: _tensor(name, arrays[name], "f") for name in (*_FLOATS, *optional)}
    tensors |= {name: _tensor(name, arrays[name], "iu") for name in _INTS}
    texts = {name: str(arrays[name]) for name in _TEXTS}
    lists = {name: tuple(str(text) for text in arrays[name].ravel()) for name in _NAME_LISTS}
    points = DensePoints(*(_tensor(name, arrays[name], _DENSE[name]) for name in dense)) if dense else None
    return FaceModel(**texts, **lists, **tensors, dense=points)  # type: ignore[arg-type]


def _tensor(name: str, array: np.ndarray, kinds: str) -> torch.Tensor:
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} has the type {array.dtype}")
    return torch.from_numpy(array.astype(np.float32 if kinds == "f" else np.int64))
