"""Reading one file: timestamps, frames, audio, and every kind of odd or damaged file."""

from __future__ import annotations

import struct
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from lrs3_loader.config import DecodeConfig
from lrs3_loader.corpus.plan import probe_frames
from lrs3_loader.decode.audio import ClipAudio, TimeRange, read_audio
from lrs3_loader.decode.downmix import mono_weights
from lrs3_loader.decode.frames import FrameReader, read_frames
from lrs3_loader.decode.mp4 import check_mp4
from lrs3_loader.decode.video import VideoTrack, probe_video
from lrs3_loader.errors import (
    ClipError,
    LengthMismatchError,
    NoAudioError,
    NoVideoError,
    TooLargeError,
    UnreadableError,
)
from support import media_files as files

pytestmark = pytest.mark.smoke

CONFIG = DecodeConfig()
CLICKS = (0.5, 1.0, 1.5)
#: The oldest PyAV allowed loses the frames of a file that it copies packet by packet, and the ffmpeg of its day mixes
#: AC-3 in the decoder, otherwise than it mixes everything else.
NEW_FFMPEG = pytest.mark.skipif(int(av.__version__.split(".")[0]) < 15, reason="FFmpeg of PyAV 15 or newer")
NO_EDIT_LIST = {"use_editlist": "0"}
ONE_MS = 0.001


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return pytest.importorskip("imageio_ffmpeg", reason="compares with the ffmpeg program").get_ffmpeg_exe()


def probe(path: Path) -> VideoTrack:
    return probe_video(path, path.name, CONFIG)


def audio_of(path: Path, track: VideoTrack | None = None, max_mismatch_seconds: float = 0.5) -> ClipAudio:
    track = track or probe(path)
    time_range = TimeRange(track.start_seconds, Fraction(0), len(track.frame_indices_25fps()), open_end=True)
    return read_audio(path, path.name, time_range, max_mismatch_seconds)


def frame_numbers(path: Path) -> list[int]:
    track = probe(path)
    return [files.frame_number(frame) for frame in read_frames(track, track.frame_indices_25fps()).numpy()]


