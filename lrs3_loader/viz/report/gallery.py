"""Draws a few clips: landmarks, fitted mesh, mel spectrogram and pitch; over frames only where that is asked for."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.tar import DamagedError
from lrs3_loader.types import FRAMES_PER_SECOND, Clip
from lrs3_loader.viz.chart import HEAT_MAP, MEL_RANGE, PITCH_TOP_HZ
from lrs3_loader.viz.mesh import MeshPainter
from lrs3_loader.viz.overlay import to_uint8
from lrs3_loader.viz.preview.measures import mouth_opening
from lrs3_loader.viz.report.collect import Pick, read_fields
from lrs3_loader.viz.view import View, blank_panel

ModelLoader = Callable[[], FaceModel]
#: Gives frame t, [H, W, 3] u8, of a clip of so many frames; raises ``RunError`` where its video is not there.
FrameReader = Callable[[Clip, int, int], np.ndarray]
PANEL_PX = 200
MAX_PX = 1e6  # landmarks further out are damage
MAX_MEL_COLUMNS = 1200  # longer clips are averaged down to this many
_FrameOf = Callable[[Pick, int, int], np.ndarray | None]
_FIELDS = frozenset({"mel", "f0", "lm68", "valid", "id", "exp", "pose"})
_NUM_SHADES = 64  # of the mel spectrogram


@dataclass
class Card:
    """One clip of the gallery; empty stands for what its sample lacks. Points are pixels of a square of ``size``."""

    key: str
    reason: str
    facts: list[str]
    frame: str = ""  # the frame around the landmarks, as a data URI; empty: not shown
    landmarks: np.ndarray | None = None  # [68, 2], of the frame with the widest open mouth
    fitted: np.ndarray | None = None  # [68, 2], of that frame
    mesh: str = ""  # of that frame, as a data URI
    mel: str = ""  # data URI
    pitch: str = ""  # path of an SVG, in percent of the mel spectrogram's box
    size: int = PANEL_PX


class Gallery:
    """Draws clips of one run. ``remarks`` says what is not shown and why, ``damaged`` what cannot be read.

    Args:
        load_model: gives the run's face model, or raises ``RunError``; then no meshes are drawn.
        read_frame: gives frames of the videos; None: no image of anybody is shown.
    """

    def __init__(self, folder: RunFolder, load_model: ModelLoader, read_frame: FrameReader | None = None) -> None:
        self._folder = folder
        self._read_frame = read_frame
        self._load_model = load_model
        self.remarks: list[str] = []
        self.damaged: list[str] = []

    @cached_property
    def _model(self) -> FaceModel | None:
        try:
            return self._load_model()
        except RunError as error:
            self.remarks.append(f"No meshes: {error}")
            return None

    def draw(self, picks: Iterable[Pick]) -> list[Card]:
        """Return a card for each pick that can be read, in their order."""
        cards = []
        for pick in picks:
            try:
                with self._folder.open_tar(pick.shard) as index:
                    sample = read_fields(index, pick.index, _FIELDS)
            except DamagedError as error:
                if str(error) not in self.damaged:
                    self.damaged.append(str(error))
                continue
            cards.append(_draw_card(pick, sample, self._model, self._frame_of))
        return cards

    def _frame_of(self, pick: Pick, num_frames: int, index: int) -> np.ndarray | None:
        if self._read_frame is None:
            return None
        clip = next(clip for clip in pick.shard.clips if clip.key == pick.key)
        try:
            return self._read_frame(clip, num_frames, index)
        except RunError as error:
            if not any(remark.startswith("No frames") for remark in self.remarks):
                self.remarks.append(f"No frames of some clips: {error}")
            return None


def _draw_card(pick: Pick, sample: dict[str, Any], model: FaceModel | None, frame_of: _FrameOf) -> Card:
    meta = sample["json"]
    card = Card(pick.key, pick.reason, [f"{meta['num_frames'] / FRAMES_PER_SECOND:.1f} s"])
    if "relative_error" in meta.get("quality", {}):
        card.facts.append(f"fit error {100 * meta['quality']['relative_error']:.2f} %")
    if "valid" in sample:
        card.facts.append(f"face in {sample['valid'].mean():.0%}")
    if "lm68" in sample:
        _draw_face(card, sample, model, lambda index: frame_of(pick, int(meta["num_frames"]), index))
    if "mel" in sample:
        card.mel = _mel_image(sample["mel"])
    if "f0" in sample:
        card.pitch = pitch_path(sample["f0"])
    return card


def _draw_face(
    card: Card, sample: dict[str, Any], model: FaceModel | None, frame_of: Callable[[int], np.ndarray | None]
) -> None:
    """Landmarks of one frame, and the fitted mesh in the same view."""
    found = sample.get("valid", np.ones(len(sample["lm68"]), dtype=bool))
    frame = int(np.argmax(np.where(found, mouth_opening(sample["lm68"]), -1.0)))
    card.facts.append(f"frame {frame}")
    if np.abs(sample["lm68"][frame]).max() > MAX_PX:
        return
    view = View.around(sample["lm68"][frame], PANEL_PX)
    card.landmarks = view.to_panel(sample["lm68"][frame])
    pixels = frame_of(frame)
    ground = blank_panel(PANEL_PX) if pixels is None else view.show(pixels)
    if pixels is not None:
        card.frame = _data_uri(Image.fromarray(to_uint8(ground)), "jpeg")
    source = sample["json"].get("source", {})
    if model is not None and sample.keys() >= {"id", "exp", "pose"} and source.keys() >= {"height", "width"}:
        id, exp, pose = (torch.from_numpy(np.array(sample[name], np.float32)) for name in ("id", "exp", "pose"))
        if (len(id), exp.shape[1]) != (model.num_id, model.num_exp):
            return
        camera = Camera.for_frame(source["height"], source["width"])
        card.fitted = view.to_panel(project(model.landmarks(id, exp[frame]), pose[frame], camera).numpy())
        MeshPainter(model, id, camera, view).draw(ground, exp[frame], pose[frame], 1.0 if pixels is None else 0.7)
        mesh = Image.fromarray(to_uint8(ground))
        card.mesh = _data_uri(mesh.quantize(48)) if pixels is None else _data_uri(mesh, "jpeg")


def pitch_path(f0_hz: np.ndarray) -> str:
    """The voiced rows of ``f0_hz`` [n] as an SVG path in percent of a box that is ``PITCH_TOP_HZ`` high, y down."""
    step = 100 / len(f0_hz)
    y = 100 - np.minimum(f0_hz / PITCH_TOP_HZ, 1) * 100
    return "".join(f"M{row * step:.2f} {y[row]:.1f}h{step:.2f}" for row in np.flatnonzero(f0_hz > 0))


def _mel_image(mel: np.ndarray) -> str:
    """[2T, 80] as an image of as many columns and rows, low frequencies at the bottom."""
    if len(mel) > MAX_MEL_COLUMNS:
        edges = np.linspace(0, len(mel), MAX_MEL_COLUMNS + 1).astype(int)
        mel = np.add.reduceat(mel, edges[:-1], axis=0) / np.diff(edges)[:, None]
    low, high = MEL_RANGE
    share = np.clip((mel.T[::-1] - low) / (high - low), 0, 1)
    image = Image.fromarray(np.rint(share * (_NUM_SHADES - 1)).astype(np.uint8), "P")
    image.putpalette(colormaps[HEAT_MAP](np.linspace(0, 1, _NUM_SHADES), bytes=True)[:, :3].tobytes())
    return _data_uri(image)


def _data_uri(image: Image.Image, kind: str = "png") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
