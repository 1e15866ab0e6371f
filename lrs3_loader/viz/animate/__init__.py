"""Animates a face from a sound: what a generator of motion made of it, drawn as a video with the sound."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.runtime.progress import with_progress
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz.animate.motion import FACE_OF, FaceMotion
from lrs3_loader.viz.animate.scene import Animation, Scene
from lrs3_loader.viz.animate.source import Source, face_model_of, from_sample, from_sound
from lrs3_loader.viz.output import check_output, write_image, write_video

__all__ = [
    "Generator",
    "Source",
    "Summary",
    "animate",
    "check_output",
    "face_model_of",
    "from_sample",
    "from_sound",
    "write_animation",
]

logger = logging.getLogger(__name__)


class Generator(Protocol):
    """Makes motion from speech: ``MotionModel`` of a training."""

    def generate(
        self,
        speech: torch.Tensor,
        f0: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Return motion [T, C] for speech features [2T, D], pitch [2T] and a person's mean motion [C]."""


@dataclass(frozen=True)
class Summary:
    """One animation in figures."""

    out: str
    num_frames: int
    seconds: float
    mouth_opening_mm: tuple[float, float]  # of the inner lips: least and most
    mouth_error_mm: float | None  # mean distance of the generated inner-lip opening to the true one, where known

    def describe(self) -> str:
        """Describe the animation in one line."""
        low, high = self.mouth_opening_mm
        text = f"{self.out}: {self.num_frames} frames, {self.seconds:.2f} s, mouth open {low:.1f} to {high:.1f} mm"
        return text if self.mouth_error_mm is None else f"{text}, {self.mouth_error_mm:.1f} mm off on average"


def animate(
    source: Source, generator: Generator, target: str, model: FaceModel, seed: int = 0, temperature: float = 1.0
) -> Animation:
    """Generate the motion of a clip, and find the face that moves so.

    Args:
        target: what the generator makes, a name of ``FACE_OF``.
        model: the face model that the motion is of, on the CPU.
        seed: of the sample.
        temperature: of the sampling; 0 gives the most likely motion.
    """
    reference = None if source.motion is None else source.motion.mean(0)
    motion = generator.generate(source.speech, source.f0_hz, reference, seed, temperature)
    return Animation(
        name=source.name,
        model=model,
        motion=FACE_OF[target](model, motion, source.id),
        waveform=source.waveform,
        mel=source.mel,
        f0_hz=source.f0_hz.numpy(),
        truth=None if source.motion is None else FACE_OF[target](model, source.motion, source.id),
        video=source.video,
    )


def write_animation(animation: Animation, out: Path, panel_px: int, small: bool = False) -> Summary:
    """Write ``out``, whole or not at all: an ``.mp4`` of all frames with the sound, or a ``.png`` with a few of them.

    Args:
        panel_px: side of a panel.
        small: a png of 256 colours.

    Raises:
        RunError: ``out`` cannot be written or is of another kind.
    """
    check_output(out)
    scene = Scene(animation, panel_px)
    if out.suffix.lower() == ".png":
        write_image(out, scene.sheet(), small)
    else:
        pages = with_progress(scene.video(), animation.num_frames, "frames", logger)
        write_video(out, pages, animation.waveform)
    return _summarise(out, animation.motion, animation.truth)


def _summarise(out: Path, motion: FaceMotion, truth: FaceMotion | None) -> Summary:
    opening = motion.mouth_opening
    error = None if truth is None else round(float(abs(opening - truth.mouth_opening).mean()), 3)
    extremes = round(float(opening.min()), 3), round(float(opening.max()), 3)
    return Summary(str(out), len(opening), len(opening) / FRAMES_PER_SECOND, extremes, error)
