"""MediaPipe's face landmarker on batches of frames of many clips: 478 (or 468) points and 52 blendshape scores.

Every frame is detected anew (MediaPipe's IMAGE mode), so frames do not depend on one another but for the choice among
several faces. A batch has a fixed number of frames B on the device, filled up with nothing where there are fewer, so
that one kernel is always used and results do not depend on what else is in a batch. Three stages:

1. device: all frames letterboxed -> detector -> up to K faces a frame, to the host (``detect_faces``);
2. host: each clip's ``FaceTrack`` chooses its own face (``find_landmarks``, as what follows);
3. device: rotated crops -> points and presence -> back to the frame's pixels -> blendshapes.

The GPU never waits for the host when ``detect_faces`` is called for the next batch before ``find_landmarks`` for this
one.

Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", 2019; Grishchenko et al.,
"Blendshapes GHUM: Real-time Monocular Facial Blendshape Prediction", 2023.

Letters: n frames of a span, B frames of a batch, L landmarks, S side of the network's input.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES, BLENDSHAPE_POINTS, NUM_MESH_POINTS
from lrs3_loader.face.image.warp import crop, letterbox
from lrs3_loader.face.landmarks.detector import LEFT_EYE, RIGHT_EYE, FaceDetector, to_pixels
from lrs3_loader.face.landmarks.tflite import TFLiteModule
from lrs3_loader.face.landmarks.tracks import FaceTrack, check_track, fill_gaps
from lrs3_loader.io.files import ZIP_DAMAGE
from lrs3_loader.runtime.transfer import HostCopy, to_device

CROP_MARGIN = 1.5  # side of the crop over that of the detected box
_TASK_MEMBERS = ("face_detector.tflite", "face_landmarks_detector.tflite", "face_blendshapes.tflite")
_MAX_NETWORK_BYTES = 64 << 20
_FOLDER_MEMBERS = ("face_detection_short_range.tflite", "face_landmark.tflite")


@dataclass(frozen=True)
class LandmarkerFiles:
    """The networks of a face landmarker, as read from disk."""

    detector: bytes
    landmarks: bytes
    blendshapes: bytes | None
    name: str
    sha256: str  # of the .task file; for a folder, of its two files one after the other
    square_crop: bool = False  # the landmark network's crop is squared on the longer side of the detected box


def load_landmarker_files(path: Path) -> LandmarkerFiles:
    """Read a ``face_landmarker.task`` file, or a folder with ``face_detection_short_range.tflite`` and
    ``face_landmark.tflite`` (as the mediapipe 0.10.21 wheel holds them; 468 points, no blendshapes).

    Raises ``RunError`` where something is missing or is no such file.
    """
    try:
        if path.is_dir():
            detector, landmarks = ((path / name).read_bytes() for name in _FOLDER_MEMBERS)
            return LandmarkerFiles(detector, landmarks, None, "face_landmark", _sha256(detector + landmarks), True)
        data = path.read_bytes()
        with zipfile.ZipFile(path) as task:
            for name in _TASK_MEMBERS:
                if task.getinfo(name).file_size > _MAX_NETWORK_BYTES:
                    raise ValueError(f"{name} is too large to be a network")
            detector, landmarks, blendshapes = (task.read(name) for name in _TASK_MEMBERS)
    except ZIP_DAMAGE as problem:
        wanted = f"a face_landmarker.task file or a folder with {' and '.join(_FOLDER_MEMBERS)}"
        raise RunError(f"{path} is not {wanted}: {problem}") from problem
    return LandmarkerFiles(detector, landmarks, blendshapes, path.stem, _sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class FrameLandmarks:
    """What was found in n consecutive frames of one clip."""

    #: f32 [n, L, 3], NaN where no face was found. x, y: pixels of the source, whole at pixel centres, y down. z: the
    #: same unit, smaller is closer, 0 near the middle of the head. MediaPipe scales z as one does a length along the
    #: eyes in coordinates that run 0..1 on both axes: in frames that are not square it stretches z of tilted heads
    #: (1.07 times at 15 degrees in 16:9). Here it is not stretched; in square frames the two agree.
    points: Tensor
    score: Tensor  # f32 [n], 0..1: presence of a face in the crop; 0 where the detector found none
    found: Tensor  # bool [n]: detected, and present with at least the score asked for
    blendshapes: Tensor | None  # f32 [n, 52], 0..1, ``BLENDSHAPE_NAMES``; NaN where no face was found

    @staticmethod
    def cat(parts: Sequence[FrameLandmarks]) -> FrameLandmarks:
        """The parts of one clip, in order, as one."""
        shapes = [part.blendshapes for part in parts if part.blendshapes is not None]
        return FrameLandmarks(
            torch.cat([part.points for part in parts]),
            torch.cat([part.score for part in parts]),
            torch.cat([part.found for part in parts]),
            torch.cat(shapes) if shapes else None,
        )


def fill_track_gaps(track: FrameLandmarks, *, min_valid_fraction: float, max_gap_frames: int) -> FrameLandmarks:
    """A whole clip with its gaps filled; ``found`` stays as it was and marks the frames really measured.

    Raises ``NoFaceError`` when fewer than ``min_valid_fraction`` of the frames hold the face, or when it is missing
    for more than ``max_gap_frames`` on end. The result holds no NaN.
    """
    filled = fill_gaps(track.points, track.found, max_gap_frames)
    check_track(track.found, filled.longest_gap, min_valid_fraction=min_valid_fraction, max_gap_frames=max_gap_frames)
    scores = track.blendshapes
    if scores is not None:
        scores = fill_gaps(scores, track.found, max_gap_frames).values
    return FrameLandmarks(filled.values, track.score, track.found, scores)


Spans = Sequence[tuple[Tensor, FaceTrack]]


@dataclass(frozen=True)
class DetectedFaces:
    """A batch between ``detect_faces`` and ``find_landmarks``."""

    spans: Spans
    faces: HostCopy  # f32 [B, K, 1 + 16], score and letterbox coordinates


class FaceLandmarker(nn.Module):
    """The whole landmarker. ``forward(spans)`` takes one batch and returns one ``FrameLandmarks`` a span; it is
    ``find_landmarks(detect_faces(spans))``. Landmarks must be found in the order of their clips' frames.

    spans: pairs of frames (u8 [n, H, W, 3], on the device, any size from 2 x 2) and the ``FaceTrack`` of their clip;
    at most ``batch_size`` frames together, the spans of a clip in order. Results stay on the device.
    Raises ``ValueError`` for damaged model files, networks that are not MediaPipe's, and frames of another kind.

    On a GPU arithmetic is f32 unless ``allow_tf32`` (0.025 px off on average); algorithms are the deterministic ones.
    """

    blendshape_points: Tensor

    def __init__(
        self,
        files: LandmarkerFiles,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 32,
        min_face_score: float = 0.5,
        allow_tf32: bool = False,
    ) -> None:
        super().__init__()
        self.detector = FaceDetector(files.detector, min_face_score)
        self.network = TFLiteModule(files.landmarks)
        self.blendshaper = None if files.blendshapes is None else TFLiteModule(files.blendshapes)
        self.batch_size = batch_size
        self.min_face_score = min_face_score
        self.allow_tf32 = allow_tf32
        self.square_crop = files.square_crop
        self.size, self.num_landmarks = self._check_networks()
        self.register_buffer("blendshape_points", torch.tensor(BLENDSHAPE_POINTS), persistent=False)
        self.device = torch.device(device)
        self.to(self.device)

    def forward(self, spans: Spans) -> list[FrameLandmarks]:
        return self.find_landmarks(self.detect_faces(spans))

    @torch.inference_mode()
    def detect_faces(self, spans: Spans) -> DetectedFaces:
        """Find all faces of a batch."""
        lengths = [len(frames) for frames, _ in spans]
        if not 0 < sum(lengths) <= self.batch_size or 0 in lengths:
            raise ValueError(f"spans must hold 1 to {self.batch_size} frames together, got {lengths}")
        with self._precision():
            scores, coordinates = self.detector(
                self._fill([letterbox(frames, self.detector.size) for frames, _ in spans])
            )
        return DetectedFaces(spans, HostCopy(torch.cat([scores[..., None], coordinates], -1)))

    @torch.inference_mode()
    def find_landmarks(self, detected: DetectedFaces) -> list[FrameLandmarks]:
        """Landmarks of each clip's own face."""
        spans = detected.spans
        lengths = [len(frames) for frames, _ in spans]
        matrices, chosen = self._choose(spans, detected.faces.wait().numpy().astype(np.float64))
        parts = matrices.split(lengths)
        crops = [crop(frames, part, self.size) for (frames, _), part in zip(spans, parts, strict=True)]
        with self._precision():
            points, presence = self._read_points(self._fill(crops), self._fill([matrices]))
            blendshapes = self._read_blendshapes(points)
        return self._split(lengths, chosen, points, presence, blendshapes)

    def _check_networks(self) -> tuple[int, int]:
        """(S, L), read from the files."""
        shape, outputs = self.network.input_shape, self.network.output_shapes
        size, num_values = shape[0], math.prod(outputs[0])
        points_fit = num_values % 3 == 0 and num_values >= 3 * NUM_MESH_POINTS
        if shape != (size, size, 3) or len(outputs) < 2 or not points_fit or math.prod(outputs[1]) != 1:
            raise ValueError(f"not a face landmark network: {shape} in, {outputs} out")
        if self.blendshaper is not None:
            expected = ((len(BLENDSHAPE_POINTS), 2), ((len(BLENDSHAPE_NAMES),),))
            if (self.blendshaper.input_shape, self.blendshaper.output_shapes) != expected:
                raise ValueError("not a face blendshape network: other inputs or outputs")
            if num_values // 3 <= max(BLENDSHAPE_POINTS):
                raise ValueError(f"blendshapes need the irises, which {num_values // 3} landmarks do not hold")
        return size, num_values // 3

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=self.allow_tf32)

    def _fill(self, parts: Sequence[Tensor]) -> Tensor:
        """Join along the batch and fill up with zeros to its fixed size."""
        missing = self.batch_size - sum(len(part) for part in parts)
        if len(parts) == 1 and missing == 0:
            return parts[0]
        return torch.cat([*parts, parts[0].new_zeros(missing, *parts[0].shape[1:])])

    def _choose(self, spans: Spans, faces: np.ndarray) -> tuple[Tensor, Tensor]:
        """Each track's own face: crop matrices f32 [frames, 2, 3] (zeros without one), detected bool [frames].

        faces: [B, K, 1 + 16], score and letterbox coordinates.
        """
        parts = []
        i = 0
        for frames, track in spans:
            num_frames, height, width, _ = frames.shape
            here = faces[i : i + num_frames]
            i += num_frames
            pixels = to_pixels(here[:, :, 1:], height, width)
            num_faces = (here[:, :, 0] > 0).sum(1).tolist()
            boxes = pixels[:, :, :4].tolist()
            own = [track.choose(b[:k], height, width) for b, k in zip(boxes, num_faces, strict=True)]
            detected = np.array([face is not None for face in own])
            chosen = pixels[np.arange(num_frames), [face or 0 for face in own]]
            matrix = crop_matrix(chosen, self.size, self.square_crop)
            parts.append(np.where(detected[:, None, None], matrix, 0))
        matrices = np.concatenate(parts).astype(np.float32)
        uploaded = to_device(torch.from_numpy(matrices), self.device)
        return uploaded, (uploaded != 0).flatten(1).any(1)

    def _read_points(self, crops: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Crops f32 [B, S, S, 3] of grey levels, overwritten -> points [B, L, 3] in source pixels, presence [B]."""
        raw, logits = self.network(crops.div_(255))[:2]
        local = raw.reshape(self.batch_size, self.num_landmarks, 3)
        # Written out: a matrix product might run in reduced precision.
        x, y, z = local[:, :, None].unbind(-1)  # [B, L, 1]
        m = matrices[:, None]  # [B, 1, 2, 3]
        plane = m[..., 0] * x + m[..., 1] * y + m[..., 2]
        depth = z * torch.linalg.vector_norm(matrices[:, None, :, 0], dim=-1, keepdim=True)
        return torch.cat([plane, depth], -1), logits.reshape(-1).sigmoid()

    def _read_blendshapes(self, points: Tensor) -> Tensor | None:
        if self.blendshaper is None:
            return None
        return self.blendshaper(points[:, self.blendshape_points, :2])[0]

    def _split(
        self, lengths: list[int], detected: Tensor, points: Tensor, presence: Tensor, blendshapes: Tensor | None
    ) -> list[FrameLandmarks]:
        num_frames = len(detected)
        score = torch.where(detected, presence[:num_frames], 0.0)
        found = detected & (score >= self.min_face_score)
        points = points[:num_frames].masked_fill(~found[:, None, None], torch.nan)
        shapes: Sequence[Tensor | None] = [None] * len(lengths)
        if blendshapes is not None:
            shapes = blendshapes[:num_frames].masked_fill(~found[:, None], torch.nan).split(lengths)
        parts = zip(points.split(lengths), score.split(lengths), found.split(lengths), shapes, strict=True)
        return [FrameLandmarks(*part) for part in parts]


def crop_matrix(face: np.ndarray, size: int, square: bool = False) -> np.ndarray:
    """From pixels of the landmark network's input to those of the source: [n, 2, 3].

    face: [n, 16], box corners and keypoints in source pixels. The crop is the box, ``CROP_MARGIN`` times as large
    (with ``square``: made square on its longer side), turned so that the eyes lie level.
    """
    centre, extent = (face[:, 0:2] + face[:, 2:4]) / 2, (face[:, 2:4] - face[:, 0:2]) * CROP_MARGIN
    if square:
        extent = extent.max(1, keepdims=True).repeat(2, 1)
    keypoints = face[:, 4:].reshape(len(face), -1, 2)
    x, y = (keypoints[:, LEFT_EYE] - keypoints[:, RIGHT_EYE]).T
    angle = np.arctan2(y, x)
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
    corner = centre - (turn @ (extent / 2)[:, :, None])[:, :, 0]
    return np.concatenate([turn * (extent / size)[:, None], corner[:, :, None]], 2)
