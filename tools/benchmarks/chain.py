"""The peers chained as GeneFace chains them: one script after another, each re-reading every file, files in between.

video -> wav · wav -> mel and F0 · wav -> HuBERT · video -> landmarks · video + landmarks -> Deep3D coefficients ·
landmarks -> fitted coefficients · all of it -> one binary file

Kinder than the original where that could not be measured fairly: no process is started for a file, decoding is
PyAV's own, a video is read whole rather than frame by frame.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from scipy.io import wavfile

from benchmarks.peers import SAMPLE_RATE, LibrosaMel, MediaPipeLandmarks, PillowResNet, praat_pitch
from lrs3_loader.face.geometry.topology import to_ibug68


@dataclass(frozen=True)
class Source:
    """A clip on disk."""

    name: str  # without slashes
    video: Path  # with its sound


@dataclass(frozen=True)
class Peers:
    """The models of all scripts, loaded."""

    mel: LibrosaMel
    hubert: Callable[[np.ndarray], np.ndarray]
    landmarks: MediaPipeLandmarks
    coefficients: PillowResNet
    fit: Callable[[np.ndarray, int, int], Mapping[str, np.ndarray]]  # ([T, 68, 2], height, width) of a clip


def run_chain(sources: Sequence[Source], folder: Path, peers: Peers) -> dict[str, float]:
    """Put all clips through every script, one script after another; seconds of each."""
    scripts: dict[str, Callable[[Source], None]] = {
        "wav": lambda source: _write_wav(source, folder),
        "mel, F0": lambda source: _mel_f0(source, folder, peers.mel),
        "hubert": lambda source: _hubert(source, folder, peers.hubert),
        "landmarks": lambda source: _landmarks(source, folder, peers.landmarks),
        "coefficients": lambda source: _coefficients(source, folder, peers.coefficients),
        "fit": lambda source: _fit(source, folder, peers.fit),
    }
    seconds = {}
    for name, script in scripts.items():
        started = time.perf_counter()
        for source in sources:
            script(source)
        seconds[name] = time.perf_counter() - started
    started = time.perf_counter()
    _binarise(sources, folder)
    seconds["binarise"] = time.perf_counter() - started
    return seconds


def _write_wav(source: Source, folder: Path) -> None:
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(source.video)) as container:
        frames = [new for old in container.decode(audio=0) for new in resampler.resample(old)]
    frames += resampler.resample(None)
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    wavfile.write(folder / f"{source.name}.wav", SAMPLE_RATE, samples)


def _read_wav(source: Source, folder: Path) -> np.ndarray:
    return wavfile.read(folder / f"{source.name}.wav")[1].astype(np.float32) / 32768


def _mel_f0(source: Source, folder: Path, mel: LibrosaMel) -> None:
    waveform = _read_wav(source, folder)
    rows = mel(waveform).T
    pitch = praat_pitch(waveform)[: len(rows)]
    np.save(folder / f"{source.name}.mel.npy", {"mel": rows, "f0": pitch}, allow_pickle=True)  # type: ignore[arg-type]


def _hubert(source: Source, folder: Path, hubert: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / f"{source.name}.hubert.npy", hubert(_read_wav(source, folder)))


def _read_video(source: Source) -> np.ndarray:
    with av.open(str(source.video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _landmarks(source: Source, folder: Path, landmarks: MediaPipeLandmarks) -> None:
    frames = _read_video(source)
    dense = torch.from_numpy(np.stack([landmarks(frame) for frame in frames]))
    lm68 = to_ibug68(dense).numpy()
    missing = ~np.isfinite(lm68).all((1, 2))
    lm68[missing] = np.nanmean(lm68, 0) if not missing.all() else 0.0
    np.save(folder / f"{source.name}.lm68.npy", lm68)


def _coefficients(source: Source, folder: Path, network: PillowResNet) -> None:
    landmarks = np.load(folder / f"{source.name}.lm68.npy")
    np.save(folder / f"{source.name}.coeff.npy", network(_read_video(source), landmarks))


def _fit(source: Source, folder: Path, fit: Callable[[np.ndarray, int, int], Mapping[str, np.ndarray]]) -> None:
    height, width = _read_video(source).shape[1:3]  # as the original does, to learn the size
    found = fit(np.load(folder / f"{source.name}.lm68.npy"), height, width)
    np.save(folder / f"{source.name}.fit.npy", dict(found), allow_pickle=True)  # type: ignore[arg-type]


def _binarise(sources: Sequence[Source], folder: Path) -> None:
    with open(folder / "all.data", "wb") as file:
        for source in sources:
            item: dict[str, Any] = {"item_id": source.name}
            for kind in ("mel", "hubert", "lm68", "coeff", "fit"):
                item[kind] = np.load(folder / f"{source.name}.{kind}.npy", allow_pickle=True)
            pickle.dump(item, file)
