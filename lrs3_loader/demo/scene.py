"""One speaker's scene: the head's mesh with hair, neck and clothes around it, and all their textures in one atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lrs3_loader.demo import paint, shape
from lrs3_loader.demo.head import demo_head
from lrs3_loader.demo.mesh import Part, head_mesh
from lrs3_loader.face.geometry.camera import apply_pose

_GLOSS_OF_PART = {Part.SKIN: 1.0, Part.EYE: 0.5, Part.MOUTH: 0.0, Part.TEETH: 0.5, Part.EAR: 0.6}
_HAIR_GLOSS, _CLOTH_GLOSS = 0.7, 0.1
_NECK_ROWS, _CLOTH_ROWS = 60, 68  # of the bust's texture


@dataclass(frozen=True)
class Scene:
    """Geometry and texture of one speaker, ready to be drawn.

    Vertices, n in all: the face model's, the hair shell's, the bust's.
    """

    id: torch.Tensor  # [I] identity coefficients
    hair_verts: np.ndarray  # [h] the model's vertices that carry the hair
    hair_lift: torch.Tensor  # [h, 3] f32 how far the shell stands off, dm
    bust: torch.Tensor  # [b, 3] f32 neck, shoulders and long hair, dm
    triangles: np.ndarray  # [F, 3]
    texel: np.ndarray  # [n, 2] f32 column and row in the atlas
    gloss: np.ndarray  # [n]
    atlas: np.ndarray  # [rows, columns, 3] f32 RGB in 0..1

    def vertices(self, exp: torch.Tensor, pose: torch.Tensor) -> np.ndarray:
        """All vertices [n, 3] f32 in camera space; the bust follows the head's place, and a little of its turns."""
        head = demo_head().vertices(self.id, exp)
        hair = head[self.hair_verts] + self.hair_lift
        calm = pose * torch.tensor([0.15, 0.25, 0.35, 1.0, 1.0, 1.0])
        moved = apply_pose(torch.cat([head, hair]), pose)
        return torch.cat([moved, apply_pose(self.bust, calm)]).numpy()


def build_scene(look: paint.Look, id: torch.Tensor, generator: np.random.Generator) -> Scene:
    """Dress the demo head of identity ``id`` [I] in a look."""
    mesh, model, atlas = head_mesh(), demo_head(), _Atlas()
    neutral = model.vertices(id, torch.zeros(model.num_exp)).numpy().astype(np.float64)
    texel = np.zeros((len(mesh.uv), 2), dtype=np.float32)
    for part, texture in _textures(look, generator).items():
        texel[mesh.part == part] = atlas.add(texture, mesh.uv[mesh.part == part])
    strands = paint.paint_hair(look, generator)
    hair_verts, hair_triangles, hair_lift = _hair(look, mesh.places, mesh.triangles)
    bust, bust_triangles, bust_uv = _bust(neutral)
    curtain, curtain_triangles, curtain_uv = _curtain(look)
    pieces = [
        (mesh.triangles, texel, np.array([_GLOSS_OF_PART[Part(part)] for part in mesh.part])),
        (hair_triangles, atlas.add(strands, mesh.uv[hair_verts]), np.full(len(hair_verts), _HAIR_GLOSS)),
        (bust_triangles, atlas.add(_clothes(look), bust_uv), np.full(len(bust), _CLOTH_GLOSS)),
        (curtain_triangles, atlas.add(strands, curtain_uv), np.full(len(curtain), _HAIR_GLOSS)),
    ]
    first = np.cumsum([0, *(len(texel) for _, texel, _ in pieces)])
    return Scene(
        id=id,
        hair_verts=hair_verts,
        hair_lift=torch.from_numpy(hair_lift.astype(np.float32)),
        bust=torch.from_numpy(np.concatenate([bust, curtain]).astype(np.float32)),
        triangles=np.concatenate([piece[0] + start for piece, start in zip(pieces, first[:-1], strict=True)]),
        texel=np.concatenate([piece[1] for piece in pieces]),
        gloss=np.concatenate([piece[2] for piece in pieces]),
        atlas=atlas.finish(),
    )


def _textures(look: paint.Look, generator: np.random.Generator) -> dict[Part, np.ndarray]:
    ear = np.array(look.skin) * np.array([0.98, 0.88, 0.86])
    return {
        Part.SKIN: paint.paint_skin(look, generator),
        Part.EYE: paint.paint_eye(look, generator),
        Part.MOUTH: paint.paint_mouth(),
        Part.TEETH: paint.paint_teeth(),
        Part.EAR: np.tile(ear, (8, 8, 1)).astype(np.float32),
    }


def _clothes(look: paint.Look) -> np.ndarray:
    neck = np.tile(0.90 * np.array(look.skin), (_NECK_ROWS, 64, 1))
    return np.concatenate([neck, np.tile(np.array(look.cloth), (_CLOTH_ROWS, 64, 1))]).astype(np.float32)


