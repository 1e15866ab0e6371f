"""Converts a sample of a shard to an item of GeneFace's binarised set.

Shape letters: T frames, R rows at 50 Hz as they were measured (2 T - 1 for our own runs; shards repeat the last one
to 2 T), I identity modes, E expression modes.

An item holds ``item_id`` ("<speaker>_<utterance>"), ``spk_id``, ``spk_idx``, ``mel`` [R, 80], ``f0`` [R], ``hubert``
[R, D], ``coeff`` [T, 257], ``lm68`` [T, 68, 2], ``lm5`` [T, 5, 2] and ``idexp_lm3d`` [T, 68, 3], all float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrs3_loader.errors import RunError
from lrs3_loader.face.model.morphable import IDEXP_SCALE, FaceModel
from lrs3_loader.interop.geneface.settings import ItemOptions

MIN_MEL_ROWS = 64  # GeneFace leaves out shorter clips
ROW_MULTIPLE = 8  # its dataset pads mel to a multiple of this, and everything else has to fit
NUM_COEFF = 257
ID, EXP, ANGLES, TRANSLATION = slice(0, 80), slice(80, 144), slice(224, 227), slice(254, 257)
BFM_ID, BFM_EXP = 80, 64

TOO_SHORT = f"under {MIN_MEL_ROWS} mel rows"
MISFIT = "audio and video too different in length for GeneFace's dataset"


class NotExportedError(Exception):
    """This clip has no place in the set; the message is what it is counted under."""


class ItemMaker:
    """``maker(sample, speaker_index)`` -> item."""

    def __init__(self, options: ItemOptions, face_model: FaceModel | None = None):
        """``face_model``: the run's, needed for ``keypoint_off_by_one`` only.

        Raises:
            ValueError: ``keypoint_off_by_one`` without a face model.
            RunError: one landmark is the model's last vertex, which has none after it.
        """
        self._flip_lm5 = options.flip_lm5
        self._next_bases: tuple[np.ndarray, np.ndarray] | None = None  # [68, 3, I] and [68, 3, E]
        if options.keypoint_off_by_one:
            if face_model is None:
                raise ValueError("keypoint_off_by_one needs the face model of the run")
            verts = face_model.landmark_verts.cpu() + 1
            if int(verts.max()) >= face_model.num_vertices:
                raise RunError(
                    f"face model {face_model.name}: a landmark is its last vertex, so it has no keypoint one further on"
                )
            self._next_bases = face_model.id_basis.cpu()[verts].numpy(), face_model.exp_basis.cpu()[verts].numpy()

    def __call__(self, sample: Mapping[str, Any], speaker_index: int) -> dict[str, Any]:
        """The item of a sample as ``shards.read_shard`` yields it.

        Raises:
            NotExportedError: too short, or lengths that GeneFace's dataset refuses.
            RunError: the sample lacks a field that an item needs.
        """
        key = sample["__key__"]
        _, speaker, utterance = key.split("/")
        missing = [name for name in ("mel", "f0", "hubert", "lm68", "idexp_lm3d") if name not in sample]
        if missing:
            raise RunError(f"{key} has no {', '.join(missing)}, which GeneFace's format needs")
        num_frames = len(sample["idexp_lm3d"])
        num_rows = sample["json"].get("num_rows", {})
        mel_rows, hubert_rows = (
            min(int(num_rows.get(name, 2 * num_frames)), 2 * num_frames) for name in ("mel", "hubert")
        )
        if mel_rows < MIN_MEL_ROWS:
            raise NotExportedError(TOO_SHORT)
        padded = -(-mel_rows // ROW_MULTIPLE) * ROW_MULTIPLE
        if hubert_rows > padded or num_frames > padded // 2:  # its dataset class would raise in the middle of training
            raise NotExportedError(MISFIT)
        arrays = {
            "mel": sample["mel"][:mel_rows],
            "f0": sample["f0"][:mel_rows],
            "hubert": sample["hubert"][:hubert_rows],
            "coeff": sample["coeff"] if "coeff" in sample else lay_out_coeff(sample, num_frames),
            "lm68": sample["lm68"],
            "lm5": self._lm5(sample),
            "idexp_lm3d": self._idexp_lm3d(sample),
        }
        ids = {"item_id": f"{speaker}_{utterance}", "spk_id": speaker, "spk_idx": speaker_index}
        return ids | {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}

    def _lm5(self, sample: Mapping[str, Any]) -> np.ndarray:
        points = five_landmarks(sample["lm68"])
        if self._flip_lm5:
            height = (sample["json"].get("source") or {}).get("height")
            if height is None:
                raise RunError(f"{sample['__key__']} does not say how high its frames are; export with --no-flip-lm5")
            points[..., 1] = height - 1 - points[..., 1]
        return points

    def _idexp_lm3d(self, sample: Mapping[str, Any]) -> np.ndarray:
        if self._next_bases is None:
            return np.asarray(sample["idexp_lm3d"])
        id_basis, exp_basis = self._next_bases
        if "coeff" in sample:
            id_coeff, exp_coeff = sample["coeff"][:, ID], sample["coeff"][:, EXP]
        else:
            id_coeff, exp_coeff = sample["id"][None], sample["exp"]
        if (id_coeff.shape[1], exp_coeff.shape[1]) != (id_basis.shape[2], exp_basis.shape[2]):
            raise RunError(f"{sample['__key__']} was fitted with another face model: give the run's with --face-model")
        return IDEXP_SCALE * (_offsets(id_basis, id_coeff) + _offsets(exp_basis, exp_coeff))


def five_landmarks(lm68: np.ndarray) -> np.ndarray:
    """[T, 68, 2] -> [T, 5, 2]: left eye, right eye, nose, mouth corners; left in the image.

    An eye is the mean of its two corners, as in Deep3DFaceRecon.
    """
    eyes = [(lm68[:, 36] + lm68[:, 39]) / 2, (lm68[:, 42] + lm68[:, 45]) / 2]
    return np.stack([*eyes, lm68[:, 30], lm68[:, 48], lm68[:, 54]], axis=1).astype(np.float32)


def lay_out_coeff(sample: Mapping[str, Any], num_frames: int) -> np.ndarray:
    """``id``, ``exp`` and ``pose`` where Deep3DFaceRecon has its own, [T, 257]; zeros elsewhere.

    Of a model with more than 80 identity or 64 expression modes the first ones are kept.
    """
    coeff = np.zeros((num_frames, NUM_COEFF), dtype=np.float32)
    for part, name in ((coeff[:, ID], "id"), (coeff[:, EXP], "exp")):
        if name in sample:
            values = sample[name][..., : part.shape[1]]
            part[:, : values.shape[-1]] = values
    if "pose" in sample:
        coeff[:, ANGLES], coeff[:, TRANSLATION] = sample["pose"][:, :3], sample["pose"][:, 3:]
    return coeff


def describe_coeff(sample: Mapping[str, Any], face_model: str) -> dict[str, Any]:
    """Describe ``coeff`` in a set made from samples like this one; read back on import."""
    if "coeff" in sample:
        return {"layout": "deep3d", "note": "coeff as Deep3DFaceRecon regressed it"}
    num_id, num_exp = (sample[name].shape[-1] if name in sample else 0 for name in ("id", "exp"))
    kept_id, kept_exp = min(num_id, BFM_ID), min(num_exp, BFM_EXP)
    if (num_id, num_exp) == (BFM_ID, BFM_EXP):
        note = (
            f"coeff laid out from the fit of {face_model} (80 + 64 modes); texture and light are zero; "
            "the pose is of the whole frame's camera, not of an aligned crop"
        )
    else:
        note = (
            f"coeff is not BFM's: {face_model} has {num_id} identity and {num_exp} expression modes; "
            f"columns 0:{kept_id} and 80:{80 + kept_exp} hold the first {kept_id} and {kept_exp} of them, "
            "224:227 and 254:257 the pose of the whole frame's camera, all others are zero"
        )
    return {"layout": "fit", "num_id": num_id, "num_exp": num_exp, "note": note}


def _offsets(basis: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """[68, 3, M] times [T, M] -> [T, 68, 3]."""
    return (coefficients.astype(np.float32) @ basis.reshape(-1, basis.shape[2]).T).reshape(-1, *basis.shape[:2])
