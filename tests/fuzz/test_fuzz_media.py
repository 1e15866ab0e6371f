"""Damaged clips, decoded as an extraction does: none is a traceback, and what is judged is the truth."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.fuzz.clips import KINDS
from benchmarks.fuzz.damage import damage
from benchmarks.fuzz.media import MediaFuzz, Tally, Truth, Verdict, compare
from benchmarks.fuzz.supervise import Lost, run_cases
from support.fault_tools import IS_THOROUGH

pytestmark = pytest.mark.faults

NUM_CASES = 20_000 if IS_THOROUGH else 240


@pytest.fixture(scope="module")
def fuzz() -> Iterator[MediaFuzz]:
    with MediaFuzz(None) as one:  # intact clips have no damaged frames
        yield one


def test_damaged_clips_are_rejected_or_decoded(fuzz: MediaFuzz) -> None:
    total, kinds = Tally(), set()
    for number, found in fuzz.run(NUM_CASES, 0, 2):
        assert not isinstance(found, Lost), (number, found)
        assert not found.crash, (number, found)
        total.add(found)
        kinds.add(fuzz.kind_of(number))
    assert kinds == set(KINDS)
    assert NUM_CASES / 4 < sum(total.rejects.values()) < NUM_CASES
    assert total.num_caught > 0


def test_a_case_is_the_same_again(fuzz: MediaFuzz) -> None:
    assert fuzz.damaged(7) == fuzz.damaged(7) != fuzz.damaged(7 + len(KINDS))
    assert fuzz.judge(7) == fuzz.judge(7)


@pytest.fixture
def truth() -> Truth:
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 255, (20, 12, 12, 3)).astype(np.uint8)
    return Truth(b"", frames, draw.normal(0, 0.1, 640 * 20).astype(np.float32))


def test_the_judge_counts_bad_frames_and_wrong_audio(truth: Truth) -> None:
    assert compare(truth.frames, truth.waveform, (), truth) == Verdict(num_frames=20)
    frames, waveform = truth.frames.copy(), truth.waveform.copy()
    frames[[3, 4]] = frames[2]
    waveform[3200:4800] = 0
    found = compare(frames, waveform, (4, 5), truth)
    assert found == Verdict(num_frames=20, num_caught=1, num_missed=1, num_alarms=1, wrong_ms=100)


def test_a_clip_that_has_lost_its_beginning_is_judged_by_the_rest(truth: Truth) -> None:
    assert compare(truth.frames[5:], truth.waveform[3200:], (), truth) == Verdict(num_frames=15)
    late = compare(truth.frames[5:], truth.waveform[:-3200], (), truth)
    assert (late.num_missed, late.wrong_ms) == (0, 600)


def test_damage_is_drawn_from_a_seed_and_changes_bytes() -> None:
    data = random.Random(0).randbytes(5000)
    cases = [damage(data, random.Random(seed), (b"token",)) for seed in range(300)]
    assert cases == [damage(data, random.Random(seed), (b"token",)) for seed in range(300)]
    assert sum(changed != data for changed, _ in cases) > 280
    ways = {way for _, done in cases for way in done.split("+")}
    assert ways == {"flip", "zero", "noise", "lose", "insert", "repeat", "swap", "cut", "extreme", "token"}
    assert damage(b"", random.Random(0))[0] == b""


def tricky(number: int) -> int:
    if number == 3:
        os._exit(7)
    if number == 6:
        time.sleep(100)
    if number == 8:
        bytearray(3 << 30)
    return number * number


def test_cases_that_hang_or_die_cost_themselves() -> None:
    found = dict(run_cases(tricky, range(12), 2, deadline_seconds=1.0, max_bytes=1 << 30))
    lost = {number: result.why for number, result in found.items() if isinstance(result, Lost)}
    assert lost == {3: "ended with exit code 7", 6: "no end after 1 s", 8: "ended with exit code 1"}
    assert {number: result for number, result in found.items() if number not in lost} == {
        number: number * number for number in range(12) if number not in lost
    }
