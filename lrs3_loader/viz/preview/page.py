"""Lays panels and strips out: one page a frame for a video, or one contact sheet for a whole clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.colors import to_rgb

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz import overlay
from lrs3_loader.viz.overlay import LINE_PX, Colour, to_uint8
from lrs3_loader.viz.preview import chart
from lrs3_loader.viz.preview.measures import Measures, measure
from lrs3_loader.viz.preview.mesh import MeshPainter
from lrs3_loader.viz.preview.subject import Subject
from lrs3_loader.viz.preview.view import View, blank_panel

NUM_COLUMNS = 5  # of a contact sheet
DETECTED: Colour = (0.25, 1.0, 0.45)
FITTED: Colour = (1.0, 0.55, 0.10)
INK: Colour = (0.86, 0.87, 0.88)
OUTLINE: Colour = (1.0, 1.0, 1.0)
ALARM: Colour = (1.0, 0.35, 0.35)
MESH_OPACITY = 0.7
FRONT_POSE = (0.0, 0.0, 0.0, 0.0, -0.12, -3.5)  # as face.camera; the whole head fits the panel


@dataclass(frozen=True)
class Panel:
    """One image of one frame; ``label`` writes the name, and what the colours mean, at its upper left."""

    name: str
    image: np.ndarray  # [size, size, 3] f32 in 0..1
    legend: tuple[tuple[str, Colour], ...] = ()

    def label(self) -> None:
        names = wrap(self.name.split(), self.image.shape[1] - 5, " ")
        for line, (text, colour) in enumerate([*((name, OUTLINE) for name in names), *self.legend]):
            overlay.draw_text(self.image, (5, 3 + line * LINE_PX), text, colour)


class Page:
    """Draws one subject; ``size`` is the side of a panel in pixels (even), ``painter`` what draws the mesh."""

    def __init__(self, subject: Subject, size: int, painter: type[MeshPainter] = MeshPainter) -> None:
        if size < 64 or size % 2:
            raise ValueError(f"size must be even and at least 64, got {size}")
        self.subject, self.size = subject, size
        self.measures = measure(subject)
        height, width = subject.height, subject.width
        self._whole = View.of_frame(height, width, size)
        shown = np.concatenate([subject.arrays["lm68"], self.measures.fitted])
        self._face = View.of_face(shown, height, width, size)
        id, camera = torch.from_numpy(subject.arrays["id"]), Camera.for_frame(height, width)
        self._mesh = painter(subject.model, id, camera, self._face)
        self._front = painter(subject.model, id, Camera.for_frame(size, size), View(0, 0, size, size))

    def frames(self) -> Iterator[np.ndarray | None]:
        """The video's frames, or as many times None."""
        video = self.subject.video
        return itertools.repeat(None, self.subject.num_frames) if video is None else video.frames()

    def panels(self, index: int, frame: np.ndarray | None) -> list[Panel]:
        """The images of frame ``index``; ``frame`` [H, W, 3] u8 is drawn over where there is one."""
        arrays = self.subject.arrays
        exp, pose = (torch.from_numpy(arrays[name][index]) for name in ("exp", "pose"))
        ground = blank_panel(self.size) if frame is None else self._face.show(frame)
        panels = [] if frame is None else [self._source(frame)]

        landmarks = ground.copy()
        thickness = max(1.0, self.size / 320)
        detected, fitted = (self._face.to_panel(points[index]) for points in (arrays["lm68"], self.measures.fitted))
        overlay.draw_landmarks(landmarks, detected, DETECTED, diameter_px=3.5 * thickness, width_px=thickness)
        overlay.draw_dots(landmarks, fitted, FITTED, 2.5 * thickness)
        legend = [("detected", DETECTED), ("fitted", FITTED)]
        if "speaking" in arrays:
            legend.append(self._draw_speaking(landmarks, detected, float(arrays["speaking"][index])))
        panels.append(Panel("landmarks", landmarks, tuple(legend)))

        self._mesh.draw(ground, exp, pose, MESH_OPACITY if frame is not None else 1.0)
        panels.append(Panel("mesh", ground))
        front = np.full_like(ground, 0.14)
        self._front.draw(front, exp, torch.tensor(FRONT_POSE), 1.0)
        panels.append(Panel("mesh from the front", front))
        return panels

    def _draw_speaking(self, image: np.ndarray, points: np.ndarray, score: float) -> tuple[str, Colour]:
        """Draw a box around the face in the colour of its active-speaker score; return what the colour means."""
        colour = to_rgb(chart.SPEAKING if score > 0 else chart.SILENT)
        low, high = points.min(0) - self.size / 40, points.max(0) + self.size / 40
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * (high - low) + low
        overlay.draw_line(image, corners, colour, max(2.0, self.size / 160))
        return f"{'speaking' if score > 0 else 'not speaking'} {score:+.1f}", colour

    def _source(self, frame: np.ndarray) -> Panel:
        """The whole frame, with the outline of what the other panels show where that is less."""
        image = self._whole.show(frame)
        if self._face.side < self._whole.side:
            left, top, side = self._face.left, self._face.top, self._face.side - 1
            corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * side + (left, top)
            overlay.draw_line(image, self._whole.to_panel(corners), OUTLINE)
        return Panel("source", image)

    def chart(self, width: int) -> np.ndarray:
        """All strips, [h, width, 3] f32."""
        measures, arrays = self.measures, self.subject.arrays
        opening = {"detected": measures.opening, "fitted": measures.fitted_opening}
        error = {"all 68": measures.error, "mouth": measures.mouth_error}
        strips = [
            chart.curves("expression", measures.expressions, height=112),
            *([chart.curves("blendshape scores", measures.scores, height=112)] if measures.scores else []),
            chart.curves("mouth opening, % of face", opening, low=0.0),
            chart.curves("fit error, % of face", error, low=0.0),
            chart.spectrogram(arrays["mel"], arrays["f0"]),
        ]
        if "speaking" in arrays:
            strips.insert(0, chart.speaking(arrays["speaking"]))
        if "hubert" in arrays:
            speech = self.subject.meta.get("models", {}).get("speech", {})
            name = str(speech.get("model", "")).rsplit("/", 1)[-1]
            strips.append(chart.similarity(arrays["hubert"], name + " (untrained)" * bool(speech.get("untrained"))))
        return chart.draw_chart(strips, width, ~arrays["valid"])

    def facts(self) -> tuple[str, ...]:
        """The clip in a few words; some may be empty."""
        measures = self.measures
        error, mouth = (float(np.nanmean(curve)) for curve in (measures.error, measures.mouth_error))
        return (
            self.subject.name,
            f"{self.subject.width} x {self.subject.height}",
            f"face in {self.subject.arrays['valid'].mean():.0%} of {self.subject.num_frames} frames",
            f"mean fit error {error:.2f}%, mouth {mouth:.2f}% of the face",
            "no sound: the audio track is silent" if self.subject.is_silent else "",
        )

    def header(self, width: int) -> np.ndarray:
        """The facts, on as many lines as ``width`` pixels ask for, [h, width, 3] f32; h is even."""
        lines = wrap(self.facts(), width - 6)
        header = np.zeros((LINE_PX * len(lines) + 6, width, 3), dtype=np.float32)
        for number, line in enumerate(lines):
            overlay.draw_text(header, (6, 2 + number * LINE_PX), line, INK)
        return header

    def video(self) -> Iterator[np.ndarray]:
        """One page [h, w, 3] u8 a frame, h and w even: panels side by side, the strips below with a moving cursor."""
        header = strips = np.empty(0, dtype=np.uint8)
        for index, frame in enumerate(self.frames()):
            panels = self.panels(index, frame)
            width = self.size * len(panels)
            if not len(header):
                header, strips = to_uint8(self.header(width)), to_uint8(self.chart(width))
            for panel in panels:
                panel.label()
            self._stamp(panels[0].image, index)
            below = strips.copy()
            below[:, chart.cursor_column(index, self.subject.num_frames, width)] = 255
            row = to_uint8(np.concatenate([panel.image for panel in panels], axis=1))
            yield np.concatenate([header, row, below])

    def sheet(self) -> np.ndarray:
        """A page [h, w, 3] u8 of the whole clip: a column for each of the frames of ``chosen_frames``."""
        chosen = chosen_frames(self.measures)
        width = self.size * len(chosen)
        columns: dict[int, np.ndarray] = {}
        for index, frame in enumerate(self.frames()):
            if index in chosen:
                panels = self.panels(index, frame)
                self._stamp(panels[0].image, index, chosen[index])
                if not columns:
                    for panel in panels:
                        panel.label()
                columns[index] = np.concatenate([panel.image for panel in panels])
        strips = self.chart(width)
        for index in chosen:
            strips[:, chart.cursor_column(index, self.subject.num_frames, width)] = 1.0
        row = np.concatenate([columns[index] for index in sorted(columns)], axis=1)
        return to_uint8(np.concatenate([self.header(width), row, strips]))

    def _stamp(self, image: np.ndarray, index: int, reason: str = "") -> None:
        """Write the time at the lower left, in red where no face was found."""
        found = bool(self.subject.arrays["valid"][index])
        facts = (f"{index / FRAMES_PER_SECOND:.2f} s", f"frame {index}", reason, "" if found else "no face: filled")
        colour = OUTLINE if found else ALARM
        for number, line in enumerate(reversed(wrap(facts, self.size - 5, ", ")), 1):
            overlay.draw_text(image, (5, self.size - 4 - LINE_PX * number), line, colour)


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


def wrap(parts: Iterable[str], width_px: int, gap: str = "   ") -> list[str]:
    """Join texts, empty ones left out, to lines that ``draw_text`` fits into ``width_px``."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and overlay.text_width(lines[-1] + gap + part) <= width_px:
            lines[-1] += gap + part
        else:
            lines.append(part)
    return lines
