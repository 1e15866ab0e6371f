"""Make the golden landmarks of ``test_landmarks.py`` with the real MediaPipe, in IMAGE mode, one face.

In an environment with numpy, decord and mediapipe (1.2.2 made the files beside this script):
    python tests/golden/make_landmarks.py CLIPS_FOLDER tests/golden --task face_landmarker.task
and, for the older 468-point network, in one with mediapipe 0.10.21:
    python tests/golden/make_landmarks.py CLIPS_FOLDER tests/golden --clip may_512_25fps_48k_stereo --stride 5
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import decord
import mediapipe
import numpy as np
from landmark_codec import write_golden

Landmarker = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_task_landmarker(task: Path) -> Landmarker:
    """RGB frame -> points [478, 3], blendshapes [52], by MediaPipe's face landmarker task."""
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(task)),
        running_mode=vision.RunningMode.IMAGE,
        num_faces=1,
        output_face_blendshapes=True,
    )
    landmarker = vision.FaceLandmarker.create_from_options(options)

    def run(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        result = landmarker.detect(image)
        if len(result.face_landmarks) != 1:
            raise ValueError("MediaPipe finds no face in a frame: the stored form has no place for that")
        scores = np.array([category.score for category in result.face_blendshapes[0]])
        return in_pixels(result.face_landmarks[0], frame), scores

    return run


def make_legacy_landmarker() -> Landmarker:
    """RGB frame -> points [468, 3], no blendshapes, by the face mesh of mediapipe 0.10."""
    mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=False)

    def run(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = mesh.process(frame).multi_face_landmarks
        if not found:
            raise ValueError("MediaPipe finds no face in a frame: the stored form has no place for that")
        return in_pixels(found[0].landmark, frame), np.zeros(0)

    return run


def in_pixels(landmarks: list, frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.array([(p.x * width, p.y * height, p.z * width) for p in landmarks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", type=Path, help="face_landmarker.task; without it, the legacy face mesh")
    parser.add_argument("--clip", help="only this one (file name without .mp4)")
    parser.add_argument("--stride", type=int, default=1, help="every n-th frame")
    options = parser.parse_args()
    landmarker = make_task_landmarker(options.task) if options.task else make_legacy_landmarker()
    for path in sorted(options.clips.glob(f"{options.clip or '*'}.mp4")):
        reader = decord.VideoReader(str(path))
        results = [landmarker(reader[i].asnumpy()) for i in range(0, len(reader), options.stride)]
        about = {
            "clip": path.name,
            "clip_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "model_sha256": hashlib.sha256(options.task.read_bytes()).hexdigest() if options.task else None,
            "mediapipe": mediapipe.__version__,
            "stride": options.stride,
        }
        points, blendshapes = (np.stack(values) for values in zip(*results, strict=True))
        kind = "task" if options.task else "legacy"
        target = options.out / f"landmarks_{kind}_{path.stem}.xz"
        write_golden(target, about, points, blendshapes)
        print(f"{target}: {len(points)} frames, {target.stat().st_size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
