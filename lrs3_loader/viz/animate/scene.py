"""Draws a generated motion: the mesh, its 68 landmarks, beside them a video, and the sound below.

Letters: T frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.colors import to_rgb

from lrs3_loader.demo.mesh import Part, head_mesh
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.quality.figures import SILENT_RMS
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz import chart, overlay
from lrs3_loader.viz.animate.motion import FaceMotion
from lrs3_loader.viz.layout import NUM_COLUMNS, Layout, Panel
from lrs3_loader.viz.mesh import MeshPainter
from lrs3_loader.viz.view import View, blank_panel

GENERATED, TRUE = (to_rgb(colour) for colour in chart.COLOURS[:2])  # as the curves below
_FACE_SHARE = 0.53  # of a panel's side that the landmarks of the face take
_FOREHEAD = 0.2  # of the face's extent: the landmarks end at the brows, and a head goes on above them
#: Brightness of the demo head's parts, without which an open mouth would look like a tongue.
_BRIGHTNESS = {Part.SKIN: 1.0, Part.EYE: 1.15, Part.MOUTH: 0.3, Part.EAR: 1.0}


@dataclass(frozen=True)
class Animation:
    """The motion, the sound and the frames of one clip, as they are drawn."""

    name: str
    model: FaceModel  # on the CPU
    motion: FaceMotion  # T frames
    waveform: np.ndarray  # [640 T] f32
    mel: np.ndarray  # [2T, 80] f32
    f0_hz: np.ndarray  # [2T] f32
    truth: FaceMotion | None = None  # how the face did move, where it is known
    video: Iterable[np.ndarray] | None = None  # frames [H, W, 3] u8 of what was filmed; there may be fewer or more

    @property
    def num_frames(self) -> int:
        return self.motion.num_frames


class Scene(Layout):
    """Draws an animation; ``size`` is the side of a panel in pixels (even)."""

    def __init__(self, animation: Animation, size: int, painter: type[MeshPainter] = MeshPainter) -> None:
        super().__init__(size, animation.num_frames)
        self.animation = animation
        model, motion = animation.model, animation.motion
        self._camera, view = Camera.for_frame(size, size), View(0, 0, size, size)
        truth, (drawn, tint) = animation.truth, _drawn(model)
        self._mesh = painter(drawn, motion.id, self._camera, view, tint)
        self._true_mesh = None if truth is None else painter(drawn, truth.id, self._camera, view, tint)
        self._pose = frontal_pose(motion.landmarks, self._camera, size)

    def frames(self) -> Iterator[np.ndarray | None]:
        video = () if self.animation.video is None else self.animation.video
        return itertools.islice(itertools.chain(video, itertools.repeat(None)), self.num_frames)

    def panels(self, index: int, frame: np.ndarray | None) -> list[Panel]:
        motion, truth = self.animation.motion, self.animation.truth
        panels = []
        if self.animation.video is not None:
            blank = blank_panel(self.size)
            image = blank if frame is None else View.of_frame(frame.shape[0], frame.shape[1], self.size).show(frame)
            panels.append(Panel("video" if frame is not None else "video (over)", image))
        if truth is not None and self._true_mesh is not None:
            panels.append(Panel("true motion", self._face(self._true_mesh, truth, index)))
        panels.append(Panel("generated", self._face(self._mesh, motion, index)))
        panels.append(self._landmarks(index))
        return panels

    def _face(self, mesh: MeshPainter, motion: FaceMotion, index: int) -> np.ndarray:
        image = blank_panel(self.size)
        mesh.draw(image, motion.exp[index], self._pose, 1.0)
        return image

    def _landmarks(self, index: int) -> Panel:
        image, thickness = blank_panel(self.size), max(1.0, self.size / 320)
        legend = []
        for name, motion, colour in (
            ("true", self.animation.truth, TRUE),
            ("generated", self.animation.motion, GENERATED),
        ):
            if motion is not None:
                points = project(motion.landmarks[index], self._pose, self._camera).numpy()
                overlay.draw_landmarks(image, points, colour, diameter_px=3.0 * thickness, width_px=thickness)
                legend.append((name, colour))
        return Panel("landmarks", image, tuple(legend) if len(legend) > 1 else ())

    def chart(self, width: int) -> np.ndarray:
        animation = self.animation
        opening = {"generated": animation.motion.mouth_opening}
        if animation.truth is not None:
            opening["true"] = animation.truth.mouth_opening
        strips = [
            chart.curves("mouth opening, mm", opening, low=0.0),
            chart.spectrogram(animation.mel, animation.f0_hz),
        ]
        return chart.draw_chart(strips, width, np.zeros(self.num_frames, dtype=bool))

    def facts(self) -> tuple[str, ...]:
        animation = self.animation
        return (
            animation.name,
            f"{self.num_frames / FRAMES_PER_SECOND:.2f} s",
            f"drawn with the face model {animation.model.name}",
            "no sound: the audio track is silent" if np.sqrt(np.square(animation.waveform).mean()) < SILENT_RMS else "",
        )

    def chosen_frames(self) -> dict[int, str]:
        """The widest open and the most closed mouth while it speaks, and frames far from these."""
        opening = self.animation.motion.mouth_opening
        chosen = {int(np.argmax(opening)): "mouth widest"}
        chosen.setdefault(self.num_frames // 4 + int(np.argmin(opening[self.num_frames // 4 :])), "mouth closed")
        while len(chosen) < min(NUM_COLUMNS, self.num_frames):
            distance = np.abs(np.arange(self.num_frames)[:, None] - list(chosen)).min(1)
            chosen[int(np.argmax(distance))] = ""
        return chosen


def frontal_pose(landmarks: torch.Tensor, camera: Camera, size: int) -> torch.Tensor:
    """The pose [6] in which the landmarks [T, 68, 3] of a clip, seen from the front, fill their share of a panel."""
    low, high = landmarks.flatten(0, 1).amin(0), landmarks.flatten(0, 1).amax(0)
    (x, y, z), extent = (low + high) / 2, (high - low)[:2].max()
    distance = camera.focal_px * extent / (_FACE_SHARE * size)  # from the camera, so that the extent fits
    return torch.cat([torch.zeros(3), torch.stack([-x, -y - _FOREHEAD * extent, camera.distance - distance - z])])


def _drawn(model: FaceModel) -> tuple[FaceModel, np.ndarray | None]:
    """Return the model to draw, and the brightness [V] of its vertices where it knows its parts: the demo head does.

    Its teeth are left out: they stick out of a face as unlike a demo head as those that a fit finds.
    """
    if model.name != "demo":
        return model, None
    part = head_mesh().part
    tint = np.array([_BRIGHTNESS.get(Part(number), 1.0) for number in part], dtype=np.float32)
    kept = torch.from_numpy(part != Part.TEETH)[model.triangles].all(1)
    return replace(model, triangles=model.triangles[kept]), tint
