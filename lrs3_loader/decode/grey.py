"""Finds what FFmpeg makes up where frames that others are predicted from are missing: areas of exactly mid-grey.

Its HEVC decoder predicts from a mid-grey frame instead of a missing one. From FFmpeg 8 on it does not give out the
result; versions before do, and do not flag it. Its other decoders predict from another frame, which leaves no trace.
"""

from __future__ import annotations

import av
import numpy as np

_CODEC = "hevc"
_BLOCK = 4  # pixels of luma, 2 of chroma: of larger ones, few stay grey when what frames add is put on top
_MIN_SHARE = 0.01  # of the blocks, by which grey grows from one frame to the next; a still grey area does not grow
_MIN_GAP = 1.5  # of the usual time between frames
#: By pixel format: the value of mid-grey, the same in each plane, and its type.
_MID_GREY = {"yuv420p": (128, "u1"), "yuvj420p": (128, "u1"), "yuv420p10le": (512, "<u2")}


def can_be_made_up(codec: str, pts: np.ndarray) -> bool:
    """Tell whether frames of a video may hold made-up grey: some are missing, and its decoder is one that does that.

    Args:
        pts: [n] the times of its frames, ascending.
    """
    steps = np.diff(pts)
    return codec == _CODEC and len(steps) > 0 and bool(steps.max() >= _MIN_GAP * np.median(steps))


class GreyAreas:
    """Tells which frames of a video have suddenly turned grey in places; called with each frame, in order.

    What is grey in a key frame, or another that is not predicted (I), is grey.
    """

    def __init__(self) -> None:
        self._num_before = 0  # blocks

    def __call__(self, frame: av.VideoFrame) -> bool:
        if frame.format.name not in _MID_GREY:
            return False
        num_grey, num_blocks = _count_grey(frame)
        growth = num_grey - self._num_before
        is_intra = frame.pict_type == av.video.frame.PictureType.I
        is_sudden = not is_intra and growth >= _MIN_SHARE * num_blocks
        if not is_sudden:
            self._num_before = num_grey
        return is_sudden


def _count_grey(frame: av.VideoFrame) -> tuple[int, int]:
    """Return how many blocks of a frame are exactly mid-grey in all planes, and how many there are."""
    value, dtype = _MID_GREY[frame.format.name]
    rows, columns = frame.height // _BLOCK, frame.width // _BLOCK
    is_grey = np.ones((rows, columns), dtype=bool)
    for plane, side in zip(frame.planes, (_BLOCK, _BLOCK // 2, _BLOCK // 2), strict=True):
        pixels = np.frombuffer(memoryview(plane), dtype=dtype).reshape(plane.height, -1)[
            : rows * side, : columns * side
        ]
        is_grey &= (pixels == value).reshape(rows, side, columns, side).all((1, 3))
        if not is_grey.any():  # in nearly all frames, the luma is enough
            break
    return int(is_grey.sum()), is_grey.size
