"""Files of many kinds by the ffmpeg program: how far pictures and sound are apart, as in the table of docs/sources.md.

``LRS3_LOADER_WRITE_TABLE=1 pytest tests/decode/test_sources_table.py`` writes the table.
"""

from __future__ import annotations

import os
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lrs3_loader.config import DecodeConfig
from lrs3_loader.decode.audio import TimeRange, read_audio
from lrs3_loader.decode.frames import read_frames
from lrs3_loader.decode.video import probe_video
from support import media_files as files
from support.paths import REPO

pytestmark = pytest.mark.slow

TABLE = REPO / "docs" / "sources.md"
CLICKS = tuple(0.5 + 0.37 * number for number in range(7))
SECONDS = 4
H264, AAC = "-c:v libx264 -pix_fmt yuv420p", "-c:a aac"
#: Name of the row: suffix, source frames per second, options.
ROWS: dict[str, tuple[str, Fraction, str]] = {
    "mp4, H.264, AAC": ("mp4", Fraction(25), f"{H264} {AAC}"),
    "mp4, H.264 10 bit 4:4:4, AAC 16 kHz": ("mp4", Fraction(25), f"-c:v libx264 -pix_fmt yuv444p10le {AAC} -ar 16000"),
    "mp4 in fragments": ("mp4", Fraction(25), f"{H264} {AAC} -movflags frag_keyframe+empty_moov"),
    "mp4 that starts 1 s late": ("mp4", Fraction(25), f"{H264} {AAC} -output_ts_offset 1"),
    "mp4, HEVC, MP3": ("mp4", Fraction(25), "-c:v libx265 -x265-params log-level=none -c:a libmp3lame"),
    "mp4, MPEG-4, 8 kHz AAC": ("mp4", Fraction(25), f"-c:v mpeg4 -bf 2 {AAC} -ar 8000"),
    "mov, ProRes 4:2:2, PCM": ("mov", Fraction(25), "-c:v prores_ks -c:a pcm_s16le"),
    "Matroska that starts 1 s late": ("mkv", Fraction(25), f"{H264} {AAC} -output_ts_offset 1"),
    "Matroska, FFV1, FLAC": ("mkv", Fraction(25), "-c:v ffv1 -c:a flac"),
    "Matroska, H.264, Vorbis": ("mkv", Fraction(25), f"{H264} -c:a libvorbis"),
    "Matroska, H.264, AC-3 5.1": ("mkv", Fraction(25), f"{H264} -c:a ac3 -ac 6"),
    "WebM, VP8, Opus, starts 1.3 s late": ("webm", Fraction(25), "-c:v libvpx -c:a libopus -output_ts_offset 1.3"),
    "WebM, VP9, Opus": ("webm", Fraction(25), "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -c:a libopus"),
    "AVI, MPEG-4, PCM": ("avi", Fraction(25), "-c:v mpeg4 -c:a pcm_s16le"),
    "AVI, MPEG-4 with B-frames, PCM": ("avi", Fraction(25), "-c:v mpeg4 -bf 2 -c:a pcm_s16le"),
    "AVI, H.264, PCM": ("avi", Fraction(25), f"{H264} -bf 0 -c:a pcm_s16le"),
    "AVI, H.264, MP3": ("avi", Fraction(25), f"{H264} -bf 0 -c:a libmp3lame"),
    "AVI, H.264 with B-frames, MP3": ("avi", Fraction(25), f"{H264} -c:a libmp3lame"),
    "AVI, Xvid with B-frames, MP3": ("avi", Fraction(25), "-c:v libxvid -bf 2 -c:a libmp3lame"),
    "FLV, H.264, AAC": ("flv", Fraction(25), f"{H264} {AAC}"),
    "WMV, WMA": ("wmv", Fraction(25), "-c:v wmv2 -c:a wmav2"),
    "MPEG-PS, MPEG-1, MP2": ("mpg", Fraction(25), "-c:v mpeg1video -c:a mp2"),
    "MPEG-TS, MPEG-2 with B-frames, MP2": ("ts", Fraction(25), "-c:v mpeg2video -bf 2 -c:a mp2"),
    "MPEG-TS, H.264, AC-3": ("ts", Fraction(25), f"{H264} -c:a ac3"),
    "Ogg, Theora, Vorbis": ("ogv", Fraction(25), "-c:v libtheora -c:a libvorbis"),
    "MXF, MPEG-2, PCM": ("mxf", Fraction(25), "-c:v mpeg2video -bf 2 -c:a pcm_s16le -ar 48000"),
    "mp4, H.264 10 bit 4:2:2, Opus": ("mp4", Fraction(25), "-c:v libx264 -pix_fmt yuv422p10le -c:a libopus"),
    "mp4, AV1, AAC": ("mp4", Fraction(25), f"-c:v libaom-av1 -usage realtime -cpu-used 8 {AAC}"),
    "mov, H.264, 8 kHz mu-law": ("mov", Fraction(25), f"{H264} -c:a pcm_mulaw -ar 8000"),
    "mov, ProRes 4:4:4:4 with alpha, PCM 24 bit": (
        "mov",
        Fraction(25),
        "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le -c:a pcm_s24le",
    ),
    "WebM, VP9 with alpha, Opus": (
        "webm",
        Fraction(25),
        "-c:v libvpx-vp9 -pix_fmt yuva420p -deadline realtime -cpu-used 8 -c:a libopus",
    ),
    "Matroska, H.264, FLAC 7.1": ("mkv", Fraction(25), f"{H264} -ac 8 -channel_layout 7.1 -c:a flac"),
    "mp4, H.264 interlaced, AAC": ("mp4", Fraction(25), f"-vf setfield=tff {H264} -flags +ildct+ilme {AAC}"),
    "MPEG-TS whose clock wraps, H.264, AAC": ("ts", Fraction(25), f"{H264} {AAC} -output_ts_offset 95441"),
    "mp4 at 12.5 fps": ("mp4", Fraction(25, 2), f"{H264} {AAC}"),
    "mp4 at 15 fps": ("mp4", Fraction(15), f"{H264} {AAC}"),
    "mp4 at 23.976 fps": ("mp4", Fraction(24_000, 1001), f"{H264} {AAC}"),
    "mp4 at 29.97 fps": ("mp4", Fraction(30_000, 1001), f"{H264} {AAC}"),
    "mp4 at 50 fps": ("mp4", Fraction(50), f"{H264} {AAC}"),
    "mp4 at 60 fps": ("mp4", Fraction(60), f"{H264} {AAC}"),
    "mp4 at 120 fps": ("mp4", Fraction(120), f"{H264} {AAC}"),
}


