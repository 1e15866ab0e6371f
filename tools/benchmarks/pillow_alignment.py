"""Deep3DFaceRecon's alignment as its scripts do it: a frame at a time, LAPACK for the pose, Pillow for the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

CROP_SIZE = 224


def five_of_68(landmarks: np.ndarray) -> np.ndarray:
    """[68, 2] -> [5, 2]: eyes, nose, corners of the mouth."""
    left = np.mean(landmarks[[36, 39]], 0)
    right = np.mean(landmarks[[42, 45]], 0)
    return np.stack([left, right, landmarks[30], landmarks[48], landmarks[54]])


def weak_perspective(points: np.ndarray, standard: np.ndarray) -> tuple[np.ndarray, float]:
    """Projected origin [2] and scale of the standard face [5, 3] that come closest to points [5, 2]."""
    rows, values = [], []
    for (x, y), corner in zip(points, standard, strict=True):
        rows.append([*corner, 1, 0, 0, 0, 0])
        rows.append([0, 0, 0, 0, *corner, 1])
        values += [x, y]
    k = np.linalg.lstsq(np.array(rows, dtype=np.float64), np.array(values, dtype=np.float64), rcond=None)[0]
    return k[[3, 7]], float(np.linalg.norm(k[0:3]) + np.linalg.norm(k[4:7])) / 2


def placement(landmarks: np.ndarray, standard: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Width and height after resizing, left and top of the crop."""
    points = five_of_68(landmarks.astype(np.float32))
    points[:, 1] = height - 1 - points[:, 1]
    centre, scale = weak_perspective(points, standard)
    scale = 102.0 / scale
    new_width, new_height = int(width * scale), int(height * scale)
    left = int(new_width / 2 - CROP_SIZE / 2 + (centre[0] - width / 2) * scale)
    top = int(new_height / 2 - CROP_SIZE / 2 + (height / 2 - centre[1]) * scale)
    return new_width, new_height, left, top


def align_frame(frame: np.ndarray, landmarks: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """u8 [H, W, 3], f32 [68, 2] (pixels, y down), f32 [5, 3] -> u8 [224, 224, 3]."""
    width, height, left, top = placement(landmarks, standard, *frame.shape[:2])
    image = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + CROP_SIZE, top + CROP_SIZE)))
