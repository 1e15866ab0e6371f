"""The choice among several faces, and frames without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrs3_loader.errors import NoFaceError
from lrs3_loader.face.landmarks.tracks import (
    MAX_LOST_FRAMES,
    Box,
    FaceTrack,
    box_iou,
    fill_gaps,
    prominence,
)

LARGE, SMALL = (10.0, 10.0, 60.0, 60.0), (70.0, 20.0, 90.0, 40.0)  # in a frame of 100 x 100


def choose(track: FaceTrack, *boxes: Box) -> int | None:
    return track.choose(boxes, 100, 100)


def test_the_first_choice_is_the_largest_and_most_central() -> None:
    assert choose(FaceTrack(), SMALL, LARGE) == 1
    corner, middle = (0.0, 0.0, 30.0, 30.0), (36.0, 36.0, 64.0, 64.0)  # nearly as large, but in the middle
    assert choose(FaceTrack(), corner, middle) == 1


def test_the_track_stays_with_its_face() -> None:
    track = FaceTrack()
    assert choose(track, SMALL) == 0
    assert choose(track, LARGE, (72.0, 21.0, 92.0, 41.0)) == 1
    assert choose(track, (75.0, 22.0, 95.0, 42.0), LARGE) == 0
    assert (track.num_frames, track.num_frames_with_several_faces, track.num_switches) == (3, 2, 0)


def test_of_two_that_overlap_the_nearer_one_is_followed() -> None:
    track = FaceTrack()
    choose(track, LARGE)
    assert choose(track, (30.0, 10.0, 80.0, 60.0), (15.0, 10.0, 65.0, 60.0)) == 1


def test_somebody_else_is_not_taken_for_a_face_that_was_missed() -> None:
    track = FaceTrack()
    choose(track, LARGE)
    assert [choose(track, SMALL) for _ in range(MAX_LOST_FRAMES)] == [None] * MAX_LOST_FRAMES
    assert track.num_switches == 0


def test_a_lost_track_begins_anew() -> None:
    track = FaceTrack()
    choose(track, LARGE)
    for _ in range(MAX_LOST_FRAMES):
        assert choose(track) is None
    assert choose(track, SMALL) == 0
    assert track.num_switches == 1
    assert choose(track, LARGE, SMALL) == 1


def test_a_face_that_comes_back_in_time_is_followed_on() -> None:
    track = FaceTrack()
    choose(track, LARGE)
    for _ in range(MAX_LOST_FRAMES - 1):
        assert choose(track, SMALL) is None
    assert choose(track, SMALL, LARGE) == 1
    assert track.num_switches == 0


def test_frames_before_the_first_face_count_for_nothing() -> None:
    track = FaceTrack()
    assert [choose(track) for _ in range(20)] == [None] * 20
    assert choose(track, SMALL, LARGE) == 1
    assert track.num_switches == 0


def test_overlap_and_prominence() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert prominence((40, 40, 60, 60), 100, 100) == 400
    assert prominence((90, 90, 110, 110), 100, 100) == pytest.approx(0)
    assert prominence((60, 60, 40, 40), 100, 100) == 0


def slow_fill(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    out = np.full_like(values, np.nan)
    out[valid] = values[valid]
    known = np.flatnonzero(valid)
    for frame in np.flatnonzero(~valid):
        before, after = known[known < frame], known[known > frame]
        start = before[-1] if len(before) else -1
        stop = after[0] if len(after) else len(valid)
        if len(before) and len(after):
            share = (frame - start) / (stop - start)
            out[frame] = (1 - share) * values[start] + share * values[stop]
        else:
            out[frame] = values[start] if len(before) else values[stop]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_filled_as_by_hand(seed: int) -> None:
    random = np.random.default_rng(seed)
    valid = random.uniform(size=40) < random.uniform(0.05, 0.95)
    values = np.where(valid[:, None, None], random.normal(size=(40, 5, 3)), np.nan)
    longest_gap = max(map(len, "".join("x" if v else "." for v in valid).split("x")))
    arguments = (torch.from_numpy(values), torch.from_numpy(valid))
    filled = fill_gaps(*arguments, min_valid_fraction=0.0, max_gap_frames=longest_gap)
    np.testing.assert_allclose(filled.numpy(), slow_fill(values, valid), atol=1e-12)
    with pytest.raises(NoFaceError, match=f"no face in {longest_gap} consecutive frames"):
        fill_gaps(*arguments, min_valid_fraction=0.0, max_gap_frames=longest_gap - 1)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"valid must be bool \[3\]"):
        fill_gaps(torch.zeros(3, 2), torch.ones(2, dtype=torch.bool), min_valid_fraction=0.5, max_gap_frames=12)


def check(found: str) -> None:
    valid = torch.tensor([c == "x" for c in found], dtype=torch.bool)
    filled = fill_gaps(torch.zeros(len(found), 2), valid, min_valid_fraction=0.5, max_gap_frames=3)
    assert filled.shape == (len(found), 2)


def test_which_clips_are_refused() -> None:
    check("xx..xx")
    check("x...xx")
    with pytest.raises(NoFaceError, match="no face found in any of 4 frames"):
        check("....")
    with pytest.raises(NoFaceError, match="no face found in any of 0 frames"):
        check("")
    with pytest.raises(NoFaceError, match=r"found in 2 of 5 frames \(40%\), 50% are needed"):
        check("x...x")
    with pytest.raises(NoFaceError, match="no face in 4 consecutive frames, at most 3 can be filled"):
        check("xxx....xxx")
