"""BlazeFace, MediaPipe's short-range face detector, on batches of frames.

Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019; settings as in MediaPipe's
face detection graph. Coordinates are those of the letterbox: the frame is centred in a square that spans 0..1 in x and
y.

Letters: B frames, A = 896 anchors, N candidates of all frames, K faces kept per frame.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lrs3_loader.face.landmarks.tflite import TFLiteModule

RIGHT_EYE, LEFT_EYE = 0, 1  # the subject's; then come nose, mouth, right and left ear
NUM_COORDINATES = 4 + 2 * 6  # x0, y0, x1, y1, then x, y of each keypoint
MAX_FACES = 4  # K
MAX_OVERLAP = 0.3  # candidates that overlap more than this (intersection over union) are one face
_GRIDS = ((16, 2), (8, 6))  # cells per side, anchors per cell


class FaceDetector(nn.Module):
    """Detects the faces in a batch of letterboxed frames.

    Args:
        data: the bytes of the ``.tflite`` file.
        min_score: least score of a face.

    Raises:
        ValueError: the file is damaged or another network.
    """

    anchors: Tensor

    def __init__(self, data: bytes, min_score: float = 0.5) -> None:
        super().__init__()
        self.network = TFLiteModule(data, divisor=127.5, offset=1.0)
        self.min_score = min_score
        anchors = make_anchors()
        shapes = ((len(anchors), NUM_COORDINATES), (len(anchors), 1))
        size = self.network.input_shape[0]
        if self.network.output_shapes != shapes or self.network.input_shape != (size, size, 3):
            raise ValueError(
                f"not a short-range face detector: {self.network.input_shape} in, {self.network.output_shapes} out"
            )
        self.size = size
        self.register_buffer("anchors", torch.from_numpy(anchors))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Detect faces in letterboxes [B, S, S, 3], levels 0..255, u8 or f32; see ``warp.letterbox``.

        Returns:
            scores: [B, K] in 0..1, best first, 0 where there is no further face.
            coordinates: [B, K, 16] (see ``NUM_COORDINATES``) in letterbox units, without meaning where the score is 0.
        """
        raw, logits = self.network(x)
        scores = logits[..., 0].clamp(-100, 100).sigmoid()
        if x.device.type == "cpu":
            # Only some of the anchors are candidates. Elsewhere, the device would wait to hear how many.
            frame, anchor = (scores >= self.min_score).nonzero().unbind(1)
            coordinates = decode_boxes(raw[frame, anchor] / self.size, self.anchors[anchor])
            candidates = scores[frame, anchor] * _is_proper(coordinates)
            return merge_candidates(coordinates, candidates, frame, len(x), MAX_FACES)
        coordinates = decode_boxes(raw / self.size, self.anchors)
        scores = scores.where((scores >= self.min_score) & _is_proper(coordinates), 0.0)
        return merge_overlapping(coordinates, scores, MAX_FACES)


def to_pixels(coordinates: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert x, y pairs [..., 2 * number] from letterbox units to pixels of a frame of this size."""
    points = coordinates.reshape(*coordinates.shape[:-1], -1, 2)
    pixels = (points - 0.5) * max(height, width) + np.array([width / 2, height / 2])
    return pixels.reshape(coordinates.shape)


def make_anchors() -> np.ndarray:
    """Return the centres f32 [A, 2] (x, y) that the detector's offsets refer to, row by row, of both grids."""
    grids = []
    for cells, repeats in _GRIDS:
        centre = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        y, x = np.meshgrid(centre, centre, indexing="ij")
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), repeats, axis=0))
    return np.concatenate(grids)


def decode_boxes(raw: Tensor, anchors: Tensor) -> Tensor:
    """Convert the network's output [..., 16] (centre, size, keypoints; letterbox units) to corners and keypoints.

    ``anchors`` [..., 2] are the centres that it refers to.
    """
    centre, half = raw[..., 0:2] + anchors, raw[..., 2:4] / 2
    keypoints = (raw[..., 4:].unflatten(-1, (-1, 2)) + anchors[..., None, :]).flatten(-2)
    return torch.cat([centre - half, centre + half, keypoints], -1)


def merge_overlapping(coordinates: Tensor, scores: Tensor, max_faces: int) -> tuple[Tensor, Tensor]:
    """Weighted non-maximum suppression: the best candidate and all that overlap it are replaced by their weighted mean.

    Takes coordinates [B, A, 16] and scores [B, A] (0 = no candidate). Returns scores [B, K] and coordinates [B, K, 16];
    a merged face has the score of its best candidate.
    """
    remaining = scores
    found_scores, found = [], []
    for _ in range(max_faces):
        score, best = remaining.max(1, keepdim=True)  # [B, 1]
        box = coordinates[..., :4].gather(1, best[..., None].expand(-1, -1, 4))  # [B, 1, 4]
        same = box_iou(box, coordinates[..., :4]) > MAX_OVERLAP
        same.scatter_(1, best, True)  # an empty box does not even overlap itself
        weight = remaining * same
        total = weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        found.append((weight[..., None] * coordinates).sum(1) / total)
        found_scores.append(score[:, 0])
        remaining = remaining * ~same
    return torch.stack(found_scores, 1), torch.stack(found, 1)


def merge_candidates(
    coordinates: Tensor, scores: Tensor, frame: Tensor, num_frames: int, max_faces: int
) -> tuple[Tensor, Tensor]:
    """Weighted non-maximum suppression as in ``merge_overlapping``, of N candidates in a list.

    A sum runs in the order of the list, so that frames do not depend on each other.

    Args:
        coordinates: [N, 16].
        scores: [N]; 0 is no candidate.
        frame: i64 [N], number of each candidate's frame.
        num_frames: B.
        max_faces: K.

    Returns:
        scores [B, K] and coordinates [B, K, 16], both 0 where there is no further face.
    """
    found_scores, found = scores.new_zeros(num_frames, max_faces), coordinates.new_zeros(num_frames, max_faces, 16)
    number = torch.arange(len(frame))
    for face in range(max_faces):
        if not scores.any():
            break
        score = scores.new_zeros(num_frames).scatter_reduce_(0, frame, scores, "amax")
        is_best = scores == score[frame]
        # The first of equally good ones.
        best = number.new_zeros(num_frames).scatter_reduce_(
            0, frame[is_best], number[is_best], "amin", include_self=False
        )[frame]
        same = (box_iou(coordinates[best, :4], coordinates[:, :4]) > MAX_OVERLAP) | (number == best)
        weight = scores * same
        total = weight.new_zeros(num_frames).index_add_(0, frame, weight).clamp_min_(torch.finfo(weight.dtype).tiny)
        found[:, face].index_add_(0, frame, weight[:, None] * coordinates).div_(total[:, None])
        found_scores[:, face] = score
        scores = scores * ~same
    return found_scores, found


def _is_proper(boxes: Tensor) -> Tensor:
    """Tell which boxes [..., 4 or more] have sides that are not negative."""
    return (boxes[..., 2:4] >= boxes[..., 0:2]).all(-1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of boxes (x0, y0, x1, y1), [..., 4] each, broadcast; 0 for empty boxes."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp_min_(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return torch.where(union > 0, common / union, 0.0)
