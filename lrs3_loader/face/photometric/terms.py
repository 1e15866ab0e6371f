"""Photometric term of a fit: points of the surface have the colour that the frame shows where they lie.

A sample is a point of the surface, fixed by a triangle and barycentric coordinates, that was visible in a frame when
the frame was last drawn. Let ``u(x)`` be its pixel at the unknowns x, ``c`` its colour (albedo times shading) and s^2
the variance of that colour. In addition to the landmark term (``fit.terms``), the objective has

    sum over samples   k rho(|image(u(x)) - c|^2 / (3 s^2)),   rho as in ``fit.terms``

where k lowers the weight of pixels, whose errors are far from independent. By the chain rule, the derivative by x is
the image gradient times that of u (Lucas and Kanade, "An iterative image registration technique", IJCAI 1981). Colours
and visibility are constant while x changes, and updated by the next drawing.

Letters: B sequences, T frames, N = B T frames, P samples of a frame, V vertices of ``region``, E expression modes,
D = E + 6 unknowns of a frame, S side of a crop in pixels, n frames of a slice, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from lrs3_loader.face.fit.curvature import Curvature
from lrs3_loader.face.fit.solver import FitProblem
from lrs3_loader.face.fit.terms import Residuals, State
from lrs3_loader.face.geometry.camera import DISTANCE
from lrs3_loader.face.image.crops import CROP_SIZE
from lrs3_loader.face.photometric.region import Region

_SLICE = {"cpu": 4}  # frames at a time: as many as fit the cache
_SLICE_ELSEWHERE = 64  # bounds memory: 8 MB per frame


@dataclass(frozen=True)
class Samples:
    """Samples of N frames."""

    corners: torch.Tensor  # [N, P, 3] i64, vertices of the region
    barycentric: torch.Tensor  # [N, P, 3] f32
    colour: torch.Tensor  # [N, P, 3] f32, in 0..1
    precision: torch.Tensor  # [N, P] f32, 1 / variance of the colour; 0: no sample
    pixel: torch.Tensor  # [N, P, 2] f32, its pixel in the crop when it was drawn
    pinhole: torch.Tensor  # [N, 4] f32, focal lengths and centre of the crop's camera, pixels
    crops: torch.Tensor  # [N, S, S, 3] u8

    def error(self) -> torch.Tensor:
        """Mean absolute difference of image and colour [N] over samples and channels, 0..1; NaN without samples."""
        errors = []
        for part in slices(len(self.pixel), self.pixel.device):
            shown = sample(planes(self.crops[part]), self.pixel[part])
            difference = (shown - self.colour[part]).abs().mean(-1)
            used = self.precision[part] > 0
            errors.append((difference * used).sum(1) / used.sum(1))  # 0 / 0 is NaN
        return torch.cat(errors)


def slices(num_frames: int, device: torch.device) -> Iterator[slice]:
    """Split ``num_frames`` into slices of a few frames each."""
    step = _SLICE.get(device.type, _SLICE_ELSEWHERE)
    for start in range(0, num_frames, step):
        yield slice(start, start + step)


def planes(crops: torch.Tensor) -> torch.Tensor:
    """Convert u8 [n, S, S, 3] to f32 [n, 3, S, S] in 0..1."""
    return crops.permute(0, 3, 1, 2).float() / 255


def blurred(crops: torch.Tensor) -> torch.Tensor:
    """``planes`` blurred by [1 2 1] / 4 in both directions: gradients reach further, noise is lower."""
    values = torch.nn.functional.pad(planes(crops), (1, 1, 1, 1), mode="replicate")
    values = 0.25 * values[..., :-2] + 0.5 * values[..., 1:-1] + 0.25 * values[..., 2:]
    return 0.25 * values[..., :-2, :] + 0.5 * values[..., 1:-1, :] + 0.25 * values[..., 2:, :]


def with_gradients(values: torch.Tensor) -> torch.Tensor:
    """Values [n, C, S, S] with their central differences along x and along y, [n, 3 C, S, S]."""
    padded = torch.nn.functional.pad(values, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return torch.cat((values, along_x, along_y), 1)


def to_pixels(normalized_xy: torch.Tensor, pinhole: torch.Tensor) -> torch.Tensor:
    """Pixels of the crop [n, P, 2] of normalized image coordinates, by ``pinhole`` [n, 4] as in ``Samples``."""
    focal, centre = pinhole[:, None].split(2, -1)
    return centre + focal * normalized_xy * normalized_xy.new_tensor([1.0, -1.0])


def sample(values: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
    """Sample ``values`` [n, C, S, S] at ``pixel`` [n, P, 2] bilinearly: [n, P, C]; clamped at the border."""
    grid = pixel[:, :, None] * (2 / (values.shape[-1] - 1)) - 1
    found = torch.nn.functional.grid_sample(values, grid, "bilinear", "border", align_corners=True)
    return found[..., 0].transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class PhotometricProblem(FitProblem):
    """Sequences of known identity that are fitted to landmarks and pixels."""

    region: Region
    surface: torch.Tensor  # [B, V, 3] f32, the region of the known identities without expression
    samples: Samples
    pixel_weight: float  # k in the module docstring
    outlier: float  # number of standard deviations, c in ``fit.terms``
    _known: list[tuple[State, torch.Tensor, torch.Tensor]] = field(default_factory=list, repr=False)

    def cost(self, state: State, residuals: Residuals) -> torch.Tensor:
        parts = []
        for part in slices(len(self.samples.pixel), self.region.device):
            _, normalized_xy, _ = self._place(state, part)
            colours = sample(blurred(self.samples.crops[part]), to_pixels(normalized_xy, self.samples.pinhole[part]))
            parts.append(self._robust(colours - self.samples.colour[part], part)[0].sum(1))
        photometric = torch.cat(parts).double().view(state.exp.shape[:2]).sum(1)
        return super().cost(state, residuals) + photometric

    def gradient(self, state: State, residuals: Residuals) -> tuple[torch.Tensor, torch.Tensor]:
        by_frames, by_id = super().gradient(state, residuals)
        return by_frames + self._linearised(state)[0].double(), by_id

    def curvature(self, state: State, residuals: Residuals) -> Curvature:
        landmarks = super().curvature(state, residuals)
        return replace(landmarks, frames=landmarks.frames + self._linearised(state)[1])

    def _linearised(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Half the gradient [B, T, D] and half the Gauss-Newton Hessian [B, T, D, D] of the photometric term, f32.

        The last result is kept, since the solver asks for both at the same state.
        """
        if not self._known or self._known[0][0] is not state:
            parts = [self._linearise(state, part) for part in slices(len(self.samples.pixel), self.region.device)]
            gradient, hessian = (torch.cat(column) for column in zip(*parts, strict=True))
            shape = state.exp.shape[:2]
            self._known[:] = [(state, gradient.unflatten(0, shape), hessian.unflatten(0, shape))]
        return self._known[0][1:]

    def _linearise(self, state: State, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        turned, normalized_xy, depth = self._place(state, part)
        pinhole = self.samples.pinhole[part, None]
        pixel = to_pixels(normalized_xy, self.samples.pinhole[part])
        values = sample(with_gradients(blurred(self.samples.crops[part])), pixel)
        colours, along_x, along_y = values.split(3, -1)
        inside = (pixel >= 0) & (pixel <= CROP_SIZE - 1)  # beyond the border colours no longer change
        along_x, along_y = along_x * inside[..., :1], along_y * inside[..., 1:]
        difference = colours - self.samples.colour[part]
        _, weight = self._robust(difference, part)
        by_xy = (along_x * pinhole[..., :1], -along_y * pinhole[..., 1:2])
        slopes = torch.stack(by_xy, 2)  # [n, P, 2, 3] by the normalized image coordinates
        force = weight[..., None] * (slopes @ difference[..., None])[..., 0]  # [n, P, 2]
        tensor = weight[..., None, None] * (slopes @ slopes.mT)  # [n, P, 2, 2]
        jacobian = self._projection_jacobian(state, part, turned, normalized_xy, depth)  # [n, P, 2, D]
        flat = jacobian.flatten(1, 2)
        gradient = (force.flatten(1)[:, None] @ flat)[:, 0]
        hessian = (tensor @ jacobian).flatten(1, 2).mT @ flat
        return gradient, (hessian + hessian.mT) / 2

    def _projection_jacobian(
        self, state: State, part: slice, turned: torch.Tensor, normalized_xy: torch.Tensor, depth: torch.Tensor
    ) -> torch.Tensor:
        """Derivative of the normalized image coordinates [n, P, 2, D]; see ``fit.terms`` for the equations."""
        nothing, inverse = torch.zeros_like(depth), 1 / depth
        u_by_place = torch.stack((inverse, nothing, normalized_xy[..., 0] * inverse), -1)
        v_by_place = torch.stack((nothing, inverse, normalized_xy[..., 1] * inverse), -1)
        by_place = torch.stack((u_by_place, v_by_place), -2)  # [n, P, 2, 3]
        rotation = state.rotation.flatten(0, 1)[part].float()
        by_point = by_place @ rotation[:, None]
        corners, share = self.samples.corners[part], self.samples.barycentric[part]
        modes = sum(share[..., k, None, None] * self.region.exp_basis[corners[..., k]] for k in range(3))
        by_turn = torch.linalg.cross(turned[..., None, :].expand_as(by_place), by_place)
        return torch.cat((by_point @ modes, by_turn, by_place), -1)

    def _place(self, state: State, part: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated points R X [n, P, 3], normalized image coordinates [n, P, 2] and depth [n, P] of the samples."""
        num_frames = state.exp.shape[1]
        frames = torch.arange(len(self.samples.pixel), device=self.region.device)[part]
        exp = state.exp.flatten(0, 1)[part]
        shape = self.region.expressed(self.surface[frames // num_frames], exp)
        corners = self.samples.corners[part]
        points = torch.take_along_dim(shape, corners.flatten(1)[..., None], 1).unflatten(1, corners.shape[1:])
        points = (points * self.samples.barycentric[part][..., None]).sum(2)
        turned = points @ state.rotation.flatten(0, 1)[part].float().mT
        placed = turned + state.translation.flatten(0, 1)[part, None].float()
        depth = DISTANCE - placed[..., 2]
        return turned, placed[..., :2] / depth[..., None], depth

    def _robust(self, difference: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Cost, and weight of the squared difference of a channel, [n, P] each."""
        precision = self.samples.precision[part] / 3
        squared = precision * difference.square().sum(-1)
        root = (1 + squared / self.outlier**2).sqrt()
        cost = 2 * squared / (root + 1)  # 2 c^2 (root - 1), without its cancellation
        return self.pixel_weight * cost, self.pixel_weight * precision / root
