"""Nonsense syllables: speech-like audio, and the articulation that goes with it, from the same few curves.

The opening of the jaw sets loudness and the first formant, the rounding of the lips the second, so that the visible
mouth can be predicted from the audio, as in real speech. The audio is a sum of the voice's harmonics, weighted by the
formants' resonance curves (Fant's source-filter model), plus noise for the fricatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME

CURVE_RATE = 400  # of the curves below, in Hz; a multiple of the frame rate
_PER_FRAME = CURVE_RATE // FRAMES_PER_SECOND
_COARTICULATION_SECONDS = 0.028  # deviation of the blur between neighbouring phones

# phone: jaw opening 0..1, lips -1 rounded .. 1 spread
_VOWELS = {"A": (0.95, 0.0), "E": (0.55, 0.55), "I": (0.25, 1.0), "O": (0.60, -0.65), "U": (0.28, -1.0)}
# phone: jaw, lips (None: as the vowel), voice 0..1, hiss 0..1, lips pressed 0..1
_CONSONANTS: dict[str, tuple[float, float | None, float, float, float]] = {
    "M": (0.0, None, 0.45, 0.0, 1.0),
    "B": (0.0, None, 0.10, 0.0, 1.0),
    "P": (0.0, None, 0.0, 0.05, 1.0),
    "L": (0.25, 0.2, 0.60, 0.0, 0.0),
    "N": (0.15, None, 0.50, 0.0, 0.0),
    "S": (0.08, 0.5, 0.0, 0.50, 0.0),
    "SH": (0.10, -0.6, 0.0, 0.45, 0.0),
    "F": (0.06, 0.1, 0.0, 0.22, 0.4),
    "T": (0.10, None, 0.0, 0.30, 0.0),
    "W": (0.12, -1.0, 0.60, 0.0, 0.0),
}


@dataclass(frozen=True)
class Voice:
    """Voice of one speaker."""

    pitch_hz: float
    tract: float  # scale of all formants; above 1 for a shorter vocal tract
    pace: float  # syllables are this many times longer

    @staticmethod
    def of(number: int, generator: np.random.Generator) -> Voice:
        """Draw the voice of speaker ``number``; neighbours differ clearly."""
        pitch = (205.0, 112.0, 232.0, 138.0, 178.0, 98.0)[number % 6]
        return Voice(
            pitch_hz=pitch * float(generator.uniform(0.95, 1.05)),
            tract=1.12 if pitch > 160 else float(generator.uniform(0.96, 1.02)),
            pace=float(generator.uniform(0.9, 1.12)),
        )


@dataclass(frozen=True)
class Speech:
    """Speech of a clip of T frames: words and articulation curves [16 T] at ``CURVE_RATE``."""

    words: tuple[tuple[str, float, float], ...]  # (word, start, end) in seconds
    jaw: np.ndarray  # 0..1
    lips: np.ndarray  # -1 rounded .. 1 spread
    press: np.ndarray  # 0..1, lips pressed together
    voiced: np.ndarray  # 0..1
    hiss: np.ndarray  # 0..1
    stress: np.ndarray  # 0..1, raises pitch, brows and head

    def at_frames(self, curve: np.ndarray) -> np.ndarray:
        """Average a curve [16 T] over each video frame [T]."""
        return curve.reshape(-1, _PER_FRAME).mean(1)


def make_speech(num_frames: int, voice: Voice, generator: np.random.Generator) -> Speech:
    """Draw words until the clip is full. It holds at least one, which may be of one syllable."""
    jaw, lips, press, voiced, hiss, stress = curves = np.zeros((6, num_frames * _PER_FRAME))
    words: list[tuple[str, float, float]] = []
    time = float(generator.uniform(0.06, 0.16))
    last = num_frames / FRAMES_PER_SECOND - 0.10
    while True:
        phones = _draw_word(voice, generator)
        while not words and len(phones) > 2 and time + sum(seconds for _, seconds in phones) > last:
            phones = phones[:-2]
        if words and time + sum(seconds for _, seconds in phones) > last:
            break
        start, name = time, "".join(letters for letters, _ in phones)
        accent = float(generator.uniform(0.3, 1.0))
        for index, (_, seconds) in enumerate(phones):
            here = slice(round(time * CURVE_RATE), round((time + seconds) * CURVE_RATE))
            curves[:, here] = np.array(_targets(phones, index, accent))[:, None]
            time += seconds
        words.append((name, start, time))
        time += float(generator.choice([0.05, 0.09, 0.28], p=[0.45, 0.35, 0.2]))
    blur, sharp = _COARTICULATION_SECONDS * CURVE_RATE, 0.010 * CURVE_RATE
    return Speech(
        words=tuple(words),
        jaw=gaussian_filter1d(jaw, blur),
        lips=gaussian_filter1d(lips, 1.4 * blur),
        press=gaussian_filter1d(press, 0.8 * blur),
        voiced=gaussian_filter1d(voiced, sharp),
        hiss=gaussian_filter1d(hiss, sharp),
        stress=gaussian_filter1d(stress, 3 * blur),
    )


def _targets(phones: list[tuple[str, float]], index: int, accent: float) -> tuple[float, ...]:
    """Articulation targets of one phone of a word: jaw, lips, press, voiced, hiss, stress."""
    letters = phones[index][0]
    if letters in _VOWELS:
        return (*_VOWELS[letters], 0.0, 1.0, 0.0, accent if index == 1 else 0.0)
    jaw, lips, voiced, hiss, press = _CONSONANTS[letters]
    if lips is None:
        lips = 0.7 * _VOWELS[phones[index + 1][0]][1]
    return jaw, lips, press, voiced, hiss, 0.0


def _draw_word(voice: Voice, generator: np.random.Generator) -> list[tuple[str, float]]:
    """One to three times a consonant and a vowel: (letters, seconds) of each phone."""
    phones: list[tuple[str, float]] = []
    for _ in range(int(generator.integers(1, 4))):
        consonant = str(generator.choice(sorted(_CONSONANTS)))
        vowel = str(generator.choice(sorted(_VOWELS)))
        phones.append((consonant, voice.pace * float(generator.uniform(0.07, 0.11))))
        phones.append((vowel, voice.pace * float(generator.uniform(0.13, 0.24))))
    return phones


def synthesise(speech: Speech, voice: Voice, generator: np.random.Generator) -> np.ndarray:
    """Return the waveform [640 T] f32 in [-1, 1], 16 kHz mono."""
    num = len(speech.jaw) // _PER_FRAME * SAMPLES_PER_FRAME
    pitch = _pitch(speech, voice, generator)
    loudness = speech.voiced * (0.18 + 0.82 * speech.jaw)
    waveform = _harmonics(_formants(speech, voice), pitch, loudness, num)
    waveform = waveform + 0.10 * _upsample(speech.hiss, num) * _hiss(num, generator)
    waveform = 0.6 * waveform / np.abs(waveform).max() + 3e-4 * generator.standard_normal(num)  # a quiet room
    return waveform.astype(np.float32)


def _pitch(speech: Speech, voice: Voice, generator: np.random.Generator) -> np.ndarray:
    """F0 [16 T] in Hz; it falls over the clip, rises with stress and drifts a little."""
    num = len(speech.jaw)
    drift = gaussian_filter1d(generator.standard_normal(num), 0.12 * CURVE_RATE)
    drift /= max(float(np.abs(drift).max()), 1e-9)
    return voice.pitch_hz * (1.06 - 0.14 * np.linspace(0, 1, num) + 0.22 * speech.stress + 0.04 * drift)


def _formants(speech: Speech, voice: Voice) -> np.ndarray:
    """Formants [4, 16 T] in Hz; the jaw moves the first, the lips the second and a little the third."""
    first = 270.0 + 620.0 * speech.jaw
    second = 1350.0 + np.where(speech.lips > 0, 900.0, 650.0) * speech.lips
    third = 2500.0 + 300.0 * speech.lips
    return voice.tract * np.stack([first, second, third, np.full_like(first, 3500.0)])


def _harmonics(formants: np.ndarray, pitch: np.ndarray, loudness: np.ndarray, num: int) -> np.ndarray:
    """Sum over k of ``loudness / k * |H(k F0)| * sin(2 pi k phase)``, H the product of the formants' resonances."""
    bandwidths = np.array([70.0, 100.0, 150.0, 220.0])[:, None]
    phase = 2 * np.pi * np.cumsum(_upsample(pitch, num)) / SAMPLE_RATE
    total = np.zeros(num)
    for k in range(1, int(5500.0 / pitch.min()) + 1):
        ratio = k * pitch / formants
        response = 1.0 / np.hypot(1.0 - ratio**2, k * pitch * bandwidths / formants**2)
        gain = loudness / k * response.prod(0) * np.clip((6500.0 - k * pitch) / 1000.0, 0.0, 1.0)
        total += _upsample(gain, num) * np.sin(k * phase)
    return total


def _hiss(num: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of unit deviation between 2.5 and 7.5 kHz."""
    spectrum = np.fft.rfft(generator.standard_normal(num))
    hertz = np.fft.rfftfreq(num, 1.0 / SAMPLE_RATE)
    band = np.clip((hertz - 2500.0) / 1500.0, 0.0, 1.0) * np.clip((7500.0 - hertz) / 500.0, 0.0, 1.0)
    noise = np.fft.irfft(spectrum * band, num)
    return noise / noise.std()


def _upsample(curve: np.ndarray, num: int) -> np.ndarray:
    """Interpolate a curve [16 T] at the rate of the audio [640 T]; a point stands for the middle of its interval."""
    step = num / len(curve)
    return np.interp(np.arange(num) + 0.5, (np.arange(len(curve)) + 0.5) * step, curve)
