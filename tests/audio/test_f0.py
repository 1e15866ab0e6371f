"""Pitch against Praat, against GeneFace's order of steps, and against tones of known pitch."""

from __future__ import annotations

import numpy as np
import parselmouth
import pytest

from lrs3_loader.audio.f0 import f0_praat
from support.sounds import SAMPLE_RATE, real_sounds, synthetic_sounds

pytestmark = pytest.mark.smoke


def praat(waveform: np.ndarray) -> np.ndarray:
    pitch = parselmouth.Sound(waveform, SAMPLE_RATE).to_pitch_ac(
        time_step=0.02, voicing_threshold=0.6, pitch_floor=80, pitch_ceiling=750
    )
    return pitch.selected_array["frequency"]


def geneface(waveform: np.ndarray) -> np.ndarray:
    """Its rule: a hop of zeros behind the audio, Praat, then cut or edge-padded to the rows of the mel spectrogram."""
    pitch = praat(np.concatenate([waveform, np.zeros(320, waveform.dtype)]))
    num_mel_rows = (len(waveform) - 512) // 320 + 1
    return np.pad(pitch, (0, max(0, num_mel_rows - len(pitch))), mode="edge")[:num_mel_rows]


def check_against_praat(name: str, waveform: np.ndarray) -> np.ndarray:
    num_rows = len(waveform) // 320
    f0, num_true_rows = f0_praat(waveform, num_rows)
    assert f0.dtype == np.float32
    assert len(f0) == num_rows
    assert num_true_rows == num_rows - 1
    np.testing.assert_array_equal(f0[:-1], praat(waveform).astype(np.float32), err_msg=name)
    # No window of a kept row reaches into the zeros, but Praat's search for the best path does: where a voiced stretch
    # lasts to the very end it may be decided the other way.
    assert (f0[:-1] != geneface(waveform).astype(np.float32)).mean() <= 0.03, name
    assert f0[-1] == f0[-2]
    return f0


def test_equals_praat_and_geneface_on_real_clips(shared_data) -> None:
    voiced = {}
    for name, waveform in real_sounds(shared_data).items():
        f0 = check_against_praat(name, waveform)
        voiced[name] = (f0 > 0).mean()
        assert ((f0 == 0) | ((f0 >= 80) & (f0 <= 750))).all()
    assert voiced["clips/silent_480_30fps_44k.mp4"] == 0
    assert voiced["clips/may_512_25fps_48k_stereo.mp4"] > 0.3


@pytest.mark.parametrize("name", synthetic_sounds())
def test_equals_praat_and_geneface_on_extremes(name: str) -> None:
    check_against_praat(name, synthetic_sounds()[name])


@pytest.mark.parametrize("hz", [100.0, 220.0, 500.0])
def test_finds_the_pitch_of_a_tone(hz: float) -> None:
    time = np.arange(640 * 25) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 6)).astype(np.float32)
    f0, _ = f0_praat(tone, 50)
    np.testing.assert_allclose(f0, hz, rtol=1e-3)


def test_rows_are_where_they_are_said_to_be() -> None:
    """Row i is centred at (i + 1) * 20 ms: a tone that starts half-way is voiced from there on."""
    time = np.arange(640 * 50) / SAMPLE_RATE
    tone = np.where(time >= 1.0, np.sin(2 * np.pi * 200 * time), 0).astype(np.float32)
    f0, _ = f0_praat(tone, 100)
    first_voiced = int(np.argmax(f0 > 0))
    assert abs((first_voiced + 1) * 0.02 - 1.0) <= 0.02


@pytest.mark.parametrize(("num_samples", "num_true_rows"), [(0, 0), (599, 0), (600, 1), (640, 1), (1280, 3)])
def test_shortest_clips(num_samples: int, num_true_rows: int) -> None:
    f0, num_rows = f0_praat(np.zeros(num_samples, np.float32), 4)
    assert num_rows == num_true_rows
    np.testing.assert_array_equal(f0, np.zeros(4, np.float32))


def test_last_row_is_repeated_or_cut() -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(640 * 10) / SAMPLE_RATE).astype(np.float32)
    longer, num_true_rows = f0_praat(tone, 24)
    assert num_true_rows == 19
    assert (longer[19:] == longer[18]).all()
    shorter, _ = f0_praat(tone, 15)
    np.testing.assert_array_equal(shorter, longer[:15])


def test_refuses_lengths_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="within 8"):
        f0_praat(np.zeros(6400, np.float32), 40)
    with pytest.raises(ValueError, match=r"must be \[n\]"):
        f0_praat(np.zeros((2, 6400), np.float32), 20)
