"""One speaker's scene (the head, hair, neck and clothes, their textures in one atlas), and images of it.

Shading is per vertex: Lambert with a warm key light, a cool fill light and a soft sky, plus a mild Blinn highlight.
Frames are drawn twice as fine in both directions and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_matrix

from lrs3_loader.demo import paint, shape
from lrs3_loader.demo.head import demo_head
from lrs3_loader.demo.mesh import Part, head_mesh, strip
from lrs3_loader.demo.raster import rasterize
from lrs3_loader.face.geometry.camera import Camera, apply_pose, project

SUPERSAMPLING = 2

_GLOSS_OF_PART = {Part.SKIN: 1.0, Part.EYE: 0.5, Part.MOUTH: 0.0, Part.TEETH: 0.5, Part.EAR: 0.6}
_HAIR_GLOSS, _CLOTH_GLOSS = 0.7, 0.1
_NECK_ROWS, _CLOTH_ROWS = 60, 68  # of the bust's texture


def _unit(direction: np.ndarray) -> np.ndarray:
    return direction / np.linalg.norm(direction)


# Directions towards the lights, their colours, and the highlight's strength and exponent.
_KEY, _KEY_COLOUR = _unit(np.array([-0.45, 0.50, 0.74])), np.array([0.66, 0.62, 0.57])
_FILL, _FILL_COLOUR = _unit(np.array([0.80, 0.05, 0.60])), np.array([0.22, 0.23, 0.26])
_SKY_COLOUR, _GROUND_COLOUR = np.array([0.40, 0.41, 0.43]), np.array([0.31, 0.28, 0.27])
_GLOSS, _SHININESS, _HALFWAY = 0.16, 18.0, _unit(_KEY + np.array([0.0, 0.0, 1.0]))


class Painter:
    """One speaker, ready to be drawn in frames of ``size`` x ``size`` pixels.

    The same coefficients and poses give the same bytes on the same machine. The n vertices are the face model's, then
    those of the hair, of the bust (neck and shoulders) and of long hair.

    Args:
        id: identity coefficients [I] of the demo head.
        seed: decides what is random in the textures.
    """

    def __init__(self, look: paint.Look, id: torch.Tensor, seed: int, size: int = 224) -> None:
        self.id, self.size = id, size
        self.camera = Camera.for_frame(size, size)
        mesh, model, atlas = head_mesh(), demo_head(), _Atlas()
        generator = np.random.default_rng([seed, 1])
        neutral = model.vertices(id, torch.zeros(model.num_exp)).numpy().astype(np.float64)
        texel = np.zeros((len(mesh.uv), 2), dtype=np.float32)
        for part, texture in _textures(look, generator).items():
            texel[mesh.part == part] = atlas.add(texture, mesh.uv[mesh.part == part])
        strands = paint.paint_hair(look, generator)
        self._hair_verts, hair_triangles, hair_lift = _hair(look, mesh.places, mesh.triangles)
        bust, bust_triangles, bust_uv = _bust(neutral)
        long_hair, long_triangles, long_uv = _long_hair(look)
        pieces = [
            (mesh.triangles, texel, np.array([_GLOSS_OF_PART[Part(part)] for part in mesh.part])),
            (hair_triangles, atlas.add(strands, mesh.uv[self._hair_verts]), np.full(len(hair_lift), _HAIR_GLOSS)),
            (bust_triangles, atlas.add(_clothes(look), bust_uv), np.full(len(bust), _CLOTH_GLOSS)),
            (long_triangles, atlas.add(strands, long_uv), np.full(len(long_hair), _HAIR_GLOSS)),
        ]
        first = np.cumsum([0, *(len(texel) for _, texel, _ in pieces)])
        self._hair_lift = torch.from_numpy(hair_lift.astype(np.float32))
        self._bust = torch.from_numpy(np.concatenate([bust, long_hair]).astype(np.float32))
        self._triangles = np.concatenate([piece[0] + start for piece, start in zip(pieces, first[:-1], strict=True)])
        self._texel = np.concatenate([piece[1] for piece in pieces])  # [n, 2] column and row in the atlas
        self._gloss = np.concatenate([piece[2] for piece in pieces])
        self._atlas = atlas.image()
        # [n, F] matrix that sums the normals of the triangles around each vertex
        corners, faces = self._triangles.T.ravel(), np.tile(np.arange(len(self._triangles)), 3)
        self._around = csr_matrix((np.ones(len(corners)), (corners, faces)), (len(self._texel), len(self._triangles)))
        self._backdrop = _backdrop(look, size * SUPERSAMPLING)

    def draw(self, exp: torch.Tensor, pose: torch.Tensor) -> np.ndarray:
        """Draw one frame [size, size, 3] u8 RGB for ``exp`` [E] and ``pose`` [6] (``face.geometry.camera``)."""
        size = self.size * SUPERSAMPLING
        vertices = self._vertices(exp, pose)
        # In the rasteriser's convention the edges of pixels, not their centres, are whole numbers.
        points = SUPERSAMPLING * (project(torch.from_numpy(vertices), torch.zeros(6), self.camera) + 0.5)
        depth = np.float32(self.camera.distance) - vertices[:, 2]
        values = np.concatenate([self._texel, self._light(vertices)], axis=1)
        pixel, seen = rasterize(points.numpy(), depth, values, self._triangles, size, size)
        column, row = (seen[:, axis].astype(np.int64) for axis in (0, 1))
        frame = self._backdrop.copy()
        frame[pixel] = self._atlas[row, column] * seen[:, 2:5] + seen[:, 5:6]
        frame = frame.reshape(size, size, 3)
        steps = range(SUPERSAMPLING)
        total = np.add.reduce([frame[i::SUPERSAMPLING, j::SUPERSAMPLING] for i in steps for j in steps])
        mean = total / np.float32(SUPERSAMPLING**2)
        return np.clip(np.rint(mean * 255.0), 0, 255).astype(np.uint8)

    def landmarks(self, exp: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Return the true landmarks [T, 68, 2] in pixels for ``exp`` [T, E] and ``pose`` [T, 6]."""
        return project(demo_head().landmarks(self.id, exp), pose, self.camera)

    def _vertices(self, exp: torch.Tensor, pose: torch.Tensor) -> np.ndarray:
        """Vertices [n, 3] f32 in camera space; the bust takes the head's position, and a little of its rotation."""
        head = demo_head().vertices(self.id, exp)
        hair = head[self._hair_verts] + self._hair_lift
        calm = pose * torch.tensor([0.15, 0.25, 0.35, 1.0, 1.0, 1.0])
        return torch.cat([apply_pose(torch.cat([head, hair]), pose), apply_pose(self._bust, calm)]).numpy()

    def _light(self, vertices: np.ndarray) -> np.ndarray:
        """The light's colour and the highlight at each vertex, [n, 4] f32."""
        a, b, c = (vertices[self._triangles[:, corner]] for corner in range(3))
        normals = self._around @ np.cross(b - a, c - a)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        key, fill = (np.maximum(normals @ light, 0.0)[:, None] for light in (_KEY, _FILL))
        sky = 0.5 + 0.5 * normals[:, 1:2]
        colour = _SKY_COLOUR * sky + _GROUND_COLOUR * (1 - sky) + _KEY_COLOUR * key + _FILL_COLOUR * fill
        shine = _GLOSS * self._gloss * np.maximum(normals @ _HALFWAY, 0.0) ** _SHININESS
        return np.concatenate([colour, shine[:, None]], axis=1).astype(np.float32)


