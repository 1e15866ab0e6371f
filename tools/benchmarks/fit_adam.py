"""GeneFace++'s landmark fit, written from its description: what our fitter is measured against.

Landmarks live in a frame of 224 x 224 pixels. From zero, Adam (step size 0.1) minimises the landmark term over Euler
angles and translation for 200 steps, then the whole objective over identity, expression and pose for 200 more. A third
stage (batches of 50 frames, 50 steps of 0.005 each) writes its result into copies and so changes nothing but the time.

Coefficients are in standard deviations, as BFM's are. Letters: T frames, I identity modes, E expression modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.face.geometry.rotation import euler_to_matrix
from lrs3_loader.face.model.morphable import NUM_LANDMARKS, FaceModel

SIZE = 224
CAMERA = Camera.for_frame(SIZE, SIZE)
_ID_PRIOR, _EXP_PRIOR, _SMOOTH, _POSE_SMOOTH = 0.2, 0.6, 1.0, 0.3
_STEP, _FINE_STEP, _FINE_FRAMES = 0.1, 0.005, 50


@dataclass(frozen=True)
class Fitted:
    """Coefficients as a ``FitResult`` holds them."""

    id: torch.Tensor  # [I]
    exp: torch.Tensor  # [T, E]
    pose: torch.Tensor  # [T, 6]


def landmark_weights() -> torch.Tensor:
    """[68] eyes 3, upper lids 20, lips 5, and 0 for the eight points of the contour that MediaPipe has elsewhere."""
    weights = torch.ones(NUM_LANDMARKS)
    weights[36:48] = 3.0
    weights[[37, 38, 43, 44]] = 20.0
    weights[48:68] = 5.0
    weights[[0, 1, 2, 3, 13, 14, 15, 16]] = 0.0
    return weights


def objective(model: FaceModel, landmarks: torch.Tensor, fitted: Fitted) -> float:
    """GeneFace++'s objective, in double precision: the one measure for both fitters.

    Args:
        landmarks: [T, 68, 2] pixels of a frame of 224 x 224, y down.
        fitted: whose ``id``, ``exp`` and ``pose`` are judged.
    """
    id, exp, pose = fitted.id.double(), fitted.exp.double(), fitted.pose.double()
    points = model.landmark_mean.double() + torch.einsum("kci,i->kc", model.landmark_id_basis.double(), id)
    points = points + torch.einsum("kce,te->tkc", model.landmark_exp_basis.double(), exp)
    distances = project(points, pose, CAMERA) - landmarks.double()
    people, speech = id / model.id_sigma.double(), exp / model.exp_sigma.double()
    total = (landmark_weights().double()[:, None] * distances.square()).mean()
    return float(total + _regularisation(people, speech, pose[:, :3], pose[:, 3:]))


def adam_fit(model: FaceModel, landmarks: torch.Tensor, fine_stage: bool = False) -> Fitted:
    """Fit one clip's ``landmarks`` [T, 68, 2] f32 (see ``objective``); ``fine_stage``: with the stage that is lost."""
    search = _Search(model, landmarks)
    by_shape = torch.optim.Adam([search.id, search.exp], lr=_STEP)
    by_pose = torch.optim.Adam([search.turn, search.shift], lr=_STEP)
    for _ in range(200):
        by_pose.zero_grad()
        search.landmark_term().backward()
        by_pose.step()
    for _ in range(200):
        by_shape.zero_grad()
        by_pose.zero_grad()
        search.loss().backward()
        by_shape.step()
        by_pose.step()
    if fine_stage:
        for start in range(0, len(landmarks), _FINE_FRAMES):
            first = max(0, min(start, len(landmarks) - _FINE_FRAMES))
            _fine_stage(search.part(slice(first, start + _FINE_FRAMES)))
    return search.fitted()


def _fine_stage(search: _Search) -> None:
    optimiser = torch.optim.Adam([search.exp, search.turn, search.shift], lr=_FINE_STEP)
    for _ in range(_FINE_FRAMES):
        optimiser.zero_grad()
        search.loss().backward()
        optimiser.step()


class _Search:
    """The unknowns of a clip in f32, the bases multiplied by the standard deviations once."""

    def __init__(self, model: FaceModel, landmarks: torch.Tensor) -> None:
        num_frames = len(landmarks)
        self.model, self.landmarks = model, landmarks
        self._weights = landmark_weights()[:, None]
        self._mean = model.landmark_mean.flatten()
        self._id_basis = (model.landmark_id_basis * model.id_sigma).flatten(0, 1).T.contiguous()
        self._exp_basis = (model.landmark_exp_basis * model.exp_sigma).flatten(0, 1).T.contiguous()
        self.id = torch.zeros(1, model.num_id, requires_grad=True)
        self.exp = torch.zeros(num_frames, model.num_exp, requires_grad=True)
        self.turn = torch.zeros(num_frames, 3, requires_grad=True)
        self.shift = torch.zeros(num_frames, 3, requires_grad=True)

    def landmark_term(self) -> torch.Tensor:
        points = (self._mean + self.id @ self._id_basis + self.exp @ self._exp_basis).unflatten(-1, (-1, 3))
        placed = points @ euler_to_matrix(self.turn).transpose(-1, -2) + self.shift[:, None]
        scale = CAMERA.focal_px / (CAMERA.distance - placed[..., 2])
        x = CAMERA.centre_x_px + placed[..., 0] * scale
        y = CAMERA.centre_y_px - placed[..., 1] * scale
        return (self._weights * (torch.stack((x, y), -1) - self.landmarks).square()).mean()

    def loss(self) -> torch.Tensor:
        return self.landmark_term() + _regularisation(self.id, self.exp, self.turn, self.shift)

    def part(self, frames: slice) -> _Search:
        """A copy of some frames, the identity held."""
        part = _Search(self.model, self.landmarks[frames])
        part.id = self.id.detach()
        for name in ("exp", "turn", "shift"):
            setattr(part, name, getattr(self, name).detach()[frames].clone().requires_grad_())
        return part

    def fitted(self) -> Fitted:
        pose = torch.cat((self.turn, self.shift), 1).detach()
        return Fitted((self.id[0] * self.model.id_sigma).detach(), (self.exp * self.model.exp_sigma).detach(), pose)


def _regularisation(id: torch.Tensor, exp: torch.Tensor, turn: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Priors and smoothness of coefficients in standard deviations."""
    smooth = _SMOOTH * _roughness(exp) + _POSE_SMOOTH * (_roughness(turn) + _roughness(shift))
    return _ID_PRIOR * id.square().mean() + _EXP_PRIOR * exp.square().mean() + smooth


def _roughness(values: torch.Tensor) -> torch.Tensor:
    """Mean square of half the second difference over time [T, C], the ends repeated."""
    longer = torch.cat((values[:1], values, values[-1:]))
    return (longer[1:-1] - 0.5 * (longer[:-2] + longer[2:])).square().mean()