def run_ffmpeg(exe: str, path: Path, *options: str) -> bytes:
    command = [exe, "-v", "error", "-i", str(path), *options, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def sound_by_ffmpeg(exe: str, path: Path) -> np.ndarray:
    """FFmpeg's own timeline, shifted to the first frame; at the source's rate, one channel."""
    track = probe(path)
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        lead = track.start_seconds - Fraction(container.start_time or 0, 1_000_000)
    # The pieces ahead of the first frame are cut with it.
    options = ("-vn", "-af", "aresample=async=1:first_pts=0,pan=mono|c0=c0", "-f", "f32le")
    return np.frombuffer(run_ffmpeg(exe, path, *options), dtype=np.float32)[round(lead * rate) :]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_title_that_is_no_utf8_does_no_harm(tmp_path: Path, suffix: str) -> None:
    """Whatever the version of PyAV, whose older ones refused such files and whose newer ones know no such setting."""
    path = files.write_media(tmp_path / f"a.{suffix}", sound=files.noise(2.1, 16_000), title="TITLE-TO-SPOIL")
    data = path.read_bytes()
    assert b"TITLE-TO-SPOIL" in data
    path.write_bytes(data.replace(b"TITLE-TO-SPOIL", b"\xff\xfe\xe9-TO-SPOIL\x80\x81"[:14]))
    assert len(path.read_bytes()) == len(data)
    assert frame_numbers(path)[:3] == [0, 1, 2]
    assert audio_of(path, max_mismatch_seconds=1.0).num_samples > 30_000
    assert probe_frames(path) == pytest.approx(50, abs=5)


# Pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "a.ts"])
def test_every_frame_once_in_every_container(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = files.write_media(tmp_path / name, num_frames=60, video_codec=codec)
    track = probe(path)
    frames = read_frames(track, np.arange(60)).numpy()
    assert [files.frame_number(frame) for frame in frames] == list(range(60))


@pytest.mark.parametrize("size", [(67, 61), (2, 2), (90, 162), (2, 33)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = files.write_media(tmp_path / "a.mp4", size=size, num_frames=10)
    frames = read_frames(probe(path), np.arange(10))
    assert frames.shape == (10, *size, 3)
    assert frames.dtype == torch.uint8


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    # Five frames lie before time zero: they are decoded for others' sake, and not shown.
    path = files.write_media(tmp_path / "a.mp4", num_frames=50, frame_offset=-0.2)
    assert frame_numbers(path) == list(range(5, 50))


@NEW_FFMPEG  # the command of FFmpeg 7 crashes over these files
@pytest.mark.parametrize(
    "codec",
    [
        "-c:v libx265 -x265-params open-gop=1:keyint=10:log-level=none",
        "-c:v libx265 -x265-params open-gop=0:radl=2:keyint=20:log-level=none",
        "-c:v libx264 -bf 3 -x264-params open-gop=1:keyint=20",
        "-c:v mpeg2video -bf 2 -g 12",
    ],
    ids=["hevc", "hevc, decodable leading frames", "h264", "mpeg2"],
)
def test_a_recording_cut_in_an_open_gop_begins_with_what_can_be_decoded(
    tmp_path: Path, ffmpeg: str, codec: str
) -> None:
    """Frames that are shown before the first key frame need those that were cut off; ffmpeg shows none of them."""
    whole, cut = tmp_path / "whole.ts", tmp_path / "cut.ts"
    source = files.write_media(tmp_path / "a.mov", num_frames=100, sound=files.noise(4, 16_000), video_codec="png")
    command = [ffmpeg, "-v", "error", "-i"]
    options = [*codec.split(), "-pix_fmt", "yuv420p", "-c:a", "mp2", "-ar", "16000", str(whole)]
    subprocess.run([*command, str(source), *options], check=True)
    subprocess.run([*command[:-1], "-ss", "1.5", "-i", str(whole), "-c", "copy", str(cut)], check=True)
    raw = run_ffmpeg(ffmpeg, cut, "-map", "0:v", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24")
    shown = [files.frame_number(frame) for frame in np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3)]
    assert 40 < len(shown) < 90
    assert frame_numbers(cut) == shown
    lag = lag_between(audio_of(cut).waveform.numpy(), audio_of(source).waveform.numpy()[shown[0] * 640 :])
    assert abs(lag) < 16  # a millisecond


@pytest.mark.parametrize("options", [{}, {"g": "250", "bf": "3", "x264-params": "open-gop=1:keyint=20"}])
def test_seeking_equals_reading_through(tmp_path: Path, options: dict[str, str]) -> None:
    path = files.write_media(tmp_path / "a.mp4", num_frames=100, video_options=options)
    track = probe(path)
    whole = read_frames(track, np.arange(100))
    assert [files.frame_number(frame) for frame in whole.numpy()] == list(range(100))
    for start in (1, 11, 12, 13, 47, 64, 95):
        assert torch.equal(read_frames(track, np.arange(start, 100)), whole[start:])
        reader = FrameReader(track, np.arange(100), start)
        parts = [reader.read(min(7, reader.num_left))[0] for _ in range(start, 100, 7)]
        assert torch.equal(torch.cat(parts), whole[start:])
    scattered = np.array([3, 3, 4, 40, 41, 41, 41, 90, 99])
    assert torch.equal(read_frames(track, scattered), whole[torch.from_numpy(scattered)])


def test_the_same_bits_as_the_ffmpeg_program(shared_data: Path, ffmpeg: str) -> None:
    """Its own decoder and conversion to RGB, which it accelerates in other ways: a level apart at most."""
    for path in sorted((shared_data / "lrs3_mini").rglob("*.mp4"))[:2]:
        track = probe(path)
        raw = subprocess.run(
            [ffmpeg, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
            check=True,
            capture_output=True,
        ).stdout
        theirs = np.frombuffer(raw, dtype=np.uint8).reshape(-1, track.height, track.width, 3)
        ours = read_frames(track, np.arange(len(track.pts))).numpy()
        assert np.abs(ours.astype(int) - theirs).max() <= 1


# Sound on the timeline ----------------------------------------------------------------------------------------------

OFFSETS = [(0.0, 0.0), (0.0, 0.2), (0.2, 0.0), (0.0, -0.2), (0.3, 0.1), (0.1, 0.3)]


@pytest.mark.parametrize("options", [{}, NO_EDIT_LIST], ids=["edit list", "no edit list"])
@pytest.mark.parametrize(("frame_offset", "sound_offset"), OFFSETS)
def test_tracks_that_start_apart_as_ffmpeg(
    tmp_path: Path, ffmpeg: str, frame_offset: float, sound_offset: float, options: dict[str, str]
) -> None:
    path = files.write_media(
        tmp_path / "a.mp4",
        sound=files.noise(2.1, 16_000),
        frame_offset=frame_offset,
        sound_offset=sound_offset,
        container_options=options,
    )
    ours, theirs = audio_of(path).waveform.numpy(), sound_by_ffmpeg(ffmpeg, path)
    assert lag_between(ours, theirs) == 0  # in samples of 1/16 ms
    shared = min(len(ours), len(theirs))
    assert np.abs(ours[:shared] - theirs[:shared]).max() < 1e-4


def lag_between(first: np.ndarray, second: np.ndarray, reach: int = 8_000) -> int:
    """By how many samples ``first`` lags behind ``second``."""
    size = 1 << (len(first) + len(second)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size)))
    lags = np.arange(-reach, reach + 1)
    return int(lags[np.argmax(correlation[lags])])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize(("frame_offset", "sound_offset"), OFFSETS[:3])
def test_clicks_are_heard_when_they_are_shown(
    tmp_path: Path, name: str, frame_offset: float, sound_offset: float
) -> None:
    sound = files.clicks(2, 16_000, CLICKS)
    path = files.write_media(tmp_path / name, sound=sound, frame_offset=frame_offset, sound_offset=sound_offset)
    wanted = [at + sound_offset - frame_offset for at in CLICKS]
    # MPEG-TS has no place to say that the encoder primes with 1024 samples: FFmpeg's own writer puts them ahead.
    heard = files.click_times(audio_of(path).waveform.numpy())
    assert heard == pytest.approx(wanted, abs=ONE_MS)


@pytest.mark.parametrize("codec", ["pcm_s16le", "aac"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_sample_rates_keep_time(tmp_path: Path, rate: int, codec: str) -> None:
    path = files.write_media(
        tmp_path / "a.mov", sound=files.clicks(2, rate, CLICKS), sample_rate=rate, sound_codec=codec
    )
    sound = audio_of(path)
    assert sound.sample_rate == rate
    assert len(sound.waveform) == 50 * 640
    assert files.click_times(sound.waveform.numpy()) == pytest.approx(list(CLICKS), abs=ONE_MS)


@pytest.mark.parametrize("rate", [47_999, 22_255])
def test_rates_that_no_kernel_fits(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.mkv"
    files.write_media(path, sound=files.clicks(2, rate, CLICKS), sample_rate=rate, sound_codec="pcm_s16le")
    begin = time.monotonic()
    assert files.click_times(audio_of(path).waveform.numpy()) == pytest.approx(list(CLICKS), abs=ONE_MS)
    assert time.monotonic() - begin < 20


def test_a_tone_keeps_its_size_through_resampling(tmp_path: Path) -> None:
    t = np.arange(96_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)[None]
    path = files.write_media(tmp_path / "a.mkv", sound=tone, sample_rate=48_000, sound_codec="pcm_s16le")
    ours = audio_of(path).waveform.numpy()
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    assert np.abs(ours - wanted)[100:-100].max() < 2e-3


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = files.noise(2, 16_000, seed=1)[0], files.noise(2, 16_000, seed=2)[0]
    stereo = np.stack([left, right])[:, :32_000]
    path = files.write_media(tmp_path / "a.mkv", sound=stereo, sound_codec="pcm_s16le")
    sound = audio_of(path)
    assert sound.num_channels == 2
    assert np.abs(sound.waveform.numpy() - stereo.mean(axis=0)).max() < 2 / 32_768


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("pcm_s16le", 2 / 32_768), pytest.param("ac3", 0.03, marks=NEW_FFMPEG)]
)
def test_surround_is_mixed_as_by_ffmpeg(tmp_path: Path, ffmpeg: str, codec: str, tolerance: float) -> None:
    channels = np.stack([files.noise(2, 48_000, seed=seed)[0] for seed in range(6)])[:, :96_000] / 2
    channels[2] = files.clicks(2, 48_000, CLICKS)[0]  # speech is in the centre
    path = files.write_media(tmp_path / "a.mkv", sound=channels, sample_rate=48_000, sound_codec=codec)
    raw = run_ffmpeg(ffmpeg, path, "-vn", "-af", "aresample=ochl=mono", "-f", "s16le", "-c:a", "pcm_s16le")
    theirs = resample(torch.from_numpy(np.frombuffer(raw, np.int16) / np.float32(32_768)), 48_000, 16_000)
    audio = audio_of(path)
    assert audio.num_channels == 6
    assert (audio.waveform - theirs[:32_000]).abs()[200:-200].max() < tolerance


def test_the_centre_counts_most_and_low_frequencies_nothing() -> None:
    weights = mono_weights("5.1(side)", 6)
    assert weights.sum() == pytest.approx(1)
    assert weights.argmax() == 2
    assert weights[2] == pytest.approx(np.sqrt(2) * weights[0])
    assert weights[3] == 0
    assert mono_weights("stereo", 2).tolist() == [0.5, 0.5]
    assert mono_weights("mono", 1).tolist() == [1]
    assert mono_weights("ambisonic 1", 4).tolist() == [0.25] * 4  # FFmpeg knows no mix


def test_a_jump_of_the_sounds_timestamps_is_silence(tmp_path: Path) -> None:
    path = files.write_media(
        tmp_path / "a.mkv", sound=files.clicks(1.6, 16_000, CLICKS), sound_gap=(0.704, 0.4), sound_codec="pcm_s16le"
    )
    sound = audio_of(path)
    assert files.click_times(sound.waveform.numpy()) == pytest.approx([0.5, 1.4, 1.9], abs=ONE_MS)
    assert sound.num_missing_samples == 6_400
    assert not sound.waveform[int(0.75 * 16_000) : int(1.1 * 16_000)].any()


@pytest.mark.parametrize("seconds", [0.03, 0.05, 0.09, 0.11])
def test_a_hole_in_the_sound_is_silence(tmp_path: Path, seconds: float) -> None:
    sound = files.clicks(2.0 - seconds, 16_000, CLICKS)
    path = files.write_media(tmp_path / "a.mkv", sound=sound, sound_gap=(0.704, seconds), sound_codec="pcm_s16le")
    audio = audio_of(path)
    late = [at + seconds * (at > 0.704) for at in CLICKS]
    assert files.click_times(audio.waveform.numpy()) == pytest.approx(late, abs=ONE_MS)
    assert audio.num_missing_samples == pytest.approx(16_000 * seconds, abs=1)
    assert audio.num_excess_samples == 0


@pytest.mark.parametrize("seconds", [0.03, 0.09])
def test_sound_whose_timestamps_overlap_is_cut(tmp_path: Path, seconds: float) -> None:
    sound = files.clicks(2.0 + seconds, 16_000, CLICKS)
    path = files.write_media(tmp_path / "a.mkv", sound=sound, sound_gap=(0.704, -seconds), sound_codec="pcm_s16le")
    early = [at - seconds * (at > 0.704) for at in CLICKS]
    assert files.click_times(audio_of(path).waveform.numpy()) == pytest.approx(early, abs=ONE_MS)


@NEW_FFMPEG
def test_unsteady_timestamps_leave_no_holes(tmp_path: Path) -> None:
    sound = files.clicks(2.0, 16_000, CLICKS)
    steady = files.write_media(tmp_path / "a.mkv", sound=sound, sound_codec="pcm_s16le")
    rng = np.random.default_rng(0)
    late = rng.uniform(-0.009, 0.009, 100)
    late[[0, 12]] = 0, 0.05  # one packet alone is no hole
    unsteady = files.retimed(steady, tmp_path / "b.mkv", lambda number: float(late[number]))
    audio = audio_of(unsteady)
    assert audio.num_missing_samples == 0
    assert torch.equal(audio.waveform, audio_of(steady).waveform)


@NEW_FFMPEG
def test_sound_that_drifts_from_its_timestamps_is_kept_near_them(tmp_path: Path) -> None:
    """A sound card that is 1 % slow: 20 ms late, at most, instead of 100."""
    sound = files.clicks(10.0, 16_000, np.arange(0.5, 9.6))
    steady = files.write_media(tmp_path / "a.mkv", num_frames=250, sound=sound, sound_codec="pcm_s16le")
    path = files.retimed(steady, tmp_path / "b.mkv", lambda number: number * 0.064 * 0.01)
    heard = files.click_times(audio_of(path).waveform.numpy())
    assert np.abs(np.array(heard) - 1.01 * np.arange(0.5, 9.6)).max() < 0.022


def test_fragments_that_begin_with_a_hole(tmp_path: Path) -> None:
    """FFmpeg's writer of fragmented files leaves a hole after the first packet of the sound."""
    path = files.write_media(
        tmp_path / "a.mp4",
        sound=files.clicks(2, 48_000, CLICKS),
        sample_rate=48_000,
        container_options={"movflags": "frag_keyframe+empty_moov"},
    )
    assert files.click_times(audio_of(path).waveform.numpy()) == pytest.approx(list(CLICKS), abs=ONE_MS)


def test_missing_and_excess_sound(tmp_path: Path) -> None:
    short = audio_of(files.write_media(tmp_path / "a.mkv", sound=files.noise(1.6, 16_000), sound_codec="pcm_s16le"))
    assert short.num_missing_samples == pytest.approx(6_400, abs=10)
    assert not short.waveform[-6_000:].any()
    long = audio_of(files.write_media(tmp_path / "b.mkv", sound=files.noise(2.4, 16_000), sound_codec="pcm_s16le"))
    assert long.num_excess_samples == pytest.approx(6_400, abs=10)
    for seconds, word in ((1.4, "misses 0.600 s"), (30, "exceeds")):
        path = files.write_media(tmp_path / "c.mkv", sound=files.noise(seconds, 16_000), sound_codec="pcm_s16le")
        with pytest.raises(LengthMismatchError, match=word):
            audio_of(path)


def test_sound_late_by_more_than_allowed(tmp_path: Path) -> None:
    path = files.write_media(tmp_path / "a.mp4", sound=files.noise(2, 16_000), sound_offset=0.7)
    with pytest.raises(LengthMismatchError, match=r"a\.mp4: the audio misses 0\.6\d\d s, with 2\.00 s"):
        audio_of(path)


def test_a_part_of_the_audio_equals_that_part_of_the_whole(tmp_path: Path) -> None:
    # A chirp: AAC codes noise as noise, drawn again by each decoder.
    t = np.arange(441_000) / 44_100
    chirp = (0.5 * np.sin(2 * np.pi * (200 + 100 * t) * t)).astype(np.float32)[None]
    path = files.write_media(tmp_path / "a.mp4", num_frames=250, sound=chirp, sample_rate=44_100, sound_offset=0.1)
    track = probe(path)
    whole = audio_of(path, track).waveform
    for start in (30, 100, 175):
        time_range = TimeRange(track.start_seconds, Fraction(start, 25), 25, open_end=False)
        part = read_audio(path, path.name, time_range, 0.5).waveform
        assert (part - whole[start * 640 : (start + 25) * 640]).abs().max() < 1e-4


def test_a_sound_file_of_its_own_starts_with_its_first_sample(tmp_path: Path) -> None:
    path = files.write_media(tmp_path / "a.m4a", num_frames=0, sound=files.clicks(2, 16_000, CLICKS), sound_offset=0.3)
    sound = read_audio(path, "a.m4a", TimeRange(None, Fraction(0), 50, open_end=True), 0.5)
    with av.open(str(path)) as container:
        first = next(container.decode(audio=0))
        start = float(first.pts * first.time_base)
    assert files.click_times(sound.waveform.numpy()) == pytest.approx([at + 0.3 - start for at in CLICKS], abs=ONE_MS)


def test_real_clips_as_ffmpeg(shared_data: Path, ffmpeg: str) -> None:
    for path in sorted((shared_data / "lrs3_mini").rglob("*.mp4"))[:3]:
        ours, theirs = audio_of(path).waveform.numpy(), sound_by_ffmpeg(ffmpeg, path)
        shared = min(len(ours), len(theirs))
        assert shared > len(ours) - 1_000
        assert np.abs(ours[:shared] - theirs[:shared]).max() < 1e-4


# Damaged and odd files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    return files.write_media(folder / "a.mp4", size=(128, 128), sound=files.noise(2, 16_000))


def read_all(path: Path) -> int:
    track = probe(path)
    audio_of(path, track)
    return len(read_frames(track, track.frame_indices_25fps()))


def failure(path: Path) -> ClipError:
    begin = time.monotonic()
    with pytest.raises(ClipError) as caught:
        read_all(path)
    assert time.monotonic() - begin < 10
    assert path.name in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value


def test_a_healthy_file_reads(healthy: Path) -> None:
    assert read_all(healthy) == 50


def test_missing_empty_and_text(tmp_path: Path) -> None:
    assert "No such file" in str(failure(tmp_path / "gone.mp4"))
    (tmp_path / "empty.mp4").touch()
    assert "empty" in str(failure(tmp_path / "empty.mp4"))
    for name in ("text.mp4", "text.avi", "text.mkv"):
        (tmp_path / name).write_text("this is no film\n" * 500)
        assert isinstance(failure(tmp_path / name), UnreadableError)
    (tmp_path / "zeros.mp4").write_bytes(bytes(20_000))
    assert isinstance(failure(tmp_path / "zeros.mp4"), UnreadableError)
    (tmp_path / "folder.mp4").mkdir()
    assert isinstance(failure(tmp_path / "folder.mp4"), UnreadableError)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}], ids=str)
def test_cut_short(tmp_path: Path, keep: float, options: dict[str, str]) -> None:
    whole = files.write_media(tmp_path / "whole.mp4", sound=files.noise(2, 16_000), container_options=options)
    assert read_all(whole) == 50
    assert isinstance(failure(files.truncated(whole, tmp_path / "cut.mp4", keep)), UnreadableError)


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4", "a.ts"])
def test_tracks_that_start_late(tmp_path: Path, name: str) -> None:
    """The DURATION of a Matroska track is when it ends, not how long it is."""
    video_codec, sound_codec = ("libvpx", "libopus") if name == "a.webm" else ("libx264", "aac")
    sound = files.clicks(2, 48_000, CLICKS)
    path = files.write_media(
        tmp_path / name,
        sound=sound,
        sample_rate=48_000,
        frame_offset=1.5,
        sound_offset=1.5,
        video_codec=video_codec,
        sound_codec=sound_codec,
    )
    assert frame_numbers(path) == list(range(50))
    assert files.click_times(audio_of(path).waveform.numpy()) == pytest.approx(list(CLICKS), abs=ONE_MS)


def test_matroska_that_starts_late_cut_short(tmp_path: Path) -> None:
    whole = files.write_media(tmp_path / "a.mkv", sound=files.noise(2, 16_000), frame_offset=3, sound_offset=3)
    assert read_all(whole) == 50
    assert isinstance(failure(files.truncated(whole, tmp_path / "cut.mkv", 0.5)), UnreadableError)


def test_matroska_cut_short(tmp_path: Path) -> None:
    whole = files.write_media(tmp_path / "whole.mkv", sound=files.noise(2, 16_000))
    assert isinstance(failure(files.truncated(whole, tmp_path / "cut.mkv", 0.5)), UnreadableError)


def test_blanked_and_scribbled_media_bytes(healthy: Path, tmp_path: Path) -> None:
    assert isinstance(failure(files.blanked(healthy, tmp_path / "blank.mp4", 0.2, 0.6)), UnreadableError)
    for seed in range(3):
        assert isinstance(failure(files.scribbled(healthy, tmp_path / f"{seed}.mp4", seed)), UnreadableError)


def test_damaged_frames_are_not_repeated_in_silence(tmp_path: Path) -> None:
    whole = files.write_media(tmp_path / "whole.mp4", size=(128, 128))
    path = files.blanked(whole, tmp_path / "blank.mp4", 0.3, 0.7)
    track = probe(path)
    with pytest.raises(UnreadableError, match="frames decoded"):
        read_frames(track, np.arange(50))


def test_missing_tracks(tmp_path: Path) -> None:
    silent = files.write_media(tmp_path / "silent.mp4")
    assert isinstance(failure(silent), NoAudioError)
    blind = files.write_media(tmp_path / "blind.mp4", num_frames=0, sound=files.noise(2, 16_000))
    assert isinstance(failure(blind), NoVideoError)


def test_one_frame(tmp_path: Path) -> None:
    path = files.write_media(tmp_path / "a.mp4", num_frames=1)
    assert probe(path).frame_indices_25fps().tolist() == [0]


def test_headers_that_promise_too_much(healthy: Path, tmp_path: Path) -> None:
    for count in (10**5, 5 * 10**7, 10**9, 2**32 - 1):
        error = failure(files.promising(healthy, tmp_path / "many.mp4", count))
        assert isinstance(error, UnreadableError)
        assert "claims" in str(error)
    # What the frames themselves say goes; where nothing else is said, the size is refused before any is decoded.
    assert len(read_frames(probe(files.oversized(healthy, tmp_path / "big.mp4", 60_000, 60_000)), np.arange(5))) == 5
    png = files.write_media(tmp_path / "png.mov", num_frames=3, video_codec="png", sound=files.noise(0.12, 16_000))
    assert read_all(png) == 3
    for side in (10_000, 100_000):  # in the frames themselves
        data = png.read_bytes().replace(b"IHDR" + struct.pack(">II", 64, 64), b"IHDR" + struct.pack(">II", side, side))
        (tmp_path / "bigger.mov").write_bytes(data)
        assert failure(tmp_path / "bigger.mov").reason in ("too_large", "unreadable")
    with pytest.raises(TooLargeError, match="128x128"):
        probe_video(healthy, "a.mp4", DecodeConfig(max_pixels=100 * 100))


def test_boxes_of_every_size_are_bounded(tmp_path: Path, healthy: Path) -> None:
    data = healthy.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mp4"
    at = data.index(b"moov")
    for _ in range(60):  # any four bytes of the header
        damaged = bytearray(data)
        where = int(rng.integers(at, len(data) - 4))
        damaged[where : where + 4] = rng.integers(0, 256, size=4, dtype=np.uint8).tobytes()
        path.write_bytes(bytes(damaged))
        begin = time.monotonic()
        try:
            check_mp4(path, "a.mp4")
            track = probe(path)
            assert len(track.frame_indices_25fps()) < 10**8
        except ClipError:
            pass
        assert time.monotonic() - begin < 10
