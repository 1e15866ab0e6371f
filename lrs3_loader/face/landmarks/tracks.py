"""Follow one face through a clip, and fill the frames in which it was not found.

Letters: T frames of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrs3_loader.errors import NoFaceError

Box = Sequence[float]  # x0, y0, x1, y1 in pixels

MIN_OVERLAP = 0.1  # intersection over union with the last box found; less is another face
TRACK_RULE = "largest and most central face first, then the one that overlaps most with the last box"
MAX_LOST_FRAMES = 5  # frames without the face after which another one is followed


class FaceTrack:
    """Follows one face through a clip. There is one object per clip, which is given its frames in order.

    In the first frame with faces, the largest and most central one is chosen; after that, the face that overlaps most
    with the last box found. A face elsewhere is not chosen (another person may be in the frame while the detector
    misses this one) until the track has been lost for ``MAX_LOST_FRAMES``; then the first rule applies again, which
    ``num_switches`` counts.

    Args:
        start: index of the frame in which the track begins, where that is known; earlier frames are passed over.
        box: what stands for the last box found in that frame.
    """

    def __init__(self, start: int = 0, box: Box | None = None) -> None:
        self._start = start
        self.num_frames = 0
        self.num_frames_with_several_faces = 0
        self.num_switches = 0
        self._box = box
        self._num_missed = 0

    def choose(self, boxes: Sequence[Box], height: int, width: int) -> int | None:
        """Return the index of the followed face among the boxes of the next frame, or None if it is not there."""
        self.num_frames += 1
        self.num_frames_with_several_faces += len(boxes) > 1
        if self.num_frames <= self._start:
            return None
        followed = self._box if self._num_missed < MAX_LOST_FRAMES else None
        values = [prominence(box, height, width) if followed is None else box_iou(followed, box) for box in boxes]
        if not boxes or (followed is not None and max(values) < MIN_OVERLAP):
            self._num_missed += 1
            return None
        self.num_switches += self._box is not None and followed is None
        index = values.index(max(values))
        self._box, self._num_missed = boxes[index], 0
        return index


# Plain numbers, not arrays: a frame has only a few boxes, and the GPU waits for this between two stages.


def prominence(box: Box, height: int, width: int) -> float:
    """Return the box's area times its closeness to the centre of the frame (1 at the centre, 0 in the corners)."""
    x0, y0, x1, y1 = box
    distance = math.hypot(x0 + x1 - width, y0 + y1 - height) / math.hypot(width, height)
    return max(x1 - x0, 0) * max(y1 - y0, 0) * max(1 - distance, 0)


def box_iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes; 0 if both are empty."""
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def fill_gaps(values: Tensor, valid: Tensor, *, min_valid_fraction: float, max_gap_frames: int) -> Tensor:
    """Fill gaps, runs of frames that are not valid: linearly between their neighbours, at the ends with the nearest.

    Args:
        values: floating point [T, ...], of any value where not valid.
        valid: bool [T], frames in which the face was found.
        min_valid_fraction: least share of valid frames.
        max_gap_frames: longest gap that can be filled.

    Raises:
        NoFaceError: the face was not found in enough frames; the message has the numbers.
        ValueError: ``valid`` has another shape or type.
    """
    num_frames = len(values)
    if valid.shape != (num_frames,) or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool [{num_frames}], got {valid.dtype} {list(valid.shape)}")
    num_valid = int(valid.sum())
    if num_valid == 0:
        raise NoFaceError(f"no face found in any of {num_frames} frames")
    if num_valid < min_valid_fraction * num_frames:
        raise NoFaceError(
            f"face found in {num_valid} of {num_frames} frames ({num_valid / num_frames:.0%}), "
            f"{min_valid_fraction:.0%} are needed"
        )
    frame = torch.arange(num_frames, device=values.device)
    before = torch.where(valid, frame, -1).cummax(0).values
    after = torch.where(valid, frame, num_frames).flip(0).cummin(0).values.flip(0)
    longest_gap = int(torch.where(valid, 0, after - before - 1).max())
    if longest_gap > max_gap_frames:
        raise NoFaceError(f"no face in {longest_gap} consecutive frames, at most {max_gap_frames} can be filled")
    first = torch.where(before < 0, after, before)
    last = torch.where(after >= num_frames, before, after)
    share = (frame - first).to(values.dtype) / (last - first).clamp_min(1)
    tail = (-1,) + (1,) * (values.ndim - 1)
    return torch.where(valid.reshape(tail), values, torch.lerp(values[first], values[last], share.reshape(tail)))
