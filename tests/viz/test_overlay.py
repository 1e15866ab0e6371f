"""Lines and dots against a slow, obvious version; landmark lines; the mesh's place, shade and blending."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from lrs3_loader.demo import demo_head
from lrs3_loader.face.geometry.camera import Camera, project
from lrs3_loader.viz import overlay
from lrs3_loader.viz.mesh import MeshPainter
from lrs3_loader.viz.view import GROUND, View

pytestmark = pytest.mark.smoke

WHITE = (1.0, 1.0, 1.0)


def slow_coverage(starts: np.ndarray, ends: np.ndarray, stroke_width: float, height: int, width: int) -> np.ndarray:
    """Every pixel against every segment: ``clip(width / 2 + 1/2 - distance, 0, 1)``."""
    coverage = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            here = np.array([column, row], dtype=float)
            for start, end in zip(starts, ends, strict=True):
                along = end - start
                squared = float(along @ along)
                share = min(max(float((here - start) @ along) / squared, 0.0), 1.0) if squared > 0 else 0.0
                distance = float(np.linalg.norm(here - start - share * along))
                coverage[row, column] = max(coverage[row, column], min(max(stroke_width / 2 + 0.5 - distance, 0), 1))
    return coverage


@pytest.mark.parametrize("stroke_width", [1.5, 3.0])
def test_lines_and_dots_lie_where_the_slow_version_has_them(stroke_width: float) -> None:
    """To a third of a pixel: nothing is drawn outside, and what is inside by more is fully drawn."""
    points = np.random.default_rng(0).uniform(-4, 34, size=(12, 2))
    points[3] = points[2] + (0, 9)  # upright
    segments = points[:-1], points[1:]
    drawn = {
        "line": (overlay.draw_line, segments),
        "dots": (overlay.draw_dots, (points, points)),
    }
    for draw, (starts, ends) in drawn.values():
        image = np.zeros((24, 30, 3), dtype=np.float32)
        draw(image, points, WHITE, stroke_width)
        assert not image[slow_coverage(starts, ends, stroke_width + 2.0, 24, 30) == 0].any()
        assert (image[slow_coverage(starts, ends, max(stroke_width - 2.0, 0.01), 24, 30) == 1] > 0.9).all()
        expected = slow_coverage(starts, ends, stroke_width, 24, 30)
        assert np.abs(image[..., 0] - expected).mean() < 0.06
        assert expected.mean() > 0.005


def test_points_that_are_not_finite_are_left_out() -> None:
    image = np.zeros((8, 9, 3), dtype=np.float32)
    overlay.draw_dots(image, np.full((3, 2), np.nan), WHITE)
    overlay.draw_line(image, np.empty((0, 2)), WHITE)
    assert not image.any()


def test_blending_is_a_weighted_mean() -> None:
    image = np.full((1, 3, 3), 0.2, dtype=np.float32)
    overlay.blend(image, np.array([[0.0, 0.5, 1.0]]), (1.0, 0.6, 0.2), opacity=0.5)
    expected = [[0.2, 0.2, 0.2], [0.4, 0.3, 0.2], [0.6, 0.4, 0.2]]
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


def test_a_line_has_gaps_where_points_are_missing() -> None:
    image = np.zeros((9, 40, 3), dtype=np.float32)
    x = np.arange(40.0)
    y = np.where((x > 15) & (x < 25), np.nan, 4.0)
    overlay.draw_line(image, np.stack([x, y], axis=1), WHITE, width_px=1.0)
    assert image[4, 1:15].min() == 1
    assert image[:, 18:23].max() == 0
    assert image[4, 26:39].min() == 1


def test_landmark_lines_join_features_and_close_eyes_and_lips() -> None:
    pairs = {pair for line in overlay.LANDMARK_LINES for pair in pairwise(line)}
    assert len(pairs) == 67 - 8 + 4  # neighbours, less the 8 steps between features, and 4 closing lines
    assert {(41, 36), (47, 42), (59, 48), (67, 60)} <= pairs
    assert not {(16, 17), (21, 22), (26, 27), (35, 36), (47, 48)} & pairs
    with pytest.raises(ValueError, match="68, 2"):
        overlay.draw_landmarks(np.zeros((8, 8, 3), dtype=np.float32), np.zeros((67, 2)), WHITE)


def test_landmarks_are_dots_of_their_colour() -> None:
    image = np.zeros((60, 80, 3), dtype=np.float32)
    points = np.stack([np.arange(68) % 17 * 4 + 5, np.arange(68) // 17 * 12 + 8], axis=1).astype(np.float64)
    overlay.draw_landmarks(image, points, (0.0, 1.0, 0.0))
    column, row = points.astype(int).T
    np.testing.assert_allclose(image[row, column], np.tile([0.0, 1.0, 0.0], (68, 1)), atol=1e-6)


def test_a_view_takes_source_pixels_to_where_they_are_shown() -> None:
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    frame[10, 20] = 255
    view = View(left=10, top=-4, side=32, size=128)
    shown = view.show(frame)
    weight = (shown - np.array(GROUND, dtype=np.float32))[..., 0] * (shown[..., 0] > 0.3)
    row, column = np.mgrid[:128, :128]
    centre = np.array([(weight * column).sum(), (weight * row).sum()]) / weight.sum()
    np.testing.assert_allclose(centre, view.to_panel(np.array([20.0, 10.0])), atol=0.02)
    np.testing.assert_allclose(shown[5, 100], GROUND, atol=1e-6)  # above the frame


def test_a_face_view_holds_the_landmarks_and_gives_way_to_the_whole_frame() -> None:
    random = np.random.default_rng(1)
    small = random.uniform((600, 200), (700, 320), size=(5, 68, 2))
    view = View.of_face(small, 720, 1280, 320)
    inside = view.to_panel(small)
    assert inside.min() > 0.1 * 320
    assert inside.max() < 0.9 * 320
    assert View.of_face(random.uniform(20, 200, size=(5, 68, 2)), 224, 224, 320) == View.of_frame(224, 224, 320)


def test_wires_are_edges_of_what_is_seen() -> None:
    """A small triangle before a large one, and one that faces away."""
    points = np.array([(2, 2), (30, 2), (2, 30), (6, 6), (14, 6), (6, 14), (20, 20), (28, 20), (20, 28)], dtype=float)
    depth = np.array([9, 9, 9, 5, 5, 5, 1, 1, 1.0])
    triangles = np.array([(3, 5, 4), (0, 2, 1), (6, 7, 8)])
    found = overlay.wireframe_coverage(points, depth, triangles, 32)
    edges = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    starts, ends = (np.array([points[edge[side]] for edge in edges]) for side in (0, 1))
    wide = slow_coverage(starts, ends, 1.5, 32, 32)
    assert not found[wide == 0].any()
    on_lines = slow_coverage(starts, ends, 0.1, 32, 32) > 0.5
    assert (found[on_lines] > 0.1).all()
    swapped = overlay.wireframe_coverage(points, np.array([5, 5, 5, 9, 9, 9, 1, 1, 1.0]), triangles, 32)
    assert not swapped[7:10, 7:9].any()
    assert not swapped[6, 8:12].any()  # the small one is hidden now ...
    assert swapped[2, 8:12].all()  # ... and the large one is not
    points[3] = np.nan
    assert not overlay.wireframe_coverage(points, depth, triangles[:1], 32).any()


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, float]:
    """(image with the demo head over mid grey, its landmarks in panel pixels, opacity)."""
    model, camera, view, opacity = demo_head(), Camera.for_frame(224, 224), View.of_frame(224, 224, 160), 0.6
    id, exp = torch.zeros(model.num_id), torch.zeros(model.num_exp)
    pose = torch.tensor([0.1, 0.3, -0.05, 0.1, -0.05, -2.0])
    image = np.full((160, 160, 3), 0.5, dtype=np.float32)
    MeshPainter(model, id, camera, view).draw(image, exp, pose, opacity)
    points = project(model.landmarks(id, exp), pose, camera).numpy()
    return image, view.to_panel(points), opacity


def test_the_mesh_lies_where_the_landmarks_are(drawn: tuple[np.ndarray, np.ndarray, float]) -> None:
    image, points, _ = drawn
    changed = np.abs(image - 0.5).max(2) > 0.02
    column, row = np.rint(points[17:].mean(0)).astype(int)
    assert changed[row, column]
    assert not changed[:, :8].any()
    rows, columns = np.nonzero(changed)
    assert rows.max() > points[8, 1] - 2  # the chin is covered ...
    assert rows.max() < points[8, 1] + 25  # ... and what is below it is little: the demo head has a short neck
    assert columns.min() < points[:17, 0].min() + 2


def test_the_mesh_lets_the_image_through(drawn: tuple[np.ndarray, np.ndarray, float]) -> None:
    """A mesh with opacity a takes at least (1 - a) of what is below; opaque it takes nothing of it."""
    image, _, opacity = drawn
    assert image.min() >= 0.5 * (1 - opacity) - 1e-5
    assert image.max() <= 0.5 * (1 - opacity) + opacity + 1e-5
    model, view = demo_head(), View.of_frame(64, 64, 64)
    painter = MeshPainter(model, torch.zeros(model.num_id), Camera.for_frame(64, 64), view)
    results = []
    for ground in (0.0, 1.0):
        opaque = np.full((64, 64, 3), ground, dtype=np.float32)
        painter.draw(opaque, torch.zeros(model.num_exp), torch.zeros(6), 1.0)
        results.append(opaque)
    same = np.abs(results[0] - results[1]).max(2) < 1e-5
    assert same[32, 32]
    assert not same[0, 0]
    assert 0.2 < same.mean() < 0.9
