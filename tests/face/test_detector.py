"""Anchors, decoding and weighted suppression of the face detector, against loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lrs3_loader.face.landmarks.detector import (
    MAX_OVERLAP,
    FaceDetector,
    box_iou,
    decode_boxes,
    make_anchors,
    merge_candidates,
    merge_overlapping,
    to_pixels,
)
from support.tflite_writer import Writer


def slow_overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_merge(coordinates: np.ndarray, scores: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Weighted non-maximum suppression as MediaPipe writes it: a list that gets shorter."""
    remaining = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    faces = []
    while remaining:
        best = remaining[0]
        same = [i for i in remaining if slow_overlap(coordinates[best], coordinates[i]) > MAX_OVERLAP]
        weights = scores[same]
        faces.append((scores[best], (weights[:, None] * coordinates[same]).sum(0) / weights.sum()))
        remaining = [i for i in remaining if i not in same]
    return faces


def some_candidates(seed: int, num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Boxes scattered around three faces, with keypoints; some below the threshold."""
    random = np.random.default_rng(seed)
    centre = np.array([[0.2, 0.3], [0.7, 0.4], [0.5, 0.9]])[random.integers(0, 3, num)]
    centre = centre + random.normal(0, 0.02, (num, 2))
    half = random.uniform(0.05, 0.15, (num, 2))
    coordinates = np.concatenate([centre - half, centre + half, random.uniform(0, 1, (num, 12))], 1)
    scores = random.uniform(0, 1, num)
    return coordinates, np.where(scores < 0.5, 0, scores)


def merge_listed(coordinates: torch.Tensor, scores: torch.Tensor, max_faces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge by ``merge_candidates``, with some that are none in the list."""
    frame, anchor = (scores + torch.arange(scores.shape[1]) % 3 > 0).nonzero().unbind(1)
    return merge_candidates(coordinates[frame, anchor], scores[frame, anchor], frame, len(scores), max_faces)


Merge = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
MERGES = [merge_overlapping, merge_listed]


@pytest.mark.parametrize("merge", MERGES)
def test_merging_equals_the_list_version(merge: Merge) -> None:
    cases = [some_candidates(seed) for seed in range(8)]
    coordinates = torch.tensor(np.stack([c for c, _ in cases]), dtype=torch.float64)
    scores = torch.tensor(np.stack([s for _, s in cases]), dtype=torch.float64)
    got_scores, got = merge(coordinates, scores, 4)
    for i, case in enumerate(cases):
        expected = slow_merge(*case)[:4]
        assert len(expected) >= 3
        assert (got_scores[i] > 0).sum() == len(expected)
        for k, (score, values) in enumerate(expected):
            assert got_scores[i, k] == score
            np.testing.assert_allclose(got[i, k].numpy(), values, atol=1e-12)


@pytest.mark.parametrize("merge", MERGES)
def test_nothing_found_gives_scores_of_zero(merge: Merge) -> None:
    scores, coordinates = merge(torch.rand(2, 9, 16), torch.zeros(2, 9), 4)
    assert torch.equal(scores, torch.zeros(2, 4))
    assert coordinates.isfinite().all()


@pytest.mark.parametrize("merge", MERGES)
def test_an_empty_box_does_not_hide_the_next_face(merge: Merge) -> None:
    coordinates = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.3, 0.3]]])
    coordinates = coordinates.repeat(1, 1, 4)
    scores, merged = merge(coordinates, torch.tensor([[0.9, 0.8]]), 3)
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.8, 0.0]]))
    torch.testing.assert_close(merged[0, :2], coordinates[0])


def test_a_frame_does_not_depend_on_the_others() -> None:
    cases = [some_candidates(seed, 200) for seed in range(6)]
    coordinates = torch.tensor(np.stack([c for c, _ in cases]), dtype=torch.float32)
    scores = torch.tensor(np.stack([s for _, s in cases]), dtype=torch.float32)
    scores[2] = 0
    together = merge_listed(coordinates, scores, 4)
    for i in range(6):
        apart = merge_listed(coordinates[i : i + 1], scores[i : i + 1], 4)
        assert torch.equal(together[0][i], apart[0][0])
        assert torch.equal(together[1][i], apart[1][0])


def test_overlap() -> None:
    a = torch.tensor([0.0, 0.0, 2.0, 2.0])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([1 / 7, 1.0, 0.0, 0.0]))


def test_anchors() -> None:
    anchors = make_anchors()
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[[0, 1, 2, 511, 512, 517, 518, 895]], [
        [1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32], [31 / 32, 31 / 32],
        [1 / 16, 1 / 16], [1 / 16, 1 / 16], [3 / 16, 1 / 16], [15 / 16, 15 / 16],
    ])  # fmt: skip


def test_decoding() -> None:
    raw = torch.arange(16.0)[None, None] / 10
    got = decode_boxes(raw, torch.tensor([[0.5, 0.25]]))[0, 0]
    torch.testing.assert_close(got[:4], torch.tensor([0.4, 0.2, 0.6, 0.5]), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[4:6], torch.tensor([0.9, 0.75]))
    torch.testing.assert_close(got[14:], torch.tensor([1.9, 1.75]))


def test_letterbox_units_and_pixels() -> None:
    corners = np.array([[0.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(to_pixels(corners, 720, 1280), [[0, -280, 1280, 1000]])
    np.testing.assert_allclose(to_pixels(corners, 100, 60), [[-20, 0, 80, 100]])


def test_other_networks_are_refused() -> None:
    net = Writer((1, 128, 128, 3))
    y = net.op("NEG", [0], (1, 128, 128, 3))
    with pytest.raises(ValueError, match="not a short-range face detector"):
        FaceDetector(net.finish([y]))
