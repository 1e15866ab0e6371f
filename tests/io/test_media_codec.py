"""Encoded audio and video come back as they were, or as nearly as is promised, with the same bytes each time."""

from __future__ import annotations

import av
import numpy as np
import pytest

from lrs3_loader.io.media_codec import VideoCodec, VideoEncoder, decode_flac, decode_video, encode_flac

pytestmark = pytest.mark.smoke
SIZE, NUM_FRAMES = 64, 30


def planes(colour: bool = True) -> np.ndarray:
    """A soft ramp that moves, with colours that change over it: u8 [T, 3 S / 2, S]."""
    t, y, x = np.meshgrid(np.arange(NUM_FRAMES), np.arange(SIZE), np.arange(SIZE), indexing="ij")
    bright = 128 + 100 * np.sin((x + y + 2 * t) / 15)
    blue, red = 128 + 60 * np.sin(x / 20), 128 + 60 * np.cos(y / 20)
    halves = [part[:, ::2, ::2].reshape(NUM_FRAMES, SIZE // 4, SIZE) for part in (blue, red)]
    if not colour:
        halves = [np.full_like(part, 128) for part in halves]
    return np.concatenate([bright, *halves], 1).round().astype(np.uint8)


def encode(data: np.ndarray, codec: VideoCodec, quality: int, cuts: tuple[int, ...] = ()) -> bytes:
    encoder = VideoEncoder(SIZE, codec, quality)
    for part in np.split(data, cuts):
        encoder.append(part)
    return encoder.finish()


@pytest.mark.parametrize("bits", [16, 24])
def test_whole_levels_come_back_exactly(bits: int) -> None:
    levels = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 9_000)
    waveform = (levels / 2 ** (bits - 1)).astype(np.float32)
    data, scale = encode_flac(waveform, bits)
    assert scale == 1
    np.testing.assert_array_equal(decode_flac(data, scale), waveform)
    assert encode_flac(waveform, bits)[0] == data


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize(("peak", "expected"), [(0.3, 1), (0.99999999, 1), (1.0, 2), (-1.0, 1), (3.7, 4)])
def test_others_are_off_by_half_a_step_and_none_is_clipped(bits: int, peak: float, expected: int) -> None:
    waveform = np.random.default_rng(1).uniform(-0.2, 0.2, 6_400).astype(np.float32)
    waveform[1_000] = peak
    data, scale = encode_flac(waveform, bits)
    if abs(peak) < 1 and np.float32(peak) == 1:  # the nearest f32
        expected = 2
    assert scale == expected
    found = decode_flac(data, scale).astype(np.float64)
    assert np.abs(found - waveform).max() <= scale / 2**bits


def test_silence_stays_silence() -> None:
    data, scale = encode_flac(np.zeros(640, np.float32), 24)
    assert scale == 1
    assert not decode_flac(data).any()


@pytest.mark.parametrize(("codec", "quality"), [("h264", 10), ("jpeg", 2)])
def test_frames_come_back_nearly_and_all_of_them(codec: VideoCodec, quality: int) -> None:
    data = planes()
    found = decode_video(encode(data, codec, quality), grey=True)
    assert found.shape == (NUM_FRAMES, SIZE, SIZE)
    assert np.abs(found.astype(int) - data[:, :SIZE]).mean() < 1.0
    colours = decode_video(encode(data, codec, quality), grey=False)
    y, cb, cr = (part.astype(float) for part in np.split(data, [SIZE, SIZE * 5 // 4], 1))
    cb, cr = (part.reshape(NUM_FRAMES, SIZE // 2, SIZE // 2).repeat(2, 1).repeat(2, 2) - 128 for part in (cb, cr))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)
    assert np.abs(colours - rgb).mean() < 3.0


@pytest.mark.parametrize(("codec", "quality"), [("h264", 18), ("jpeg", 3)])
def test_bytes_are_the_same_however_frames_are_handed_over(codec: VideoCodec, quality: int) -> None:
    data = planes()
    whole = encode(data, codec, quality)
    assert encode(data, codec, quality, (1, 2, 17)) == whole
    worse = encode(data, codec, quality + 12)
    assert len(worse) < len(whole)


def test_a_player_finds_25_frames_a_second_and_a_key_frame_in_each(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "face.mp4"
    path.write_bytes(encode(planes(), "h264", 18))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (25, NUM_FRAMES)
        times = [(float(frame.time), bool(frame.key_frame)) for frame in container.decode(stream)]
    assert [time for time, _ in times] == pytest.approx([index / 25 for index in range(NUM_FRAMES)])
    assert times[0][1]
    assert times[25][1]


def test_what_is_no_such_file_is_refused() -> None:
    video, (audio, _) = encode(planes(), "h264", 18), encode_flac(np.zeros(6_400, np.float32), 16)
    for damaged in (b"", b"x" * 100, video[:60], audio):
        with pytest.raises(ValueError, match=r"mp4|frames|video"):
            decode_video(damaged, grey=True)
    for damaged in (b"", b"x" * 100, video):
        with pytest.raises(ValueError, match="flac"):
            decode_flac(damaged)
    for scale in (0, -1, 1 << 40):
        with pytest.raises(ValueError, match="scale"):
            decode_flac(audio, scale)
