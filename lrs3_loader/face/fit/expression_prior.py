"""What is expected of a clip's expression before its landmarks are seen.

Landmarks alone do not tell which of several blendshapes moved them: opposing ones cancel, and neighbouring ones replace
each other. MediaPipe's blendshape network was trained to tell them apart. For modes that bear an ARKit name, as all of
ICT-FaceKit's, its scores give the mean of the prior:

    mean = gain * max(0, score - resting) / (1 - resting)

with a narrow standard deviation, ``FitConfig.score_sigma``. The resting scores are what the network says of relaxed
faces: the lower decile of its scores over a clip, in the median over seven people (left and right together). The gains
are the slopes of coefficients fitted without scores against them, within the clips of these people, in between those
and the response of the network to landmarks moved by ICT's own modes (which is close to 1 for ``jawOpen``, 0.85 for
``mouthPucker``, 0.7 for ``eyeBlink``); rounded to 0.05.

Other modes, frames without a face, and clips without scores have the prior of speech in general: mean 0, standard
deviation ``FaceModel.exp_sigma``.

Letters: T frames of a clip, N frames of all clips, concatenated; E expression modes, S blendshape scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lrs3_loader.face.fit.types import FitConfig, FitInput
from lrs3_loader.face.geometry.topology import BLENDSHAPE_NAMES
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.runtime.transfer import to_device

RESTING = {"eyeSquint": 0.25, "eyeLookDown": 0.1, "eyeBlink": 0.05, "eyeLookIn": 0.05, "eyeLookOut": 0.05}
GAINS = {"jawOpen": 0.7, "mouthPucker": 0.65, "eyeBlink": 0.8, "browInnerUp": 0.85, "browOuterUp": 0.85}
#: The lower lip's landmarks have other explanations than the jaw, so its score has to count for more.
SIGMA_FACTORS = {"jawOpen": 0.5}
_MAX_SHARE = 1 / 3  # of exp_sigma: the scores' standard deviation for modes that hardly occur


class ExpressionPrior:
    """Gaussian prior of one face model's expression coefficients, on the model's device.

    ``resting`` and ``gains`` are the calibration, by ARKit's names without sides; 0 and 1 for other names.
    """

    def __init__(
        self,
        model: FaceModel,
        config: FitConfig,
        resting: Mapping[str, float] = RESTING,
        gains: Mapping[str, float] = GAINS,
    ) -> None:
        self._device = model.device
        sigma = model.exp_sigma.double()
        self._precision = (config.exp_weight / sigma.square()).cpu()
        by_score = math.isfinite(config.score_sigma)
        columns = [score_of_mode(name) if by_score else None for name in model.exp_names]
        modes = [mode for mode, column in enumerate(columns) if column is not None]
        names = [without_side(model.exp_names[mode]) for mode in modes]
        self._modes = torch.tensor(modes, dtype=torch.int64)
        self._columns = torch.tensor([column for column in columns if column is not None], dtype=torch.int64)
        self._resting = torch.tensor([resting.get(name, 0.0) for name in names], dtype=torch.float64)
        self._gain = torch.tensor([gains.get(name, 1.0) for name in names], dtype=torch.float64) / (1 - self._resting)
        widest = torch.tensor([config.score_sigma * SIGMA_FACTORS.get(name, 1.0) for name in names]).double()
        self._score_precision = widest.minimum(_MAX_SHARE * sigma.cpu()[self._modes]) ** -2

    @property
    def uses_scores(self) -> bool:
        """True if the scores of a clip change its prior."""
        return len(self._modes) > 0

    def mean_of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Expected coefficients [T, E] f64, on the CPU, for blendshape scores [T, S] in 0..1; 0 for other modes."""
        mean = torch.zeros(len(scores), len(self._precision), dtype=torch.float64)
        above = (scores.cpu().double()[:, self._columns] - self._resting).clamp(min=0)
        mean[:, self._modes] = (self._gain * above).clamp(max=1)
        return mean

    def __call__(self, clips: Sequence[FitInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [N, E] and precision [N, E], f64, of all frames of ``clips``."""
        means, precisions = [], []
        for clip in clips:
            size = (len(clip.valid), len(self._precision))
            mean, precision = torch.zeros(size, dtype=torch.float64), self._precision.repeat(size[0], 1)
            if clip.blendshapes is not None and self.uses_scores:
                valid = clip.valid.cpu()
                mean[valid] = self.mean_of_scores(clip.blendshapes[clip.valid])
                precision[valid.nonzero(), self._modes] = self._score_precision
            means.append(mean)
            precisions.append(precision)
        return to_device(torch.cat(means), self._device), to_device(torch.cat(precisions), self._device)


def score_of_mode(name: str) -> int | None:
    """The place in ``BLENDSHAPE_NAMES`` of the score for an expression mode of this name; None if it has none.

    ``browDown_L`` (ICT-FaceKit's spelling) and ``browDownLeft`` (ARKit's) are the same; so are both sides of a score
    without sides (``browInnerUp``).
    """
    base = without_side(name)
    side = {"_L": "Left", "_R": "Right"}.get(name[len(base) :], "")
    for spelling in (base + side, base):
        if spelling in BLENDSHAPE_NAMES:
            return BLENDSHAPE_NAMES.index(spelling)
    return None


def without_side(name: str) -> str:
    """The name of an expression mode without ``_L`` or ``_R``."""
    return name.removesuffix("_L").removesuffix("_R")
