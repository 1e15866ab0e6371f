"""The panels and the strips that show what was extracted from one clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.colors import to_rgb

from lrs3_loader.face.geometry.camera import Camera
from lrs3_loader.viz import chart, overlay
from lrs3_loader.viz.layout import NUM_COLUMNS, OUTLINE, Layout, Panel
from lrs3_loader.viz.mesh import MeshPainter
from lrs3_loader.viz.overlay import Colour
from lrs3_loader.viz.preview.measures import Measures, measure
from lrs3_loader.viz.preview.subject import Subject
from lrs3_loader.viz.view import View, blank_panel

DETECTED: Colour = (0.25, 1.0, 0.45)
FITTED: Colour = (1.0, 0.55, 0.10)
MESH_OPACITY = 0.7
FRONT_POSE = (0.0, 0.0, 0.0, 0.0, -0.12, -3.5)  # as face.camera; the whole head fits the panel


class Page(Layout):
    """Draws one subject; ``size`` is the side of a panel in pixels (even), ``painter`` what draws the mesh."""

    def __init__(self, subject: Subject, size: int, painter: type[MeshPainter] = MeshPainter) -> None:
        super().__init__(size, subject.num_frames)
        self.subject = subject
        self.measures = measure(subject)
        height, width = subject.height, subject.width
        self._whole = View.of_frame(height, width, size)
        shown = np.concatenate([subject.arrays["lm68"], self.measures.fitted])
        self._face = View.of_face(shown, height, width, size)
        id, camera = torch.from_numpy(subject.arrays["id"]), Camera.for_frame(height, width)
        self._mesh = painter(subject.model, id, camera, self._face)
        self._front = painter(subject.model, id, Camera.for_frame(size, size), View(0, 0, size, size))

    def frames(self) -> Iterator[np.ndarray | None]:
        video = self.subject.video
        return itertools.repeat(None, self.subject.num_frames) if video is None else video.frames()

    def panels(self, index: int, frame: np.ndarray | None) -> list[Panel]:
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
        return [*panels, *self._stored(index)]

    def _stored(self, index: int) -> list[Panel]:
        """The crops of this frame that the run stores: what a training sees of it."""
        stored = ((name, self.subject.arrays[name][index]) for name in ("face", "mouth") if name in self.subject.arrays)
        panels = []
        for name, crop in stored:
            colour = crop if crop.ndim == 3 else np.repeat(crop[..., None], 3, axis=2)
            whole = View.of_frame(crop.shape[0], crop.shape[1], self.size)
            panels.append(Panel(f"stored {name}, {crop.shape[0]} px", whole.show(colour)))
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
        measures = self.measures
        error, mouth = (float(np.nanmean(curve)) for curve in (measures.error, measures.mouth_error))
        return (
            self.subject.name,
            f"{self.subject.width} x {self.subject.height}",
            f"face in {self.subject.arrays['valid'].mean():.0%} of {self.subject.num_frames} frames",
            f"mean fit error {error:.2f}%, mouth {mouth:.2f}% of the face",
            "no sound: the audio track is silent" if self.subject.is_silent else "",
        )

    def chosen_frames(self) -> dict[int, str]:
        return chosen_frames(self.measures)

    def problem(self, index: int) -> str:
        return "" if self.subject.arrays["valid"][index] else "no face: filled"


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
