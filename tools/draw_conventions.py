#!/usr/bin/env python3
"""Draw the figure of docs/face-conventions.md: the 68 landmarks by number, the axes, and what each angle does.

python tools/draw_conventions.py docs/face-conventions.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from lrs3_loader import demo
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.launch import cli
from lrs3_loader.viz import preview
from lrs3_loader.viz.mesh import MeshPainter
from lrs3_loader.viz.overlay import LANDMARK_LINES, Colour, draw_dots, draw_landmarks, draw_line, draw_text, to_uint8
from lrs3_loader.viz.view import View, blank_panel

LARGE_PX, SMALL_PX = 680, 340
_INK: Colour = (0.90, 0.92, 0.95)
_DOTS: Colour = (0.25, 1.0, 0.45)
_AXES: dict[str, tuple[tuple[float, float, float], Colour]] = {
    "x": ((1.0, 0.0, 0.0), (1.0, 0.42, 0.38)),
    "y": ((0.0, 1.0, 0.0), (0.45, 0.90, 0.45)),
    "z": ((0.0, 0.0, 1.0), (0.45, 0.70, 1.0)),
}
_NEAR = (0.0, 0.0, 0.0, 0.0, 0.14, 1.1)  # a pose in which the landmarks fill the large panel
_FAR = (0.0, 0.0, 0.0, 0.0, -0.12, -3.5)
_TURNED = (0.25, -0.45, 0.0, 0.0, -0.12, -3.5)  # so that all three axes of the head can be told apart
_ANGLE = 0.4
_OUTWARDS_PX = 13.0


def draw_conventions(model: FaceModel) -> np.ndarray:
    """[h, w, 3] u8: the numbered landmarks, and beside them the axes and the three angles."""
    small = [
        _axes(model, "x right, y up, z to the viewer; decimetres"),
        _turned(model, 0, "rx > 0: nods down"),
        _turned(model, 1, "ry > 0: turns to the right of the image"),
        _turned(model, 2, "rz > 0: tilts against the clock"),
    ]
    right = np.concatenate([np.concatenate(small[:2], axis=1), np.concatenate(small[2:], axis=1)])
    page = np.concatenate([_numbered(model), right], axis=1)
    return to_uint8(page)


def _head(
    model: FaceModel, pose: tuple[float, ...], size: int, opacity: float = 1.0, jaw: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A panel with the neutral head, its mouth opened by ``jaw``, and the pixels [68, 2] of its landmarks."""
    image = blank_panel(size)
    id, exp = torch.zeros(len(model.id_names)), torch.zeros(len(model.exp_names))
    if jaw:
        exp[model.exp_names.index("jaw_open")] = jaw
    camera, moved = Camera.for_frame(size, size), torch.tensor(pose)
    MeshPainter(model, id, camera, View(0, 0, size, size)).draw(image, exp, moved, opacity)
    return image, project(model.landmarks(id, exp), moved, camera).numpy()


def _numbered(model: FaceModel) -> np.ndarray:
    image, points = _head(model, _NEAR, LARGE_PX, opacity=0.55, jaw=0.9)
    draw_landmarks(image, points, _DOTS, diameter_px=4.5, width_px=1.2)
    for line in LANDMARK_LINES:
        first, closed = line[0], line[0] == line[-1]
        numbers = line[:-1] if closed else line
        group = points[numbers]
        middle = points[27:31].mean(0) if first == 0 else group.mean(0)
        for index, point in zip(numbers, group, strict=True):
            away = point - middle if closed or first == 0 else np.array((0.0, -1.0 if index < 27 else 0.0))
            if 27 <= index < 31:
                away = np.array((1.0, 0.0))
            elif 31 <= index < 36:
                away = np.array((0.0, 1.0))
            if first == 60:  # inside the lips
                away = -away
            place = point + _OUTWARDS_PX * away / max(float(np.linalg.norm(away)), 1e-6)
            draw_text(image, (int(place[0]) - 5 - 4 * (index > 9), int(place[1]) - 7), str(index), _INK)
    draw_text(image, (8, 6), "lm68: pixels of the source frame, (0, 0) the middle of the top left pixel, y down", _INK)
    draw_text(image, (8, 24), "0-16 contour, 36-41 right eye of the person, 42-47 left eye, 60-67 inner lips", _INK)
    return image


def _axes(model: FaceModel, title: str) -> np.ndarray:
    image, _ = _head(model, _TURNED, SMALL_PX, opacity=0.6)
    camera, pose = Camera.for_frame(SMALL_PX, SMALL_PX), torch.tensor(_TURNED)
    for name, (direction, colour) in _AXES.items():
        ends = torch.tensor([(0.0, 0.0, 0.0), direction]) * 1.25
        pixels = project(ends, pose, camera).numpy()
        draw_line(image, pixels, colour, width_px=3.0)
        draw_dots(image, pixels[1:], colour, diameter_px=8.0)
        draw_text(image, (int(pixels[1, 0]) + 7, int(pixels[1, 1]) - 7), name, colour)
    draw_text(image, (6, 4), title, _INK)
    return image


def _turned(model: FaceModel, axis: int, title: str) -> np.ndarray:
    pose = list(_FAR)
    pose[axis] = _ANGLE
    image, points = _head(model, tuple(pose), SMALL_PX)
    draw_landmarks(image, points, _DOTS, diameter_px=2.5)
    draw_text(image, (6, 4), title, _INK)
    return image


@dataclass(frozen=True)
class Args:
    picture: Annotated[Path, tyro.conf.Positional]
    """The .png to write."""


def main() -> int:
    args = cli.parse(Args, __doc__ or "")
    preview.check_output(args.picture)
    preview.write_image(args.picture, draw_conventions(demo.demo_head()), small=True)
    print(args.picture)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.main(main)