def _backdrop(look: paint.Look, size: int) -> np.ndarray:
    """A wall that darkens downwards, with a soft glow [size * size, 3] f32."""
    top, bottom = (colour.astype(np.float32) for colour in look.wall)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    glow = (0.10 * np.exp(-((x - 0.35) ** 2 + (y - 0.3) ** 2) / 0.15))[..., None]
    return (top + (bottom - top) * y[..., None] + glow).reshape(-1, 3).astype(np.float32)


def _textures(look: paint.Look, generator: np.random.Generator) -> dict[Part, np.ndarray]:
    ear = look.skin * np.array([0.98, 0.88, 0.86])
    return {
        Part.SKIN: paint.paint_skin(look, generator),
        Part.EYE: paint.paint_eye(look, generator),
        Part.MOUTH: paint.paint_mouth(),
        Part.TEETH: paint.paint_teeth(),
        Part.EAR: np.tile(ear, (8, 8, 1)).astype(np.float32),
    }


def _clothes(look: paint.Look) -> np.ndarray:
    neck = np.tile(0.90 * look.skin, (_NECK_ROWS, 64, 1))
    return np.concatenate([neck, np.tile(look.cloth, (_CLOTH_ROWS, 64, 1))]).astype(np.float32)


class _Atlas:
    """Textures stacked into one image."""

    def __init__(self) -> None:
        self._textures: list[np.ndarray] = []

    def add(self, texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
        """Add a texture; returns the texel coordinates [n, 2] f32 (column, row) of ``uv`` in the atlas."""
        rows, columns = texture.shape[:2]
        inside = np.clip(uv, 0.0, 1.0) * np.array([columns - 1.01, rows - 1.01]) + 0.5
        placed = inside + np.array([0.0, sum(map(len, self._textures))])
        self._textures.append(texture)
        return placed.astype(np.float32)

    def image(self) -> np.ndarray:
        """Return the atlas [rows, columns, 3] f32."""
        width = max(texture.shape[1] for texture in self._textures)
        padded = [np.pad(t, ((0, 0), (0, width - t.shape[1]), (0, 0)), mode="edge") for t in self._textures]
        return np.concatenate(padded)


def _hair(look: paint.Look, places: shape.Places, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shell over the skull: the skin's vertices it consists of, its triangles, and how far each is lifted [n, 3]."""
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
    """Vertices, triangles and uv of a tube through elliptic rings along the longitudes ``angle``.

    A ring is its y, half width, half depth, and the z of its middle.
    """
    points = [np.stack([w * np.sin(angle), np.full(len(angle), y), z + d * np.cos(angle)], 1) for y, w, d, z in rings]
    along, around = np.linspace(0, 1, len(rings)), np.linspace(0, 1, len(angle))
    uv = np.stack([np.tile(around, len(rings)), np.repeat(along, len(angle))], 1)
    ids = np.arange(len(uv)).reshape(len(rings), len(angle))
    return np.concatenate(points), strip(ids[:-1], ids[1:]), uv


def _bust(neutral: np.ndarray) -> tuple[np.ndarray, ...]:
    """Neck and shoulders below a neutral face [V, 3]."""
    chin, back = float(neutral[head_mesh().landmark_verts[8], 1]), -0.78
    neck = [(0.35, 0.32, 0.28), (0.05, 0.43, 0.39), (-0.2, 0.46, 0.41), (-0.34, 0.50, 0.43), (-0.44, 0.60, 0.46)]
    shoulders = [(-0.50, 0.80, 0.50), (-0.62, 1.25, 0.56), (-0.85, 1.75, 0.64), (-1.3, 1.95, 0.72), (-2.0, 1.95, 0.75)]
    return _tube([(chin + y, w, d, back) for y, w, d in neck + shoulders], np.linspace(-np.pi, np.pi, 49))


def _long_hair(look: paint.Look) -> tuple[np.ndarray, ...]:
    """Hair that falls behind the ears to the shoulders (nothing for short hair)."""
    if not look.long_hair:
        return np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64), np.zeros((0, 2))
    wide, front = 0.74 + look.hair_volume, np.deg2rad(66)
    upper = [(1.0, 0.8, 0.60), (0.6, 1.0, 0.74), (0.2, 1.05, 0.78)]
    lower = [(-0.3, 1.07, 0.74), (-0.8, 1.05, 0.66), (-1.1, 0.97, 0.60)]
    angle = np.linspace(front, 2 * np.pi - front, 49)
    around = np.concatenate([angle, angle[::-1], angle[:1]])  # along the outside, and back along the inside
    shrink = np.concatenate([np.ones(49), np.full(49, 0.86), np.ones(1)])
    rings = [(y, wide * w * shrink, d * shrink, -0.84 - 0.04 * (0.6 - y)) for y, w, d in upper + lower]
    return _tube(rings, around)
