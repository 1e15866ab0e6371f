"""Movement of a demo head: the face follows the speech, head and eyes move at random. T frames at 25 fps."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from lrs3_loader.demo.head import EXPRESSION_MODES
from lrs3_loader.demo.voice import Speech
from lrs3_loader.types import FRAMES_PER_SECOND

MAX_YAW, MAX_PITCH, MAX_ROLL = np.deg2rad(15.0), np.deg2rad(8.0), np.deg2rad(5.0)
_DISTANCE = -2.2  # dm: the head stands a little further away than the camera's 10 dm
_BLINK = (0.35, 0.9, 1.0, 0.7, 0.3, 0.1)  # a quarter of a second


def make_motion(speech: Speech, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a movement that fits the speech.

    Returns:
        expression coefficients [T, E] f32 of the demo head, in 0..1, and poses [T, 6] f32 (``face.geometry.camera``).
    """
    stress = speech.at_frames(speech.stress)
    return _expressions(speech, stress, generator), _poses(stress, generator)


def _expressions(speech: Speech, stress: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    jaw, lips, press = (speech.at_frames(c) for c in (speech.jaw, speech.lips, speech.press))
    smile = float(generator.uniform(0.0, 0.25))
    blink = _blinks(len(jaw), generator)
    curves = {
        "jaw_open": 0.03 * (1 - press) + 0.80 * jaw,
        "lip_wide": 0.75 * np.maximum(lips, 0.0),
        "lip_pucker": 0.90 * np.maximum(-lips, 0.0),
        "lip_press": 0.6 * press * (1 - jaw),
        "upper_lip_raise": 0.30 * jaw,
        "lower_lip_down": 0.25 * jaw * (1.0 + np.minimum(lips, 0.0)),
        "smile_left": smile * (0.9 + 0.3 * stress),
        "smile_right": smile * (1.1 - 0.1 * stress),
        "brow_up": 0.1 + 0.6 * stress,
        "blink_left": blink,
        "blink_right": blink,
    }
    exp = np.zeros((len(jaw), len(EXPRESSION_MODES)), dtype=np.float32)
    for name, curve in curves.items():
        exp[:, EXPRESSION_MODES.index(name)] = np.clip(curve, 0.0, 1.0)
    return torch.from_numpy(exp)


def _blinks(num_frames: int, generator: np.random.Generator) -> np.ndarray:
    closed = np.zeros(num_frames)
    frame = int(generator.integers(5, 2 * FRAMES_PER_SECOND))
    while frame < num_frames:
        part = np.array(_BLINK)[: num_frames - frame]
        closed[frame : frame + len(part)] = part
        frame += int(generator.integers(3 * FRAMES_PER_SECOND // 2, 4 * FRAMES_PER_SECOND))
    return closed


def _poses(stress: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Smooth wandering about a direction drawn for the clip, and nods with the stress; the angles are bounded."""
    num = len(stress)
    yaw = float(generator.uniform(-9, 9)) + 6.0 * _wander(num, generator)
    pitch = float(generator.uniform(-3, 3)) + 3.0 * _wander(num, generator) + 3.5 * (stress - stress.mean())
    roll = float(generator.uniform(-2, 2)) + 2.0 * _wander(num, generator)
    limits = (MAX_PITCH, MAX_YAW, MAX_ROLL)
    angles = [limit * np.tanh(np.deg2rad(a) / limit) for a, limit in zip((pitch, yaw, roll), limits, strict=True)]
    middle, spread = (0.0, -0.12, _DISTANCE), (0.04, 0.03, 0.1)
    place = [width * _wander(num, generator) + at for width, at in zip(spread, middle, strict=True)]
    return torch.from_numpy(np.stack([*angles, *place], axis=1).astype(np.float32))


def _wander(num_frames: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise [T] of unit deviation, about half a second wide."""
    margin, width = 40, 11.0
    noise = generator.standard_normal(num_frames + 2 * margin)
    return gaussian_filter1d(noise, width)[margin:-margin] * np.sqrt(2 * np.sqrt(np.pi) * width)
