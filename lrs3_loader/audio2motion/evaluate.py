"""Compares generated motion with the true one of speakers never seen, beside two baselines.

A generator that draws samples is judged by its best estimate (temperature 0) where errors are asked for, and by its
samples (temperature 1) for diversity, speed and lip-sync. All methods get the clip's true mean as its reference: the
question is how a given face moves. ``mouth_mm`` is the error with this reference; ``mouth_centred_mm`` that after the
clip's mean was taken from both motions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrs3_loader.audio2motion.metrics import (
    centred_mouth_error_mm,
    diversity_mm,
    mouth_error_mm,
    mouth_speed_mm,
    opening_correlation,
    velocity_error_mm,
)
from lrs3_loader.audio2motion.model import MotionModel
from lrs3_loader.audio2motion.targets import Target
from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.run.tar import Sample
from lrs3_loader.syncnet.evaluate import score_clip
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.types import ROWS_PER_FRAME

NUM_SAMPLES = 5
METHODS = ("generator", "mean", "ridge")

#: A method: the motion [T, C] of a clip, from its sample and its reference [C].
Method = Callable[[Sample, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ClipFigures:
    """The figures of one clip."""

    key: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class MotionEvaluation:
    """The means of the figures over the clips of the held-out speakers."""

    figures: dict[str, float]
    clips: tuple[ClipFigures, ...]

    @classmethod
    def of(cls, clips: Sequence[ClipFigures]) -> MotionEvaluation:
        """Average over clips. A figure that some clips are too short for is averaged over the others.

        Raises:
            ValueError: there is no clip.
        """
        if not clips:
            raise ValueError("no clip in which a face was found")
        ordered = tuple(sorted(clips, key=lambda clip: clip.key))
        names = list(dict.fromkeys(name for clip in ordered for name in clip.figures))
        means = {
            name: float(np.mean([clip.figures[name] for clip in ordered if name in clip.figures])) for name in names
        }
        return cls(means, ordered)

    @property
    def num_clips(self) -> int:
        return len(self.clips)

    def details(self) -> dict[str, Any]:
        """Return the figures of each clip, and their means."""
        return {"mean": self.figures, "clips": {clip.key: dict(clip.figures) for clip in self.clips}}

    def describe(self) -> str:
        """Describe the errors in one line."""
        found = [
            f"{method} {self.figures[f'{method}_mouth_mm']:.2f} mm "
            f"(opening's correlation {self.figures[f'{method}_opening_correlation']:.2f})"
            for method in METHODS
        ]
        return f"mouth's error over {self.num_clips} clips of held-out speakers: {', '.join(found)}"


def score_motion(
    network: MotionModel,
    sample: Sample,
    speech: str,
    target: Target,
    baselines: Mapping[str, Method],
    expert: SyncNetModel | None,
    other_hubert: np.ndarray | None,
) -> ClipFigures:
    """Compare generator and baselines on one clip, which has a frame with a face.

    Args:
        sample: of task ``"raw"``, with the fields ``speech``, ``f0``, ``target.name`` and ``valid``; and with
            ``hubert`` if an expert is given.
        baselines: by name.
        expert: a lip-sync network; with it, the target is ``idexp_lm3d``.
        other_hubert: the ``hubert`` of another clip, for the score of lips with a sound that is not theirs.
    """
    true, valid = sample[target.name].reshape(len(sample["valid"]), -1), sample["valid"]
    reference = true[valid].mean(0)
    methods: dict[str, np.ndarray] = {"generator": _generated(network, sample, speech, reference, 0, 0.0)}
    methods |= {name: method(sample, reference) for name, method in baselines.items()}
    samples = [_generated(network, sample, speech, reference, seed, 1.0) for seed in range(NUM_SAMPLES)]
    landmarks = target.landmark_offsets_mm(true)
    figures: dict[str, float] = {}
    for name, motion in methods.items():
        figures |= _errors(name, target.landmark_offsets_mm(motion), landmarks, valid)
    drawn = [target.landmark_offsets_mm(motion) for motion in samples]
    figures["sample_mouth_mm"] = float(np.mean([mouth_error_mm(each, landmarks, valid) for each in drawn]))
    figures["sample_diversity_mm"] = diversity_mm(drawn, valid)
    figures["sample_speed_mm"] = float(np.mean([mouth_speed_mm(each, valid) for each in drawn]))
    figures["true_speed_mm"] = mouth_speed_mm(landmarks, valid)
    if expert is not None:
        lips = {"true": true, "sample": samples[0], **methods}
        figures |= sync_figures(expert, sample, lips, other_hubert)
    return ClipFigures(sample["__key__"], figures)


def _errors(name: str, found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Return the errors of a method's motion, landmarks [T, 68, 3] in millimetres."""
    return {
        f"{name}_mouth_mm": mouth_error_mm(found, true, valid),
        f"{name}_mouth_centred_mm": centred_mouth_error_mm(found, true, valid),
        f"{name}_velocity_mm": velocity_error_mm(found, true, valid),
        f"{name}_opening_correlation": opening_correlation(found, true, valid),
    }


def _generated(
    network: MotionModel, sample: Sample, speech: str, reference: np.ndarray, seed: int, temperature: float
) -> np.ndarray:
    rows, f0, person = (torch.from_numpy(array) for array in (sample[speech], sample["f0"], reference))
    return network.generate(rows, f0, person, seed, temperature).numpy()


def sync_figures(
    expert: SyncNetModel, sample: Sample, lips: Mapping[str, np.ndarray], other_hubert: np.ndarray | None
) -> dict[str, float]:
    """Return how well an expert finds that motions fit to the clip's sound.

    For each of the motions ``lips`` [T, 204] by name: ``<name>_sync_score``, the cosine at offset 0, and
    ``<name>_sync_confidence``, the best offset's cosine above the median. ``shuffled_sync_score`` and
    ``shuffled_sync_confidence`` are of the true lips with the sound of another clip, repeated or cut to length. Nothing
    for a clip that is too short.
    """
    scored = {name: (motion, sample["hubert"]) for name, motion in lips.items()}
    if other_hubert is not None:
        rows = np.arange(ROWS_PER_FRAME * len(sample["valid"])) % len(other_hubert)
        scored["shuffled"] = (lips["true"], other_hubert[rows])
    figures: dict[str, float] = {}
    for name, (motion, hubert) in scored.items():
        clip = {**sample, "idexp_lm3d": motion.astype(np.float32).reshape(len(motion), -1, 3), "hubert": hubert}
        scores = score_clip(expert, clip)
        confidence = scores.confidence
        if confidence is not None:
            figures[f"{name}_sync_score"] = float(scores.mean[MAX_OFFSET])
            figures[f"{name}_sync_confidence"] = confidence
    return figures
