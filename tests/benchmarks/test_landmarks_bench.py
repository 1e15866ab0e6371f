"""The 68 landmarks beside those of dlib, where it and its predictor are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import landmarks
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import CorpusConfig, DecodeConfig
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.demo import demo_head
from lrs3_loader.errors import RunError
from lrs3_loader.face.landmarks.landmarker import FaceLandmarker, load_landmarker_files


@pytest.fixture(scope="module")
def dlib() -> landmarks.DlibLandmarks:
    try:
        return landmarks.DlibLandmarks()
    except RunError as error:
        pytest.skip(str(error))


@pytest.mark.shared
def test_eyes_nose_and_mouth_are_where_dlib_sees_them(
    shared_data: Path, shared_assets: Path, dlib: landmarks.DlibLandmarks
) -> None:
    """On nine clips of four people. The contour means another thing on heads that turn, and so do brows a little."""
    config = CorpusConfig(corpus=shared_data / "lrs3_mini", layout="folder")
    dataset = ClipDataset(corpus_root(config), DecodeConfig(), f0_praat)
    landmarker = FaceLandmarker(load_landmarker_files(shared_assets / "face_landmarker.task"), batch_size=32)
    found = [landmarks.compare_clip(clip, dataset, landmarker, dlib, step=20) for clip in scan_corpus(config)]
    assert len(found) == 9
    for each in found:
        assert len(each.distances) > 0.7 * each.num_frames, each.name
        for region, bound in (("eyes", 0.02), ("nose", 0.03), ("mouth", 0.03), ("brows", 0.07), ("contour", 0.08)):
            assert 0 < each.of(region) < bound, (each.name, region)  # measured: 0.016, 0.019, 0.021, 0.058, 0.065


def test_distances_are_those_of_the_same_face() -> None:
    face = 100 * demo_head().landmark_mean[:, :2].double().numpy()
    size = np.sqrt(np.ptp(face, axis=0).prod())
    shift = size * np.array([0.03, 0.04])
    (distances,) = landmarks._distances(face, [face + 3 * size, face + shift])
    assert distances == pytest.approx(np.full(68, 0.05))
    assert landmarks._distances(face, [face + 3 * size]) == []
    agreement = landmarks.Agreement("one", 2, np.where(np.arange(68) < 48, 0.02, 0.01)[None])
    assert agreement.of("eyes") == pytest.approx(0.02)
    assert agreement.of("mouth") == pytest.approx(0.01)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(RunError, match="pip install dlib-bin"):
        landmarks.DlibLandmarks()
    monkeypatch.setitem(sys.modules, "dlib", torch)  # any module
    with pytest.raises(RunError, match="apt-get install libdlib-data"):
        landmarks.DlibLandmarks(tmp_path / "absent.dat")
