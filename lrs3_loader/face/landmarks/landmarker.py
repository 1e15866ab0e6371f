"""MediaPipe's face landmarker on batches of frames of many clips: 478 (or 468) points and 52 blendshape scores.

Faces are detected in every frame (MediaPipe's IMAGE mode). ``detect_faces`` finds up to K of them on the device and
starts to copy them to the host, where ``find_landmarks`` lets each clip's ``FaceTrack`` choose its own; from rotated
crops it then computes points, presence and blendshapes. The GPU never waits for the host when ``detect_faces`` is
called for the next batch before ``find_landmarks`` for this one. A batch is padded with zeros to B frames, so that the
same kernels are used and results do not depend on the rest of it.

Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs", 2019; Grishchenko et al.,
"Blendshapes GHUM: Real-time Monocular Facial Blendshape Prediction", 2023.

Letters: n frames of a span (consecutive frames of one clip), B frames of a batch, L landmarks, S side of the network's
input, K faces per frame.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lrs3_loader.errors import RunError
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES, BLENDSHAPE_POINTS, NUM_MESH_POINTS
from lrs3_loader.face.image.spans import SpanSampler
from lrs3_loader.face.landmarks.detector import LEFT_EYE, RIGHT_EYE, FaceDetector, to_pixels
from lrs3_loader.face.landmarks.tflite import TFLiteModule
from lrs3_loader.face.landmarks.tracks import FaceTrack, fill_gaps
from lrs3_loader.io.files import file_sha256
from lrs3_loader.io.zip_files import read_zip
from lrs3_loader.kernels.trust import FastPath
from lrs3_loader.runtime.transfer import HostCopy, to_device
from lrs3_loader.types import shape_repr

_TRIAL_FRAMES = 2
#: Of the landmark networks' results by fast kernels, over their deviation: 0.007 px. TF32 is 0.025 px off.
_MAX_DIFFERENCE = 1e-4
CROP_MARGIN = 1.5  # side of the crop over the side of the detected box
_TASK_MEMBERS = ("face_detector.tflite", "face_landmarks_detector.tflite", "face_blendshapes.tflite")
_FOLDER_MEMBERS = ("face_detection_short_range.tflite", "face_landmark.tflite")


@dataclass(frozen=True)
class LandmarkerFiles:
    """The networks of a face landmarker, as read from disk."""

    detector: bytes = field(repr=False)
    landmarks: bytes = field(repr=False)
    blendshapes: bytes | None = field(repr=False)
    name: str
    sha256: str  # of the .task file; for a folder, of its two files concatenated
    square_crop: bool = False  # the landmark network's crop is a square on the longer side of the detected box


def load_landmarker_files(path: Path) -> LandmarkerFiles:
    """Read the networks of a face landmarker; raises ``RunError`` if a file is missing, damaged or another one.

    ``path`` is a ``face_landmarker.task`` file, or a folder with ``face_detection_short_range.tflite`` and
    ``face_landmark.tflite`` of the mediapipe 0.10.21 wheel (468 points, no blendshapes).
    """
    try:
        if path.is_dir():
            detector, landmarks = ((path / name).read_bytes() for name in _FOLDER_MEMBERS)
            digest = hashlib.sha256(detector + landmarks).hexdigest()
            return LandmarkerFiles(detector, landmarks, None, "face_landmark", digest, square_crop=True)
        detector, landmarks, blendshapes = read_zip(path, _TASK_MEMBERS).values()
        digest = file_sha256(path)
    except (OSError, ValueError) as problem:
        wanted = f"a face_landmarker.task file or a folder with {' and '.join(_FOLDER_MEMBERS)}"
        raise RunError(f"{path} is not {wanted}: {problem}") from problem
    return LandmarkerFiles(detector, landmarks, blendshapes, path.stem, digest)


@dataclass(frozen=True)
class FrameLandmarks:
    """The landmarks of one face in n consecutive frames of a clip."""

    #: f32 [n, L, 3], NaN where no face was found. x, y: pixels of the source, whole at pixel centres, y down. z: same
    #: unit, smaller is closer, 0 near the middle of the head. MediaPipe scales z like a length along the eyes in
    #: coordinates that span 0..1 on both axes, which in frames that are not square stretches z of tilted heads (1.07
    #: times at 15 degrees in 16:9). Here it is not stretched; in square frames the two agree.
    points: Tensor
    score: Tensor  # f32 [n], 0..1: presence of a face in the crop; 0 where the detector found none
    found: Tensor  # bool [n]: a face was detected and has at least the minimum score
    blendshapes: Tensor | None  # f32 [n, 52], 0..1, ``BLENDSHAPE_NAMES``; NaN where no face was found

    __repr__ = shape_repr

    @staticmethod
    def cat(parts: Sequence[FrameLandmarks]) -> FrameLandmarks:
        """Concatenate the parts of one clip, given in order."""
        shapes = [part.blendshapes for part in parts if part.blendshapes is not None]
        return FrameLandmarks(
            torch.cat([part.points for part in parts]),
            torch.cat([part.score for part in parts]),
            torch.cat([part.found for part in parts]),
            torch.cat(shapes) if shapes else None,
        )


def fill_track_gaps(track: FrameLandmarks, *, min_valid_fraction: float, max_gap_frames: int) -> FrameLandmarks:
    """Fill the gaps in the landmarks and blendshapes of a whole clip; ``found`` still marks the measured frames.

    Raises:
        NoFaceError: less than ``min_valid_fraction`` of the frames have the face, or more than ``max_gap_frames``
            consecutive frames lack it.
    """
    fill = partial(fill_gaps, valid=track.found, min_valid_fraction=min_valid_fraction, max_gap_frames=max_gap_frames)
    blendshapes = None if track.blendshapes is None else fill(track.blendshapes)
    return FrameLandmarks(fill(track.points), track.score, track.found, blendshapes)


Spans = Sequence[tuple[Tensor, FaceTrack]]
#: A batch between ``detect_faces`` and ``find_landmarks``; f32 [B, K, 1 + 16], score and letterbox coordinates.
DetectedFaces = tuple[Spans, HostCopy]


class FaceLandmarker(nn.Module):
    """The detector, the landmark network and the blendshape network.

    Args:
        files: the networks.
        device: where they run.
        batch_size: B.
        min_face_score: least score of a detected face, and least presence of a face in its crop.
        allow_tf32: on a GPU, compute in TF32 (0.025 px off on average) instead of f32. Algorithms are deterministic.

    Raises:
        ValueError: a file is damaged or is not the network of MediaPipe.
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
        self.network = TFLiteModule(files.landmarks, divisor=255.0)
        self.blendshaper = None if files.blendshapes is None else TFLiteModule(files.blendshapes)
        self.batch_size = batch_size
        self.min_face_score = min_face_score
        self.allow_tf32 = allow_tf32
        self.square_crop = files.square_crop
        self.size, self.num_landmarks = self._check_networks()
        self.register_buffer("blendshape_points", torch.tensor(BLENDSHAPE_POINTS), persistent=False)
        self.device = torch.device(device)
        self.to(self.device)
        self.sampler = SpanSampler(self.device)

    def fast_path(self) -> FastPath:
        """Return the way by the operators of ``lrs3_loader.kernels``, which is not taken at first."""

        def use(wanted: bool) -> None:
            for network in self._networks():
                network.use_joined_layers(wanted)

        def trial() -> list[Tensor]:
            generator = torch.Generator().manual_seed(0)
            results = list[Tensor]()
            with self._precision():
                for network in self._networks():
                    noise = torch.rand(_TRIAL_FRAMES, *network.input_shape, generator=generator)
                    takes_levels = network.divisor != 1
                    results += network(((noise * 255).byte() if takes_levels else noise).to(self.device))
            return results

        return FastPath("the landmark networks", use, trial, _MAX_DIFFERENCE)

    def _networks(self) -> list[TFLiteModule]:
        networks = [self.detector.network, self.network, self.blendshaper]
        return [network for network in networks if network is not None]

    def forward(self, spans: Spans) -> list[FrameLandmarks]:
        """Find the landmarks of one batch.

        Args:
            spans: pairs of frames (u8 [n, H, W, 3], on the device, of any size from 2 x 2) and the ``FaceTrack`` of
                their clip; at most ``batch_size`` frames in total. The spans of a clip must be given in order.

        Returns:
            The landmarks of each span, on the device.

        Raises:
            ValueError: there are too many frames, or none, or their shape or type is another one.
        """
        return self.find_landmarks(self.detect_faces(spans))

    @torch.inference_mode()
    def detect_faces(self, spans: Spans) -> DetectedFaces:
        """Start to detect all faces of a batch; ``find_landmarks`` takes the result."""
        lengths = [len(frames) for frames, _ in spans]
        if not 0 < sum(lengths) <= self.batch_size or 0 in lengths:
            raise ValueError(f"spans must hold 1 to {self.batch_size} frames together, got {lengths}")
        with self._precision():
            squares = self.sampler.letterbox([frames for frames, _ in spans], self.detector.size, self.batch_size)
            scores, coordinates = self.detector(squares)
        return spans, HostCopy(torch.cat([scores[..., None], coordinates], -1))

    @torch.inference_mode()
    def find_landmarks(self, detected: DetectedFaces) -> list[FrameLandmarks]:
        """Find the landmarks of each clip's face; batches must come in the order of their clips' frames."""
        spans, faces = detected
        lengths = [len(frames) for frames, _ in spans]
        num_frames = sum(lengths)
        matrices = self._choose_faces(spans, faces.wait().numpy().astype(np.float64))
        crops = self.sampler.crop([frames for frames, _ in spans], matrices, self.size, self.batch_size)
        with self._precision():
            points, presence = self._read_points(crops, self._pad(matrices))
            blendshapes = None
            if self.blendshaper is not None:
                blendshapes = self.blendshaper(points[:, self.blendshape_points, :2])[0]
        in_detector = (matrices != 0).flatten(1).any(1)
        score = torch.where(in_detector, presence[:num_frames], 0.0)
        found = in_detector & (score >= self.min_face_score)
        points = points[:num_frames].masked_fill(~found[:, None, None], torch.nan)
        shapes: Sequence[Tensor | None] = [None] * len(lengths)
        if blendshapes is not None:
            shapes = blendshapes[:num_frames].masked_fill(~found[:, None], torch.nan).split(lengths)
        fields = zip(points.split(lengths), score.split(lengths), found.split(lengths), shapes, strict=True)
        return [FrameLandmarks(*values) for values in fields]

    def boxes(self, detected: DetectedFaces) -> list[list[list[float]]]:
        """Return the boxes (x0, y0, x1, y1 in pixels) of all faces of each frame of a batch, best first."""
        spans, copy = detected
        faces = copy.wait().numpy().astype(np.float64)
        found, i = [], 0
        for frames, _ in spans:
            here = faces[i : i + len(frames)]
            i += len(frames)
            found += _boxes(here, to_pixels(here[:, :, 1:], *frames.shape[1:3]))
        return found

    def _check_networks(self) -> tuple[int, int]:
        """Check the shapes of the networks; returns (S, L)."""
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

    def _pad(self, matrices: Tensor) -> Tensor:
        """Pad with zeros to the batch's fixed size."""
        return nn.functional.pad(matrices, (0, 0, 0, 0, 0, self.batch_size - len(matrices)))

    def _choose_faces(self, spans: Spans, faces: np.ndarray) -> Tensor:
        """Choose each track's face; returns crop matrices f32 [frames, 2, 3], zero where there is no face."""
        parts = []
        i = 0
        for frames, track in spans:
            num_frames, height, width, _ = frames.shape
            here = faces[i : i + num_frames]
            i += num_frames
            pixels = to_pixels(here[:, :, 1:], height, width)
            own = [track.choose(boxes, height, width) for boxes in _boxes(here, pixels)]
            detected = np.array([face is not None for face in own])
            chosen = pixels[np.arange(num_frames), [face or 0 for face in own]]
            matrix = crop_matrix(chosen, self.size, self.square_crop)
            parts.append(np.where(detected[:, None, None], matrix, 0))
        return to_device(torch.from_numpy(np.concatenate(parts).astype(np.float32)), self.device)

    def _read_points(self, crops: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Read crops u8 [B, S, S, 3]; returns points [B, L, 3] in pixels and presence [B]."""
        raw, logits = self.network(crops)[:2]
        local = raw.reshape(self.batch_size, self.num_landmarks, 3)
        # Not a matrix product, which might run in reduced precision.
        x, y, z = local[:, :, None].unbind(-1)  # [B, L, 1]
        m = matrices[:, None]  # [B, 1, 2, 3]
        plane = m[..., 0] * x + m[..., 1] * y + m[..., 2]
        depth = z * torch.linalg.vector_norm(matrices[:, None, :, 0], dim=-1, keepdim=True)
        return torch.cat([plane, depth], -1), logits.reshape(-1).sigmoid()


def _boxes(faces: np.ndarray, pixels: np.ndarray) -> list[list[list[float]]]:
    """Return the boxes of each frame's faces [n, K, 1 + 16], whose coordinates in pixels are [n, K, 16]."""
    num_faces = (faces[:, :, 0] > 0).sum(1).tolist()
    return [boxes[:k] for boxes, k in zip(pixels[:, :, :4].tolist(), num_faces, strict=True)]


def crop_matrix(face: np.ndarray, size: int, square: bool = False) -> np.ndarray:
    """Compute the transforms [n, 2, 3] from pixels of the landmark network's input (side ``size``) to source pixels.

    The crop is the detected box, enlarged by ``CROP_MARGIN`` and rotated so that the eyes are level; if ``square``, on
    the longer side of the box. ``face`` [n, 16] has box corners and keypoints in source pixels.
    """
    centre, extent = (face[:, 0:2] + face[:, 2:4]) / 2, (face[:, 2:4] - face[:, 0:2]) * CROP_MARGIN
    if square:
        extent = extent.max(1, keepdims=True).repeat(2, 1)
    keypoints = face[:, 4:].reshape(len(face), -1, 2)
    x, y = (keypoints[:, LEFT_EYE] - keypoints[:, RIGHT_EYE]).T
    angle = np.arctan2(y, x)
    cosine, sine = np.cos(angle), np.sin(angle)
    rotation = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
    corner = centre - (rotation @ (extent / 2)[:, :, None])[:, :, 0]
    return np.concatenate([rotation * (extent / size)[:, None], corner[:, :, None]], 2)
