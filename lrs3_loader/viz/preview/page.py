"""Lays panels and strips out: one page a frame for a video, or one contact sheet for a whole clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz.overlay import Colour, draw_dots, draw_landmarks, draw_line
from lrs3_loader.viz.preview import chart
from lrs3_loader.viz.preview.measures import Measures, measure
from lrs3_loader.viz.preview.mesh import MeshPainter
from lrs3_loader.viz.preview.subject import Subject
from lrs3_loader.viz.preview.view import View
from lrs3_loader.viz.text import LINE_PX, draw_text

HEADER_PX = 20
NUM_COLUMNS = 5  # of a contact sheet
DETECTED: Colour = (0.25, 1.0, 0.45)
FITTED: Colour = (1.0, 0.55, 0.10)
OUTLINE: Colour = (1.0, 1.0, 1.0)
ALARM: Colour = (1.0, 0.35, 0.35)
MESH_OPACITY = 0.7
FRONT_POSE = (0.0, 0.0, 0.0, 0.0, -0.12, -3.5)  # as face.camera; the whole head fits the panel


@dataclass(frozen=True)
class Panel:
    """One picture of one frame."""

    name: str
    picture: np.ndarray  # [size, size, 3] f32 in 0..1
    legend: tuple[tuple[str, Colour], ...] = ()

    def label(self) -> None:
        """Write the name, and what the colours mean, at the upper left."""
        for line, (text, colour) in enumerate(((self.name, OUTLINE), *self.legend)):
            draw_text(self.picture, (5, 3 + line * LINE_PX), text, colour)


class Page:
    """Draws one subject; ``size`` is the side of a panel in pixels (even), ``painter`` what draws the mesh."""

    def __init__(self, subject: Subject, size: int, painter: type[MeshPainter] = MeshPainter) -> None:
        if size < 64 or size % 2:
            raise ValueError(f"size must be even and at least 64, got {size}")
        self.subject, self.size = subject, size
        self.measures: Measures = measure(subject)
        height, width = subject.height, subject.width
        self._whole = View.of_frame(height, width, size)
        shown = np.concatenate([subject.arrays["lm68"], self.measures.fitted])
        self._face = View.of_face(shown, height, width, size)
        id, camera = torch.from_numpy(subject.arrays["id"]), Camera.for_frame(height, width)
        self._mesh = painter(subject.model, id, camera, self._face)
        self._front = painter(subject.model, id, Camera.for_frame(size, size), View(0, 0, size, size))

    def frames(self) -> Iterator[np.ndarray | None]:
        """The video's frames, or as many times nothing."""
        video = self.subject.video
        return itertools.repeat(None, self.subject.num_frames) if video is None else video.frames()

    def panels(self, index: int, frame: np.ndarray | None) -> list[Panel]:
        """The pictures of frame ``index``; ``frame`` [H, W, 3] u8 is drawn over where there is one."""
        arrays = self.subject.arrays
        exp, pose = (torch.from_numpy(arrays[name][index]) for name in ("exp", "pose"))
        ground = self._face.blank() if frame is None else self._face.show(frame)
        panels = [] if frame is None else [self._source(frame)]

        landmarks = ground.copy()
        thickness = max(1.0, self.size / 320)
        detected, fitted = (self._face.to_panel(points[index]) for points in (arrays["lm68"], self.measures.fitted))
        draw_landmarks(landmarks, detected, DETECTED, diameter_px=3.5 * thickness, width_px=thickness)
        draw_dots(landmarks, fitted, FITTED, 2.5 * thickness)
        panels.append(Panel("landmarks", landmarks, (("detected", DETECTED), ("fitted", FITTED))))

        self._mesh.draw(ground, exp, pose, MESH_OPACITY if frame is not None else 1.0)
        panels.append(Panel("mesh", ground))
        front = np.full_like(ground, 0.14)
        self._front.draw(front, exp, torch.tensor(FRONT_POSE), 1.0)
        panels.append(Panel("mesh from the front", front))
        return panels

    def _source(self, frame: np.ndarray) -> Panel:
        """The whole frame, with the outline of what the other panels show where that is less."""
        picture = self._whole.show(frame)
        if self._face.side < self._whole.side:
            left, top, side = self._face.left, self._face.top, self._face.side - 1
            corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * side + (left, top)
            draw_line(picture, self._whole.to_panel(corners), OUTLINE)
        return Panel("source", picture)

    def chart(self, width: int) -> np.ndarray:
        """All strips, [h, width, 3] f32."""
        measures, arrays = self.measures, self.subject.arrays
        missing = ~arrays["valid"]
        strips = [
            chart.Strip("expression", measures.expressions, height=112),
            chart.Strip(
                "mouth opening, % of face", {"detected": measures.opening, "fitted": measures.fitted_opening}, low=0.0
            ),
            chart.Strip("fit error, % of face", {"all 68": measures.error, "mouth": measures.mouth_error}, low=0.0),
        ]
        drawn = [chart.draw_strip(strip, width, missing) for strip in strips]
        drawn.append(chart.draw_sound(arrays["mel"], arrays["f0"], width, missing))
        if "hubert" in arrays:
            drawn.append(chart.draw_similarity(arrays["hubert"], self.subject.speech_name, width, missing))
        return chart.stack(drawn)

    def _summary(self) -> str:
        measures = self.measures
        error, mouth = (float(np.nanmean(curve)) for curve in (measures.error, measures.mouth_error))
        share = float(self.subject.arrays["valid"].mean())
        return (
            f"{self.subject.name}   {self.subject.width} x {self.subject.height}   face in {share:.0%} of "
            f"{self.subject.num_frames} frames   mean fit error {error:.2f}%, mouth {mouth:.2f}% of the face"
        )

    def video(self) -> Iterator[np.ndarray]:
        """One page [h, w, 3] u8 a frame, h and w even: panels side by side, the strips below with a moving cursor."""
        background: np.ndarray | None = None
        for index, frame in enumerate(self.frames()):
            panels = self.panels(index, frame)
            width = self.size * len(panels)
            if background is None:
                background = to_bytes(np.concatenate([_header(width, self._summary()), self.chart(width)]))
            for panel in panels:
                panel.label()
            self._stamp(panels[0].picture, index)
            below = background[HEADER_PX:].copy()
            below[:, chart.cursor_column(index, self.subject.num_frames, width)] = 255
            row = to_bytes(np.concatenate([panel.picture for panel in panels], axis=1))
            yield np.concatenate([background[:HEADER_PX], row, below])

    def sheet(self) -> np.ndarray:
        """A page [h, w, 3] u8 of the whole clip: a column for each of the frames of ``chosen_frames``."""
        chosen = chosen_frames(self.measures)
        width = self.size * len(chosen)
        columns: dict[int, np.ndarray] = {}
        for index, frame in enumerate(self.frames()):
            if index in chosen:
                panels = self.panels(index, frame)
                self._stamp(panels[0].picture, index, chosen[index])
                if not columns:
                    for panel in panels:
                        panel.label()
                columns[index] = np.concatenate([panel.picture for panel in panels])
        strips = self.chart(width)
        for index in chosen:
            strips[:, chart.cursor_column(index, self.subject.num_frames, width)] = 1.0
        row = np.concatenate([columns[index] for index in sorted(columns)], axis=1)
        return to_bytes(np.concatenate([_header(width, self._summary()), row, strips]))

    def _stamp(self, picture: np.ndarray, index: int, why: str = "") -> None:
        """The time at the lower left, in red where no face was found."""
        found = bool(self.subject.arrays["valid"][index])
        text = f"{index / FRAMES_PER_SECOND:.2f} s, frame {index} {why}" + ("" if found else " (no face: filled)")
        draw_text(picture, (5, self.size - 18), text, OUTLINE if found else ALARM)


def chosen_frames(measures: Measures) -> dict[int, str]:
    """``NUM_COLUMNS`` frames worth a look (fewer of a shorter clip), and why.

    The widest open mouth, the worst fit, and others far from those and from each other.
    """
    num_frames = len(measures.opening)
    chosen = {int(np.argmax(measures.opening)): "mouth widest"}
    worst = int(np.nanargmax(measures.error))
    chosen[worst] = ", ".join(filter(None, (chosen.get(worst), "worst fit")))
    while len(chosen) < min(NUM_COLUMNS, num_frames):
        distance = np.abs(np.arange(num_frames)[:, None] - list(chosen)).min(1)
        chosen[int(np.argmax(distance))] = ""
    return chosen


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """f32 in 0..1 to u8."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _header(width: int, text: str) -> np.ndarray:
    header = np.zeros((HEADER_PX, width, 3), dtype=np.float32)
    draw_text(header, (6, 2), text, chart.INK)
    return header
