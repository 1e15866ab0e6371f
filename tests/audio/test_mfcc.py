"""MFCC against python_speech_features, alone and in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import python_speech_features
import torch

from lrs3_loader.audio.mfcc import BLOCK_ROWS, Mfcc, filter_bank, liftered_cosines
from support.sounds import real_sounds, synthetic_sounds

TOLERANCE = 1e-4  # of values up to 60; measured 2e-6


def reference(waveform: np.ndarray) -> np.ndarray:
    """The rows of the package, of the audio as 16-bit samples: [4 T - 1, 13]."""
    samples = np.clip(np.round(waveform.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    return python_speech_features.mfcc(samples, 16000, numcep=13, winlen=0.025, winstep=0.010)


def check_against_reference(name: str, waveform: np.ndarray) -> None:
    (rows,) = Mfcc()([torch.from_numpy(waveform)])
    expected = reference(waveform)
    assert rows.dtype == torch.float32
    assert tuple(rows.shape) == (len(waveform) // 160, 13)
    assert len(expected) == len(rows) - 1
    np.testing.assert_allclose(rows[:-1].numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("name", synthetic_sounds())
def test_equals_the_package_on_extremes(name: str) -> None:
    check_against_reference(name, synthetic_sounds()[name])


def test_equals_the_package_on_real_clips(shared_data: Path) -> None:
    for name, waveform in real_sounds(shared_data).items():
        check_against_reference(name, waveform)


def test_the_added_row_is_that_of_audio_that_goes_on_in_silence() -> None:
    waveform = torch.randn(640 * 3, generator=torch.Generator().manual_seed(0)) * 0.1
    waveform[-1] = 0  # pre-emphasis takes the last sample into the first of the silence
    (rows,) = Mfcc()([waveform])
    longer = reference(torch.cat([waveform, torch.zeros(640)]).numpy())
    np.testing.assert_allclose(rows.numpy(), longer[: len(rows)], rtol=0, atol=TOLERANCE)


def test_filters_and_cosines() -> None:
    expected = python_speech_features.get_filterbanks(26, 512, 16000)
    np.testing.assert_allclose(filter_bank(), expected.T, rtol=0, atol=1e-12)
    cosines = liftered_cosines() / python_speech_features.lifter(np.ones((1, 13)))
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(13), rtol=0, atol=1e-12)


@pytest.mark.smoke
def test_neighbours_in_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    # loud beside silent, and the shortest clip there is
    clips = [torch.randn(640 * t, generator=generator) * scale for t, scale in ((25, 0.3), (1, 1e-3), (4, 0.0), (3, 1))]
    mfcc = Mfcc()
    alone = [mfcc([clip])[0] for clip in clips]
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 7)
    for one, many in zip(alone, mfcc(clips), strict=True):
        torch.testing.assert_close(many, one, rtol=0, atol=1e-5)
    assert [len(rows) for rows in alone] == [100, 4, 16, 12]
    assert mfcc([]) == []


def test_a_waveform_of_no_whole_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="640"):
        Mfcc()([torch.zeros(641)])
