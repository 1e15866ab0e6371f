"""Measures the figures of the clips of a shard at the stages at which an extraction has what they need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lrs3_loader.config import QualityConfig
from lrs3_loader.errors import SceneCutError
from lrs3_loader.extraction.batch import FrameSpan
from lrs3_loader.face.landmarks.landmarker import FrameLandmarks
from lrs3_loader.quality.audio import audio_figures
from lrs3_loader.quality.face import face_figures, identity_figures
from lrs3_loader.quality.figures import rounded
from lrs3_loader.quality.mouth import mouth_figures
from lrs3_loader.quality.picture import MeasuredPixels, PictureMeter
from lrs3_loader.quality.speech import SpeechDetector
from lrs3_loader.types import ClipHead, SourceInfo


@dataclasses.dataclass(frozen=True, eq=False)
class QualityStage:
    """Measures clips as a resolved config says. Every method returns figures by name, or nothing at a lower level."""

    config: QualityConfig
    speech: SpeechDetector | None  # None at level "none"

    @property
    def is_on(self) -> bool:
        return self.config.level != "none"

    @property
    def needs_pixels(self) -> bool:
        return self.config.level == "full"

    def measure_pixels(self, meter: PictureMeter, span: FrameSpan[Any], landmarks: FrameLandmarks) -> None:
        """Measure the next frames of a clip; the device is not waited for."""
        meter.add(span.frames, span.start, landmarks.points)

    def picture(self, measured: MeasuredPixels | None) -> dict[str, Any]:
        """Return the figures of a clip's pixels, and its cuts as ``scene_cuts``: [[frame, strength], ...].

        Args:
            measured: on the pixels; None at a lower level.

        Raises:
            SceneCutError: there are more cuts than the config admits.
        """
        if measured is None:
            return {}
        figures, cuts = measured.figures(self.config.scene_cut_strength)
        most = self.config.max_scene_cuts
        if most is not None and len(cuts) > most:
            listed = ", ".join(f"{frame} ({strength:.0f} levels)" for frame, strength in cuts[:8])
            raise SceneCutError(f"{len(cuts)} scene cuts, {most} allowed, at frame {listed}")
        return {**rounded(figures), "scene_cuts": [[frame, round(strength, 1)] for frame, strength in cuts]}

    def identity(self, points: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
        """Return the figures of the shape of the face. ``points`` [T, L, 3], ``found`` bool [T], on the host."""
        return rounded(identity_figures(points[found].numpy())) if self.is_on else {}

    def audio(self, heads: Sequence[ClipHead]) -> list[dict[str, float]]:
        """Return the figures of audio and source of each clip."""
        if self.speech is None:
            return [{} for _ in heads]
        shares = self.speech([head.waveform for head in heads])
        return [
            rounded({**audio_figures(head.waveform.numpy()), "speech_fraction": share, **_source_figures(head.source)})
            for head, share in zip(heads, shares, strict=True)
        ]

    def face(self, arrays: Mapping[str, np.ndarray], head: ClipHead) -> dict[str, float]:
        """Return the figures of face and mouth from the ``lm68``, ``pose`` and ``valid`` of a clip."""
        if not self.is_on:
            return {}
        lm68, valid, source = arrays["lm68"], arrays["valid"], head.source
        face = face_figures(lm68, arrays["pose"], valid, source.height, source.width)
        return rounded(face | mouth_figures(lm68, valid, head.waveform.numpy()))


def _source_figures(source: SourceInfo) -> dict[str, float]:
    return {
        "source_height": source.height,
        "source_width": source.width,
        "source_fps": source.frames_per_second,
        "source_sample_rate": source.sample_rate,
        "source_channels": source.num_channels,
    }
