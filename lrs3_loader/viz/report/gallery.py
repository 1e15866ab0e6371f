"""Draws a few clips without any image of a person: landmarks, the fitted mesh, mel spectrogram and pitch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.tar import DamagedError, TarIndex
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz.overlay import landmark_lines, to_uint8
from lrs3_loader.viz.preview.chart import HEAT_MAP, MEL_RANGE, PITCH_TOP_HZ
from lrs3_loader.viz.preview.measures import mouth_opening
from lrs3_loader.viz.preview.mesh import MeshPainter
from lrs3_loader.viz.preview.view import View
from lrs3_loader.viz.report.collect import Pick, read_fields

ModelLoader = Callable[[], FaceModel]
PANEL_PX = 200
MAX_MEL_COLUMNS = 1200  # longer clips are averaged down to this many
_FIELDS = frozenset({"mel", "f0", "lm68", "valid", "id", "exp", "pose"})
_FIT_FIELDS = frozenset({"id", "exp", "pose"})
_NUM_SHADES = 64  # of the mel spectrogram


@dataclass(frozen=True)
class Face:
    """Landmarks of one frame, in pixels of a square of ``size``."""

    lines: list[np.ndarray]  # [n, 2] each, along the features
    detected: np.ndarray  # [68, 2]
    fitted: np.ndarray  # [68, 2], or [0, 2] without a fit
    size: int = PANEL_PX


@dataclass(frozen=True)
class Card:
    """One clip of the gallery; None stands for what its sample lacks."""

    key: str
    reason: str
    facts: list[str]
    face: Face | None  # of the frame with the widest open mouth
    mesh: str | None  # the same frame as a data URI
    mel: str | None  # data URI
    pitch: np.ndarray  # [n, 2] voiced rows, in percent of the mel spectrogram's box


def draw_cards(folder: RunFolder, picks: Sequence[Pick], load_model: ModelLoader) -> tuple[list[Card], str]:
    """A card for each pick that can still be read, and why there are no meshes (or nothing)."""
    if not picks:
        return [], ""
    model, remark = None, ""
    try:
        model = load_model()
    except RunError as error:
        remark = f"No meshes: {error}"
    cards = []
    for pick in picks:
        try:
            index = TarIndex(folder.tar_path(pick.shard))
            try:
                sample = read_fields(index, pick.index, _FIELDS)
            finally:
                index.close()
        except DamagedError:
            continue  # it was read a moment ago: named among the damaged only if that failed
        cards.append(draw_card(pick, sample, model))
    return cards, remark


def draw_card(pick: Pick, sample: dict[str, Any], model: FaceModel | None) -> Card:
    """Draw one sample; without a ``model``, or without a fit in the sample, there is no mesh."""
    face = mesh = mel = None
    pitch = np.empty((0, 2))
    facts = _facts(sample)
    if "lm68" in sample:
        found = sample.get("valid", np.ones(len(sample["lm68"]), dtype=bool))
        frame = int(np.argmax(np.where(found, mouth_opening(sample["lm68"]), -1.0)))
        facts.append(f"frame {frame}")
        face, mesh = _draw_face(sample, frame, model)
    if "mel" in sample:
        mel = _mel_picture(sample["mel"])
        pitch = pitch_dots(sample["f0"]) if "f0" in sample else pitch
    return Card(pick.key, pick.reason, facts, face, mesh, mel, pitch)


def _facts(sample: dict[str, Any]) -> list[str]:
    meta = sample["json"]
    quality = meta.get("quality", {})
    facts = [f"{meta['num_frames'] / FRAMES_PER_SECOND:.1f} s"]
    if "relative_error" in quality:
        facts.append(f"fit error {100 * quality['relative_error']:.2f} %")
    if "valid" in sample:
        facts.append(f"face in {sample['valid'].mean():.0%}")
    return facts


def pitch_dots(f0_hz: np.ndarray) -> np.ndarray:
    """The voiced rows of ``f0_hz`` [n] as (x, y) in percent of a box that is ``PITCH_TOP_HZ`` high, y down."""
    voiced = np.flatnonzero(f0_hz > 0)
    x = (voiced + 0.5) / len(f0_hz) * 100
    return np.stack([x, 100 - np.minimum(f0_hz[voiced] / PITCH_TOP_HZ, 1) * 100], axis=1)


def _draw_face(sample: dict[str, Any], frame: int, model: FaceModel | None) -> tuple[Face, str | None]:
    """Landmarks of one frame, and the mesh in the same view as a data URI."""
    points = sample["lm68"][frame]
    source = sample["json"].get("source", {})
    low, high = points.min(0), points.max(0)
    side = max(16, int(np.ceil(1.3 * float((high - low).max()))))
    left, top = np.rint((low + high - side + 1) / 2).astype(int)
    view = View(int(left), int(top), side, PANEL_PX)
    mesh, fitted = None, np.empty((0, 2))
    if model is not None and sample.keys() >= _FIT_FIELDS and "height" in source:
        id, exp, pose = (torch.from_numpy(np.array(sample[name], np.float32)) for name in ("id", "exp", "pose"))
        camera = Camera.for_frame(int(source["height"]), int(source["width"]))
        fitted = view.to_panel(project(model.landmarks(id, exp[frame]), pose[frame], camera).numpy())
        picture = view.blank()
        MeshPainter(model, id, camera, view).draw(picture, exp[frame], pose[frame], 1.0)
        mesh = data_uri(Image.fromarray(to_uint8(picture)).quantize(48))
    shown = view.to_panel(points)
    return Face([shown[line] for line in landmark_lines()], shown, fitted), mesh


def _mel_picture(mel: np.ndarray) -> str:
    """[2T, 80] as a picture of as many columns and rows, low notes at the bottom."""
    if len(mel) > MAX_MEL_COLUMNS:
        edges = np.linspace(0, len(mel), MAX_MEL_COLUMNS + 1).astype(int)
        mel = np.add.reduceat(mel, edges[:-1], axis=0) / np.diff(edges)[:, None]
    low, high = MEL_RANGE
    share = np.clip((mel.T[::-1] - low) / (high - low), 0, 1)
    picture = Image.fromarray(np.rint(share * (_NUM_SHADES - 1)).astype(np.uint8), "P")
    picture.putpalette(colormaps[HEAT_MAP](np.linspace(0, 1, _NUM_SHADES), bytes=True)[:, :3].tobytes())
    return data_uri(picture)


def data_uri(picture: Image.Image) -> str:
    """Encode an image as the value of ``src``."""
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
