"""Which speakers are held out depends on their names and the fold alone."""

from __future__ import annotations

import pytest

from lrs3_loader.train.speakers import SpeakerSplit, hold_out


def test_speakers_are_held_out_alike_everywhere() -> None:
    names = [f"speaker{number}" for number in range(40)]
    held_out = hold_out(names, 0.15)
    assert held_out == hold_out(reversed(names + names), 0.15)
    assert len(held_out) == 6
    folds = [hold_out(names, 0.15, fold) for fold in range(7)]
    assert folds[0] == held_out
    assert all(len(fold) == 6 for fold in folds)
    assert set().union(*folds[:6]) < set(names) == set().union(*folds)
    assert len(hold_out(names[:2], 0.01)) == len(hold_out(names[:2], 0.99)) == 1
    split = SpeakerSplit(frozenset("a"), frozenset("b"))
    assert split.is_held_out("a/b/c")
    assert not split.is_held_out("b/a/b")
    assert split.is_trained_on("b/a/b")
    assert not split.is_trained_on("a/b/a")
    with pytest.raises(ValueError, match="two or more, got 1"):
        hold_out(["a", "a"], 0.5)
