"""Figures of audio, mouth and speech on signals that are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from lrs3_loader.errors import RunError
from lrs3_loader.quality.audio import audio_figures, decibels, speech_by_energy
from lrs3_loader.quality.mouth import lag_figures, mouth_figures
from lrs3_loader.quality.speech import SileroNetwork, SpeechDetector, silero_file

RATE = 16_000
NUM = 125  # frames: 5 s
TIME = np.arange(640 * NUM) / RATE


def tone(amplitude: float = 0.5, frequency: float = 437.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * TIME)).astype(np.float32)


def noise(level: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, len(TIME)).astype(np.float32)


def bursts(share: float) -> np.ndarray:
    """1 where the second half of each second is on."""
    return (TIME % 1.0 + share >= 1).astype(np.float32)


def test_level_and_clipping() -> None:
    assert audio_figures(tone(0.5))["audio_level_db"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert audio_figures(tone(0.5))["audio_clipped_share"] == 0
    clipped = np.clip(tone(2.0), -1, 1)
    assert audio_figures(clipped)["audio_clipped_share"] == pytest.approx(1 - 2 * np.arcsin(0.495) / np.pi, abs=2e-3)


@pytest.mark.parametrize("snr_db", [10.0, 20.0, 40.0])
def test_noise_floor_and_snr(snr_db: float) -> None:
    deviation = 0.5 / np.sqrt(2) / 10 ** (snr_db / 20)
    figures = audio_figures(tone() * bursts(0.52) + noise(deviation))
    assert figures["audio_noise_db"] == pytest.approx(20 * np.log10(deviation), abs=0.7)
    assert figures["audio_snr_db"] == pytest.approx(snr_db, abs=0.8)


@pytest.mark.parametrize("cutoff", [2000, 3400, 6000])
def test_bandwidth(cutoff: int) -> None:
    taps = scipy.signal.firwin(801, cutoff, fs=RATE, window=("kaiser", 12))
    figures = audio_figures(np.convolve(noise(0.1), taps, "same").astype(np.float32))
    assert figures["audio_bandwidth_hz"] == pytest.approx(cutoff, abs=200)
    assert audio_figures(noise(0.1))["audio_bandwidth_hz"] == RATE / 2


def test_silence_has_no_snr_and_no_spectrum() -> None:
    figures = audio_figures(np.zeros(6400, np.float32))
    assert figures["silent_share"] == 1
    assert figures["audio_level_db"] == -120
    assert np.isnan(figures["audio_bandwidth_hz"])
    assert "audio_snr_db" not in figures
    half = audio_figures(tone() * (TIME < 2.0))
    assert half["silent_share"] == pytest.approx(0.6)


def test_speech_by_energy_bridges_short_pauses_only() -> None:
    assert speech_by_energy(noise(1e-4)) == 0
    assert speech_by_energy(tone() * (TIME < 2.0)) == pytest.approx(0.4)
    assert speech_by_energy(tone() * (((TIME % 1.0) < 0.84) | (TIME % 1.0 >= 1))) == pytest.approx(1 - 4 / NUM)
    assert speech_by_energy(tone() * bursts(0.52)) == pytest.approx(0.52)


def test_decibels_of_a_full_sine() -> None:
    assert decibels(0.5) == pytest.approx(-3.01, abs=0.01)


def speaking_mouth(lag: int) -> tuple[np.ndarray, np.ndarray]:
    """A mouth that opens and shuts at random, and a tone that is as loud ``lag`` frames later."""
    opening = np.convolve(np.random.default_rng(3).uniform(0, 1, NUM + 60), np.ones(3) / 3, "same")
    lm68 = np.zeros((NUM, 68, 2), np.float32)
    lm68[:, 0], lm68[:, 1] = (0, 0), (100, 100)
    lm68[:, 62], lm68[:, 66] = (50, 70), np.stack([np.full(NUM, 50), 70 + 20 * opening[30 : 30 + NUM]], 1)
    loud = 10 ** (-1.5 + opening[30 - lag : 30 - lag + NUM])
    return lm68, (np.repeat(loud, 640) * tone(0.3)).astype(np.float32)


@pytest.mark.parametrize("lag", [-7, 0, 4])
def test_the_lag_between_mouth_and_loudness_is_found(lag: int) -> None:
    lm68, waveform = speaking_mouth(lag)
    figures = mouth_figures(lm68, np.ones(NUM, bool), waveform)
    assert figures["mouth_audio_lag"] == lag
    assert figures["mouth_audio_correlation"] > 0.9
    opening = lm68[:, 66, 1] - 70
    assert figures["mouth_range"] == pytest.approx(np.subtract(*np.percentile(opening, (95, 5))), rel=1e-4)
    assert figures["mouth_speed"] == pytest.approx(25 * np.sqrt(np.square(np.diff(opening)).mean()), rel=1e-4)


def test_no_lag_without_sound_motion_or_length() -> None:
    random = np.random.default_rng(0)
    assert lag_figures(random.uniform(size=100), np.full(100, -60.0)) == {}
    assert lag_figures(np.ones(100), random.uniform(size=100)) == {}
    assert lag_figures(random.uniform(size=30), random.uniform(size=30)) == {}


needs_silero = pytest.mark.skipif(silero_file() is None, reason="silero-vad is not installed (the extra quality)")


@needs_silero
@torch.inference_mode()
def test_silero_equals_its_own_model_window_by_window() -> None:
    """The package's scripted model, fed one window after another, with its weights in our network."""
    path = silero_file()
    assert path is not None
    script = torch.jit.load(str(path.with_name("silero_vad.jit"))).eval()
    names = {"stft_conv.weight": "stft.forward_basis_buffer", "final_conv.weight": "decoder.decoder.2.weight"}
    names |= {f"conv{i + 1}.{p}": f"encoder.{i}.reparam_conv.{p}" for i in range(4) for p in ("weight", "bias")}
    names |= {f"lstm_cell.{p}_l0": f"decoder.rnn.{p}" for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    names["final_conv.bias"] = "decoder.decoder.2.bias"
    weights = script._model.state_dict()
    network = SileroNetwork()
    network.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * 3 * TIME)
    voice = sum(scipy.signal.sawtooth(2 * np.pi * 120 * k * TIME) / k for k in (1, 2, 3)) * envelope
    waveform = torch.from_numpy((0.2 * voice + noise(0.01)).astype(np.float32))[: 512 * 60 + 100]
    padded = torch.nn.functional.pad(waveform, (0, 412))
    expected = torch.cat([script(window, RATE).flatten() for window in padded.split(512)])
    assert float(expected.max()) > 0.1
    torch.testing.assert_close(network(waveform), expected, atol=1e-4, rtol=0)


@needs_silero
def test_silero_hears_no_speech_in_silence_and_noise() -> None:
    detector = SpeechDetector.load("silero")
    assert detector.record["sha256"]
    assert detector([torch.zeros(16_000), torch.from_numpy(noise(0.05))]) == [0, 0]


def test_a_detector_that_is_missing_or_damaged_is_one_line(tmp_path, monkeypatch) -> None:
    damaged = tmp_path / "silero_vad_16k.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(RunError, match="not the network of silero-vad"):
        SileroNetwork.load(damaged)
    monkeypatch.setattr("lrs3_loader.quality.speech.silero_file", lambda: None)
    with pytest.raises(RunError, match="pip install"):
        SpeechDetector.load("silero")
    assert SpeechDetector.load("energy")([torch.from_numpy(tone())]) == [1.0]
