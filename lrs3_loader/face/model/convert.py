"""Convert published face models to this package's format, with dense correspondence if its sources are available."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import NUM_MESH_POINTS
from lrs3_loader.face.model.bfm import convert_bfm_2009, convert_bfm_front
from lrs3_loader.face.model.correspondence import with_dense, with_dense_index
from lrs3_loader.face.model.flame import convert_flame
from lrs3_loader.face.model.ict import convert_ict
from lrs3_loader.face.model.morphable import FaceModel

ModelKind = Literal["bfm-front", "bfm-2009", "flame", "ict"]


def convert_face_model(
    kind: ModelKind,
    source: Path,
    task: Path | None = None,
    dense_index: Path | None = None,
    flame_embedding: Path | None = None,
    flame_jaw: bool = True,
) -> FaceModel:
    """Read a published face model.

    Args:
        kind: which model it is.
        source: its file or folder, see the reader of this kind.
        task: a ``face_landmarker.task``, to compute the dense correspondence with its canonical face.
        dense_index: a file with the dense correspondence, see ``with_dense_index``; takes precedence over ``task``.
        flame_embedding: embedding of FLAME's landmarks, see ``convert_flame``.
        flame_jaw: whether FLAME's jaw joint becomes expression modes.

    Raises:
        RunError: a file is missing, damaged or of another kind.
        ValueError: an unknown ``kind``.
    """
    if kind == "flame":
        model = convert_flame(source, flame_embedding, jaw=flame_jaw)
    else:
        readers = {"bfm-front": convert_bfm_front, "bfm-2009": convert_bfm_2009, "ict": convert_ict}
        if kind not in readers:
            raise ValueError(f"kind must be flame, {', '.join(readers)}, got {kind!r}")
        model = readers[kind](source)
    if dense_index is not None:
        return with_dense_index(model, dense_index)
    return model if task is None else with_dense(model, task)


def save_face_model(model: FaceModel, path: Path) -> None:
    """Write ``model`` to ``path`` atomically; raises ``RunError`` if that fails or the suffix is not ``.npz``."""
    if path.suffix != ".npz":
        raise RunError(f"a face model's file must be called something.npz, got {path}")
    model.save(path)


def describe_model(model: FaceModel) -> str:
    """Describe a model's size, modes, licence and source in a few lines of text."""
    texture = "none" if model.tex_basis is None else f"{model.tex_basis.shape[2]} modes"
    dense = "none"
    if model.dense is not None:
        dense = f"{int((model.dense.weight > 0).sum())} of {NUM_MESH_POINTS} points have a weight"
    return f"""\
name      {model.name}
licence   {model.licence}
vertices  {model.num_vertices}, triangles {len(model.triangles)}
modes     {model.num_id} identity, {model.num_exp} expression
texture   {texture}
dense     {dense}
source    sha256 {model.source_sha256}"""
