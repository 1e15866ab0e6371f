"""How the frames of a video are shown: pixels that are no squares, and frames that are turned or mirrored."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

_UPRIGHT = (1, 0, 0, 1)


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Return the width of a pixel over its height, which the container says, or else the codec; 1 if neither does."""
    return Fraction(stream.sample_aspect_ratio or 1)


def shown_width(width: int, aspect: Fraction) -> int:
    """Return the width of a frame as it is shown. Its height stays."""
    return max(1, round(width * aspect))


class Display:
    """Converts the frames of one video, in order, to what a player shows.

    Args:
        aspect: width of a pixel over its height; frames are resampled (bicubic) where it is not 1.
    """

    def __init__(self, aspect: Fraction) -> None:
        self._aspect = aspect
        self._convert = VideoReformatter()  # keeps its tables, which cost more than the conversion of a small frame
        self._matrix = _UPRIGHT  # a, b, c, d
        self._is_known = False

    def note_matrix(self, frame: av.VideoFrame) -> None:
        """Remember the display matrix of a frame for itself and its successors: it may be in key frames only."""
        if not frame.key_frame and self._is_known:
            return
        self._is_known = True
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
            self._matrix = a, b, c, d

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to pixels [H, W, 3] u8: widened to square pixels, then turned and mirrored.

        The display matrix (ISO/IEC 14496-12, 6.2.2) takes a point (x, y) of the frame to (a x + c y, b x + d y); other
        angles than multiples of 90 degrees are rounded. The result is a view of memory that FFmpeg owns.
        """
        if self._aspect == 1:
            shown = self._convert.reformat(frame, format="rgb24")
        else:
            width = shown_width(frame.width, self._aspect)
            shown = self._convert.reformat(frame, width, frame.height, "rgb24", interpolation="BICUBIC")
        plane = shown.planes[0]
        rows = np.asarray(memoryview(plane)).reshape(shown.height, plane.line_size)
        pixels = rows[:, : 3 * shown.width].reshape(shown.height, shown.width, 3)
        a, b, c, d = self._matrix
        if abs(b) + abs(c) > abs(a) + abs(d):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
