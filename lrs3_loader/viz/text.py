"""Writing on pictures, with the font that Pillow brings along."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrs3_loader.viz.overlay import Colour, blend

FONT_PX = 13
LINE_PX = 14
DARKENED = 0.5


def draw_text(picture: np.ndarray, corner: tuple[int, int], text: str, colour: Colour) -> None:
    """Write one line with its top left at ``corner`` (x, y) of ``picture`` [H, W, 3] f32; what does not fit is cut.

    What lies below is darkened, so that the line can be read on any picture.
    """
    x, y = corner
    mask = _mask(text)
    target = picture[y : y + mask.shape[0], x : x + mask.shape[1]]
    target *= DARKENED
    blend(target, mask[: target.shape[0], : target.shape[1]], colour)


@lru_cache(maxsize=256)
def _mask(text: str) -> np.ndarray:
    """[h, w] f32 in 0..1, how far the line covers each pixel."""
    font = ImageFont.load_default(FONT_PX)
    image = Image.new("L", (math.ceil(font.getlength(text)) + 4, LINE_PX))
    ImageDraw.Draw(image).text((2, -1), text, fill=255, font=font)
    return np.asarray(image, dtype=np.float32) / 255
