"""Files of sound alone, read whole: how long they last, whatever the container says, and what is refused."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from lrs3_loader.decode.audio import read_sound
from lrs3_loader.errors import NoAudioError, TooLargeError, UnreadableError
from support import media_files as files

RATE = 44_100
SECONDS = 1.37  # 34.25 frames


def write_sound(path: Path, codec: str, seconds: float = SECONDS, channels: int = 2) -> Path:
    sound = files.clicks(seconds, RATE, (0.5, 1.0), channels)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="stereo" if channels == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound), format="fltp", layout="stereo" if channels == 2 else "mono"
        )
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format, stream.layout, RATE, frame_size=stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("x.wav", "pcm_s16le"), ("x.flac", "flac"), ("x.m4a", "aac"), ("x.mp3", "mp3")]
)
def test_a_file_lasts_as_long_as_its_sound(name: str, codec: str, tmp_path: Path) -> None:
    sound = read_sound(write_sound(tmp_path / name, codec), name, 100)
    assert sound.waveform.shape in {(640 * 35,), (640 * 36,)}  # lossy codecs fill up their last block
    assert files.click_times(sound.waveform.numpy()) == pytest.approx([0.5, 1.0], abs=0.002)
    if codec in ("pcm_s16le", "flac"):
        assert len(sound.waveform) == 640 * 35
        assert sound.num_missing_samples == pytest.approx(0.75 * 640, abs=1)
        assert not sound.waveform[640 * 34 + 640 // 4 + 40 :].any()


def test_a_header_that_promises_more_is_not_believed(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "x.wav", "pcm_s16le")
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    assert len(read_sound(path, "x.wav", 100).waveform) == 640 * 35


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "x.wav", "pcm_s16le")
    with pytest.raises(TooLargeError, match=r"x.wav: its sound lasts more than 1.36 s"):
        read_sound(path, "x.wav", 34)
    with pytest.raises(NoAudioError, match="no audio track"):
        read_sound(files.write_media(tmp_path / "silent.mp4"), "silent.mp4", 100)
    with wave.open(str(tmp_path / "empty.wav"), "wb") as empty:
        empty.setnchannels(1)
        empty.setsampwidth(2)
        empty.setframerate(RATE)
    with pytest.raises(NoAudioError, match="holds no samples"):
        read_sound(tmp_path / "empty.wav", "empty.wav", 100)
    (tmp_path / "text.wav").write_text("no sound at all\n")
    with pytest.raises(UnreadableError, match=r"text.wav"):
        read_sound(tmp_path / "text.wav", "text.wav", 100)