class _Atlas:
    """Textures stacked into one picture."""

    def __init__(self) -> None:
        self._sheets: list[np.ndarray] = []
        self._rows = 0

    def add(self, texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """Add a texture; returns the texel coordinates [n, 2] f32 (column, row) of ``uv`` in the whole."""
        rows, columns = texture.shape[:2]
        inside = np.clip(uv, 0.0, 1.0) * np.array([columns - 1.01, rows - 1.01]) + 0.5
        placed = inside + np.array([0.0, self._rows])
        self._sheets.append(texture)
        self._rows += rows
        return placed.astype(np.float32)

    def finish(self) -> np.ndarray:
        """The whole picture [rows, columns, 3] f32."""
        width = max(sheet.shape[1] for sheet in self._sheets)
        padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), mode="edge") for s in self._sheets]
        return np.concatenate(padded)


def _hair(look: paint.Look, places: shape.Places, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shell over the skull: the skin's vertices it is made of, its triangles, and how far each is lifted [n, 3]."""
    above = places.level - paint.hair_edge(places.longitude, look.hairline)
    sides = shape.smoothstep((0.62 - places.level) / 0.3) * shape.smoothstep((1.9 - np.abs(places.longitude)) / 0.4)
    volume = look.hair_volume * (1.0 - 0.7 * sides)  # close to the head before and above the ears
    lift = volume * shape.smoothstep((above + 0.02) / 0.22) - 0.02 * shape.smoothstep(-above / 0.05 + 0.5)
    covered = (above > -0.06) & (places.inward == 0)
    inside = triangles[(triangles < len(above)).all(1)]
    inside = inside[covered[inside].all(1)]
    verts, renumbered = np.unique(inside, return_inverse=True)
    x, z = np.sin(places.longitude), np.cos(places.longitude)
    height = np.clip((places.level - 0.5) / 0.87, 0.0, 1.0)
    outwards = np.stack([x * np.sqrt(1 - height**2), height, z * np.sqrt(1 - height**2)], axis=1)
    return verts, renumbered.reshape(-1, 3), (lift[:, None] * outwards)[verts]


_Ring = tuple[float, float | np.ndarray, float | np.ndarray, float]


def _tube(rings: Sequence[_Ring], angle: np.ndarray) -> tuple[np.ndarray, ...]:
    """A tube through elliptic rings (y, half width, half depth, z of the middle) along the longitudes ``angle``."""
    num = len(angle)
    points = np.concatenate(
        [np.stack([w * np.sin(angle), np.full(num, y), z + d * np.cos(angle)], 1) for y, w, d, z in rings]
    )
    ids = np.arange(len(points)).reshape(len(rings), num)
    upper, lower = ids[:-1], ids[1:]
    a, b, c, d = upper[:, :-1].ravel(), upper[:, 1:].ravel(), lower[:, :-1].ravel(), lower[:, 1:].ravel()
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    uv = np.stack([np.tile(np.linspace(0, 1, num), len(rings)), np.repeat(np.linspace(0, 1, len(rings)), num)], 1)
    return points, triangles, uv


def _bust(neutral: np.ndarray) -> tuple[np.ndarray, ...]:
    """Neck and shoulders below a neutral face [V, 3]: vertices, triangles, texture coordinates."""
    chin, back = float(neutral[head_mesh().landmark_verts[8], 1]), -0.78
    shape_of_neck = [
        (0.35, 0.32, 0.28),
        (0.05, 0.43, 0.39),
        (-0.2, 0.46, 0.41),
        (-0.34, 0.50, 0.43),
        (-0.44, 0.60, 0.46),
    ]
    shoulders = [(-0.50, 0.80, 0.50), (-0.62, 1.25, 0.56), (-0.85, 1.75, 0.64), (-1.3, 1.95, 0.72), (-2.0, 1.95, 0.75)]
    rings: list[_Ring] = [(chin + y, w, d, back) for y, w, d in shape_of_neck + shoulders]
    return _tube(rings, np.linspace(-np.pi, np.pi, 49))


def _curtain(look: paint.Look) -> tuple[np.ndarray, ...]:
    """Long hair that falls behind the ears to the shoulders (nothing for short hair)."""
    if not look.long_hair:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64), np.zeros((0, 2))
    wide = 0.74 + look.hair_volume
    levels = [
        (1.0, 0.8, 0.60),
        (0.6, 1.0, 0.74),
        (0.2, 1.05, 0.78),
        (-0.3, 1.07, 0.74),
        (-0.8, 1.05, 0.66),
        (-1.1, 0.97, 0.60),
    ]
    front = np.deg2rad(66)
    angle = np.linspace(front, 2 * np.pi - front, 49)
    around = np.concatenate([angle, angle[::-1], angle[:1]])  # along the outside, and back along the inside
    shrink = np.concatenate([np.ones(49), np.full(49, 0.86), np.ones(1)])
    rings = [(y, wide * w * shrink, d * shrink, -0.84 - 0.04 * (0.6 - y)) for y, w, d in levels]
    return _tube(rings, around)
