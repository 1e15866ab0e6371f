"""Mel spectrogram against librosa, alone and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrs3_loader.audio.mel import BLOCK_ROWS, MelSpectrogram, slaney_mel_basis
from support.paths import TESTS
from support.sounds import real_sounds, synthetic_sounds

TOLERANCE = 1e-5  # log10 units; measured 5e-7


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What librosa computes, by ``golden/make_mel.py``."""
    return dict(np.load(TESTS / "golden" / "mel_librosa.npz"))


def reference_mel(waveform: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Row by row in float64: [2 T - 1, 80]."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    starts = range(0, len(waveform) - 511, 320)
    amplitudes = [np.abs(np.fft.rfft(hann * waveform[start : start + 512].astype(np.float64))) for start in starts]
    return np.log10(np.maximum(1e-6, np.stack(amplitudes) @ basis.T))


def check_against_reference(name: str, waveform: np.ndarray, golden: dict[str, np.ndarray]) -> None:
    (mel,) = MelSpectrogram()([torch.from_numpy(waveform)])
    want = reference_mel(waveform, golden["basis"])
    assert mel.dtype == torch.float32
    assert tuple(mel.shape) == (len(waveform) // 320, 80)
    assert len(want) == len(mel) - 1
    np.testing.assert_allclose(mel[:-1].numpy(), want, rtol=0, atol=TOLERANCE, err_msg=name)
    if name in golden:
        np.testing.assert_allclose(mel[:-1:7].numpy(), golden[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert torch.equal(mel[-1], mel[-2])


@pytest.mark.parametrize("name", synthetic_sounds())
def test_equals_librosa_on_extremes(name: str, golden: dict[str, np.ndarray]) -> None:
    assert name in golden
    check_against_reference(name, synthetic_sounds()[name], golden)


def test_equals_the_definition_on_real_clips(shared_data: Path, golden: dict[str, np.ndarray]) -> None:
    waveforms = real_sounds(shared_data)
    assert len(waveforms) >= 5
    for name, waveform in waveforms.items():
        check_against_reference(name, waveform, golden)


@pytest.mark.smoke
def test_silence_lies_on_the_floor() -> None:
    (mel,) = MelSpectrogram()([torch.zeros(640 * 3)])
    assert torch.equal(mel, torch.full((6, 80), -6.0))


def test_basis_equals_librosa(golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(slaney_mel_basis(), golden["basis"], rtol=0, atol=1e-12)


@pytest.mark.smoke
def test_neighbours_in_a_batch_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    # loud beside silent, and the shortest clip there is
    clips = [
        torch.randn(640 * t, generator=generator) * scale for t, scale in ((125, 1.0), (1, 1e-3), (40, 0.0), (3, 1))
    ]
    mel = MelSpectrogram()
    for alone, together in zip((mel([clip])[0] for clip in clips), mel(clips), strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert [len(rows) for rows in mel(clips)] == [250, 2, 80, 6]


def test_long_clips_are_transformed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(640 * 50, generator=torch.Generator().manual_seed(0))
    (want,) = MelSpectrogram()([waveform])
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 7)
    (got,) = MelSpectrogram()([waveform])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.smoke
def test_batch_tensor_and_empty_list() -> None:
    waveform = torch.randn(2, 640 * 4, generator=torch.Generator().manual_seed(0))
    mel = MelSpectrogram()
    for got, want in zip(mel(waveform), mel(list(waveform)), strict=True):
        assert torch.equal(got, want)
    assert mel([]) == []


@pytest.mark.parametrize("shape", [(0,), (641,), (2, 640)])
def test_refuses_broken_lengths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 640"):
        MelSpectrogram()([torch.zeros(shape)])


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    waveforms = [torch.from_numpy(waveform) for waveform in synthetic_sounds().values()]
    on_gpu = MelSpectrogram().cuda()(waveforms)
    for got, want in zip(on_gpu, MelSpectrogram()(waveforms), strict=True):
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=TOLERANCE)
