import pytest
import torch

from lrs3_loader.extraction.batch import FrameSpan, fixed_batches

MANY = 1 << 30


def spans(*lengths: int) -> list[FrameSpan[int]]:
    return [FrameSpan(owner, 0, torch.full((n, 2, 2, 3), owner, dtype=torch.uint8)) for owner, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [(5,), (3, 4, 1), (16,), (1,) * 9, (7, 8, 9, 10)])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_every_frame_once_in_order_and_all_batches_full_but_the_last(lengths: tuple[int, ...], size: int) -> None:
    batches = list(fixed_batches(spans(*lengths), size, MANY))
    counts = [sum(len(span) for span in batch) for batch in batches]
    assert all(count == size for count in counts[:-1])
    assert 0 < counts[-1] <= size
    seen = [(span.owner, span.start + k) for batch in batches for span in batch for k in range(len(span))]
    assert seen == [(owner, k) for owner, n in enumerate(lengths) for k in range(n)]
    assert all(bool((span.frames == span.owner).all()) for batch in batches for span in batch)


def test_is_lazy() -> None:
    drawn = []

    def source():  # type: ignore[no-untyped-def]
        for span in spans(4, 4, 4):
            drawn.append(span.owner)
            yield span

    next(fixed_batches(source(), 4, MANY))
    assert drawn == [0]


def test_no_frames_no_batches() -> None:
    assert list(fixed_batches([], 4, MANY)) == []


def test_refuses_a_batch_size_of_zero() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(fixed_batches(spans(1), 0, MANY))


@pytest.mark.parametrize("cut", [1, 2, 5, 100])
def test_large_frames_make_small_batches_however_they_were_cut(cut: int) -> None:
    """Frames of 12 bytes, and some of 48, in batches of at most 60."""
    clips = [torch.zeros((7, 2, 2, 3), dtype=torch.uint8), torch.ones((6, 4, 4, 3), dtype=torch.uint8)]
    whole = [FrameSpan(owner, 0, frames) for owner, frames in enumerate(clips)]
    pieces = [FrameSpan(s.owner, at, s.frames[at : at + cut]) for s in whole for at in range(0, len(s), cut)]
    batches = list(fixed_batches(pieces, 6, 60))
    assert [sum(len(span) for span in batch) for batch in batches] == [5, 2, 1, 1, 1, 1, 1, 1]
    assert all(sum(span.frames.nbytes for span in batch) <= 60 for batch in batches)
    assert [len(batch) for batch in fixed_batches(whole, 6, 1)] == [1] * 13
