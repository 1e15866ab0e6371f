"""Draw a fitted face over the crops of its clip: which points are visible, their colours, and samples to compare.

Letters: n frames, S side of a crop in pixels, V vertices of ``region``, P samples of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lrs3_loader.face.fit.terms import State
from lrs3_loader.face.fit.types import FitInput
from lrs3_loader.face.geometry.camera import DISTANCE, Camera
from lrs3_loader.face.image.crops import CROP_SIZE
from lrs3_loader.face.photometric import render
from lrs3_loader.face.photometric.appearance import NOISE, Appearance, estimate_appearance
from lrs3_loader.face.photometric.region import Region
from lrs3_loader.face.photometric.render import Fragments
from lrs3_loader.face.photometric.terms import Samples, blurred, sample, slices, to_pixels, with_gradients

_DEPTH_SLACK = 0.03  # decimetres: a vertex this far behind the surface drawn at its pixel still counts as seen
_MIN_FACING = 0.15  # cosine between a vertex's normal and the direction to the camera


@dataclass(frozen=True)
class Views:
    """Frames in which the face is drawn: its shape and pose, and the crop of the video frame."""

    vertices: torch.Tensor  # [n, V, 3] f32, the region in model space
    rotation: torch.Tensor  # [n, 3, 3] f32
    translation: torch.Tensor  # [n, 3] f32
    crops: torch.Tensor  # [n, S, S, 3] u8
    pinhole: torch.Tensor  # [n, 4] f32: focal lengths and centre, pixels of the crop
    frame: torch.Tensor  # [n, 4] f32: left, top, right, bottom of the source frame, pixels of the crop
    usable: torch.Tensor  # [n] bool: true if there is a crop

    @classmethod
    def of_clip(cls, clip: FitInput, frames: torch.Tensor, vertices: torch.Tensor, state: State) -> Views:
        """Views of the frames numbered ``frames`` [n] of a clip, whose poses are ``state``'s."""
        assert clip.crops is not None
        transforms = clip.crops.transforms[frames]
        usable = transforms.isfinite().all(1)
        scale, shift = torch.where(usable[:, None], transforms, transforms.new_tensor([1.0, 1.0, 0.0, 0.0])).split(2, 1)
        camera = Camera.for_frame(clip.height, clip.width)
        centre = scale.new_tensor([camera.centre_x_px, camera.centre_y_px])
        last = scale.new_tensor([clip.width - 1.0, clip.height - 1.0])
        return cls(
            vertices,
            state.rotation.float(),
            state.translation.float(),
            clip.crops.read(frames).to(vertices.device),
            torch.cat((scale * camera.focal_px, scale * centre + shift), 1).to(vertices.device),
            torch.cat((shift, scale * last + shift), 1).to(vertices.device),
            usable.to(vertices.device),
        )

    @classmethod
    def cat(cls, parts: list[Views]) -> Views:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def __getitem__(self, part: slice) -> Views:
        return Views(*(getattr(self, name)[part] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.vertices)

    def inside(self, pixel: torch.Tensor) -> torch.Tensor:
        """True [n, P] where ``pixel`` [n, P, 2] lies in an existing crop and inside the source frame."""
        low, high = self.frame[:, None].split(2, -1)
        on_frame = (pixel >= low.clamp(min=0)) & (pixel <= high.clamp(max=CROP_SIZE - 1))
        return on_frame.all(-1) & self.usable[:, None]

    def normals(self, region: Region) -> torch.Tensor:
        """Unit normals in camera axes [n, V, 3]."""
        return region.normals(self.vertices) @ self.rotation.mT

    def rasterize(self, region: Region, size: int) -> Fragments:
        """Rasterise the face to ``size`` x ``size`` pixels that cover the crop."""
        cameras = render.make_cameras(self.rotation, self.translation, self.pinhole, CROP_SIZE, CROP_SIZE)
        return render.rasterize(self.vertices, region.triangles, cameras, size, size)


def find_appearance(views: Views, region: Region, size: int) -> Appearance:
    """Estimate albedo and light from keyframes, drawn with ``size`` x ``size`` pixels to find hidden vertices."""
    parts = [_vertex_colours(views[part], region, size) for part in slices(len(views), region.device)]
    colours, slopes, seen, normals = (torch.cat(column) for column in zip(*parts, strict=True))
    return estimate_appearance(colours, slopes, seen, normals, region)


def _vertex_colours(views: Views, region: Region, size: int) -> tuple[torch.Tensor, ...]:
    """Colours, slopes, visibility and normals of the vertices, as ``estimate_appearance`` takes them."""
    placed, normals = views.vertices @ views.rotation.mT + views.translation[:, None], views.normals(region)
    pixel = to_pixels(placed[..., :2] / (DISTANCE - placed[..., 2:]), views.pinhole)
    drawn = views.rasterize(region, size).depth
    cell = ((pixel + 0.5) * (size / CROP_SIZE)).floor().clamp(0, size - 1).long()
    behind = torch.take_along_dim(drawn.flatten(1), cell[..., 1] * size + cell[..., 0], 1)
    to_camera = torch.nn.functional.normalize(placed.new_tensor([0.0, 0.0, DISTANCE]) - placed, dim=-1)
    facing = (normals * to_camera).sum(-1) > _MIN_FACING
    seen = facing & (DISTANCE - placed[..., 2] <= behind + _DEPTH_SLACK) & views.inside(pixel)
    values = sample(with_gradients(blurred(views.crops)), pixel)
    return values[..., :3], values[..., 3:].square().sum(-1) / 3, seen, normals


def draw_samples(views: Views, appearances: list[Appearance], region: Region, size: int, num_samples: int) -> Samples:
    """Draw frames and sample their visible surface, with the colours that ``appearances`` (one per frame) give."""
    parts = []
    for part in slices(len(views), region.device):
        shown = views[part]
        fields = zip(*(vars(appearance).values() for appearance in appearances[part]), strict=True)
        appearance = Appearance(*map(torch.stack, fields))
        values = torch.cat((appearance.colours(shown.normals(region)), appearance.variance[..., None]), -1)
        parts.append(_draw_slice(shown, values, region, size, num_samples))
    corners, barycentric, colour, precision, pixel = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(corners, barycentric, colour, precision, pixel, views.pinhole, views.crops)


def _draw_slice(
    views: Views, values: torch.Tensor, region: Region, size: int, num_samples: int
) -> tuple[torch.Tensor, ...]:
    """Fields of ``Samples`` up to ``pixel``; ``values`` [n, V, 4] are colours and their variance."""
    fragments = views.rasterize(region, size)
    at = (torch.arange(size, device=region.device) + 0.5) * (CROP_SIZE / size) - 0.5
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).view(1, -1, 2).expand(len(views), -1, -1)
    seen = (fragments.triangle.flatten(1) >= 0) & views.inside(grid)
    chosen, used = spread_evenly(seen, num_samples)
    triangle = torch.take_along_dim(fragments.triangle.flatten(1), chosen, 1).clamp(min=0)
    barycentric = torch.take_along_dim(fragments.barycentric.flatten(1, 2), chosen[..., None], 1)
    corners = region.triangles[triangle]
    found = torch.take_along_dim(values, corners.flatten(1)[..., None], 1).unflatten(1, corners.shape[1:])
    found = (found * barycentric[..., None]).sum(2)
    precision = used / (NOISE**2 + found[..., 3])
    return corners, barycentric, found[..., :3], precision, torch.take_along_dim(grid, chosen[..., None], 1)


def spread_evenly(seen: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose ``count`` true entries of each row of ``seen`` [n, Q] bool, evenly spread over them.

    Returns their numbers [n, count], ascending, and which of them are real [n, count] bool, where there are fewer.
    """
    total = seen.sum(1, keepdim=True)
    order = torch.argsort((~seen).to(torch.uint8), dim=1, stable=True)
    number = torch.arange(count, device=seen.device)
    rank = torch.where(total > count, number * total // count, number)
    return torch.take_along_dim(order, rank.clamp(max=seen.shape[1] - 1), 1), number < total