@pytest.fixture(scope="module")
def ffmpeg() -> str:
    return pytest.importorskip("imageio_ffmpeg", reason="builds files with the ffmpeg program").get_ffmpeg_exe()


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> dict[Fraction, Path]:
    """Lossless files of each rate, whose frames carry their number, with a click at each of ``CLICKS``."""
    folder = tmp_path_factory.mktemp("masters")
    return {
        rate: files.write_media(
            folder / f"{rate.numerator}_{rate.denominator}.mov",
            num_frames=round(SECONDS * rate),
            frames_per_second=rate,
            sound=files.clicks(SECONDS, 48_000, CLICKS),
            sample_rate=48_000,
            video_codec="png",
            sound_codec="pcm_s16le",
        )
        for rate in {row[1] for row in ROWS.values()}
    }


def lag_ms(numbers: list[int], shown: np.ndarray, rate: Fraction, waveform: np.ndarray, sample_rate: int) -> float:
    """How much later than the pictures the sound is, in milliseconds, on average."""
    ahead = np.mean(np.array(numbers) / float(rate) - shown)
    heard = files.click_times(waveform, sample_rate, 0.4 * float(np.abs(waveform).max()))
    assert len(heard) == len(CLICKS)
    return float(1000 * (np.mean(np.array(heard) - CLICKS) + ahead))


def measure(path: Path, rate: Fraction) -> float:
    track = probe_video(path, path.name, DecodeConfig())
    sources = track.frame_indices_25fps()
    numbers = [files.frame_number(frame) for frame in read_frames(track, sources).numpy()]
    time_range = TimeRange(track.start_seconds, Fraction(0), len(sources), open_end=True)
    waveform = read_audio(path, path.name, time_range, 0.5).waveform.numpy()
    return lag_ms(numbers, np.arange(len(sources)) / 25, rate, waveform, 16_000)


def measure_ffmpeg(exe: str, path: Path, rate: Fraction) -> float:
    """The same of what the ffmpeg program decodes, at its own times."""
    copy = path.with_name("decoded.nut")
    command = [exe, "-v", "error", "-y", "-i", str(path), "-fps_mode", "passthrough", "-enc_time_base:v", "1/90000"]
    subprocess.run(
        [*command, "-copyts", "-c:v", "rawvideo", "-pix_fmt", "rgb24", "-c:a", "pcm_f32le", copy], check=True
    )
    with av.open(str(copy)) as container:
        shown = [(files.frame_number(f.to_ndarray()), float(f.pts * f.time_base)) for f in container.decode(video=0)]
    start = shown[0][1]
    waveform = np.zeros(60 * 48_000, np.float32)
    with av.open(str(copy)) as container:
        for frame in container.decode(audio=0):
            block = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1)
            at = round((frame.pts * float(frame.time_base) - start) * frame.sample_rate)
            waveform[max(0, at) : max(0, at + len(block))] = block[max(0, -at) :]
            sample_rate = frame.sample_rate
    times = np.array([time - start for _, time in shown])
    return lag_ms([number for number, _ in shown], times, rate, waveform, sample_rate)


@pytest.mark.parametrize("row", ROWS)
def test_the_table_says_how_far_pictures_and_sound_are_apart(
    tmp_path: Path, ffmpeg: str, masters: dict[Fraction, Path], row: str
) -> None:
    suffix, rate, options = ROWS[row]
    path = tmp_path / f"a.{suffix}"
    subprocess.run([ffmpeg, "-v", "error", "-i", str(masters[rate]), *options.split(), str(path)], check=True)
    ours, theirs = measure(path, rate), measure_ffmpeg(ffmpeg, path, rate)
    assert abs(ours - theirs) < 2
    line = f"| {row} | {ours:+.1f} | {theirs:+.1f} |".replace("-0.0", "+0.0")
    pattern = re.compile(rf"^\| {re.escape(row)} \| ([-+.\d]+) \| ([-+.\d]+) \|$", re.MULTILINE)
    text = TABLE.read_text(encoding="utf-8")
    written = pattern.search(text)
    if os.environ.get("LRS3_LOADER_WRITE_TABLE"):
        TABLE.write_text(pattern.sub(line, text) if written else f"{text}{line}\n", encoding="utf-8")
        return
    assert written is not None, line
    assert [ours, theirs] == pytest.approx([float(figure) for figure in written.groups()], abs=1), line
