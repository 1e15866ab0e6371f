"""Lays panels and strips out: one page a frame for a video, or one contact sheet for a whole clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz import chart, overlay
from lrs3_loader.viz.overlay import LINE_PX, Colour, to_uint8

NUM_COLUMNS = 5  # of a contact sheet
INK: Colour = (0.86, 0.87, 0.88)
OUTLINE: Colour = (1.0, 1.0, 1.0)
ALARM: Colour = (1.0, 0.35, 0.35)


@dataclass(frozen=True)
class Panel:
    """One image of one frame; ``label`` writes the name, and what the colours mean, at its upper left."""

    name: str
    image: np.ndarray  # [size, size, 3] f32 in 0..1
    legend: tuple[tuple[str, Colour], ...] = ()

    def label(self) -> None:
        names = wrap(self.name.split(), self.image.shape[1] - 5, " ")
        for line, (text, colour) in enumerate([*((name, OUTLINE) for name in names), *self.legend]):
            overlay.draw_text(self.image, (5, 3 + line * LINE_PX), text, colour)


class Layout(ABC):
    """A clip drawn frame by frame, with curves below; ``size`` is the side of a panel in pixels (even)."""

    def __init__(self, size: int, num_frames: int) -> None:
        if size < 64 or size % 2:
            raise ValueError(f"size must be even and at least 64, got {size}")
        self.size, self.num_frames = size, num_frames

    @abstractmethod
    def frames(self) -> Iterator[np.ndarray | None]:
        """The video's frames, or as many times None."""

    @abstractmethod
    def panels(self, index: int, frame: np.ndarray | None) -> list[Panel]:
        """The images of frame ``index``; ``frame`` [H, W, 3] u8 is drawn over where there is one."""

    @abstractmethod
    def chart(self, width: int) -> np.ndarray:
        """All strips, [h, width, 3] f32."""

    @abstractmethod
    def facts(self) -> tuple[str, ...]:
        """The clip in a few words; some may be empty."""

    @abstractmethod
    def chosen_frames(self) -> Mapping[int, str]:
        """The frames of a contact sheet, each with the reason (may be empty) why it is worth a look."""

    def problem(self, index: int) -> str:
        """Return what is wrong with a frame; empty if nothing is."""
        return ""

    def header(self, width: int) -> np.ndarray:
        """The facts, on as many lines as ``width`` pixels ask for, [h, width, 3] f32; h is even."""
        lines = wrap(self.facts(), width - 6)
        header = np.zeros((LINE_PX * len(lines) + 6, width, 3), dtype=np.float32)
        for number, line in enumerate(lines):
            overlay.draw_text(header, (6, 2 + number * LINE_PX), line, INK)
        return header

    def video(self) -> Iterator[np.ndarray]:
        """One page [h, w, 3] u8 a frame, h and w even: panels side by side, the strips below with a moving cursor."""
        header = strips = np.empty(0, dtype=np.uint8)
        for index, frame in enumerate(self.frames()):
            panels = self.panels(index, frame)
            width = max(self.size * len(panels), chart.MIN_WIDTH)
            if not len(header):
                header, strips = to_uint8(self.header(width)), to_uint8(self.chart(width))
            for panel in panels:
                panel.label()
            self._stamp(panels[0].image, index)
            below = strips.copy()
            below[:, chart.cursor_column(index, self.num_frames, width)] = 255
            row = to_uint8(side_by_side([panel.image for panel in panels], width))
            yield np.concatenate([header, row, below])

    def sheet(self) -> np.ndarray:
        """A page [h, w, 3] u8 of the whole clip: a column for each of the frames of ``chosen_frames``."""
        chosen = self.chosen_frames()
        width = max(self.size * len(chosen), chart.MIN_WIDTH)
        columns: dict[int, np.ndarray] = {}
        for index, frame in enumerate(self.frames()):
            if index in chosen:
                panels = self.panels(index, frame)
                self._stamp(panels[0].image, index, chosen[index])
                if not columns:
                    for panel in panels:
                        panel.label()
                columns[index] = np.concatenate([panel.image for panel in panels])
        strips = self.chart(width)
        for index in chosen:
            strips[:, chart.cursor_column(index, self.num_frames, width)] = 1.0
        row = side_by_side([columns[index] for index in sorted(columns)], width)
        return to_uint8(np.concatenate([self.header(width), row, strips]))

    def _stamp(self, image: np.ndarray, index: int, reason: str = "") -> None:
        """Write the time at the lower left, in red where there is a problem."""
        problem = self.problem(index)
        facts = (f"{index / FRAMES_PER_SECOND:.2f} s", f"frame {index}", reason, problem)
        colour = ALARM if problem else OUTLINE
        for number, line in enumerate(reversed(wrap(facts, self.size - 5, ", ")), 1):
            overlay.draw_text(image, (5, self.size - 4 - LINE_PX * number), line, colour)


def side_by_side(images: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Join images [h, w, 3] of one height, with black at the right up to ``width``."""
    row = np.concatenate(images, axis=1)
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)))


def wrap(parts: Iterable[str], width_px: int, gap: str = "   ") -> list[str]:
    """Join texts, empty ones left out, to lines that ``draw_text`` fits into ``width_px``."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and overlay.text_width(lines[-1] + gap + part) <= width_px:
            lines[-1] += gap + part
        else:
            lines.append(part)
    return lines
