"""The packages that people use today for each stage, called as its documentation or GeneFace's scripts call it.

Each is built once (loading is not timed) and then called; packages that are no dependency are imported when built, and
an ``ImportError`` is the caller's to deal with. All run in float32.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import parselmouth
import torch
from torch import nn
from torchvision.models import resnet50
from transformers import AutoFeatureExtractor, HubertModel

from benchmarks.inputs import no_progress_bars
from benchmarks.pillow_alignment import align_frame
from lrs3_loader.face.deep3d.regressor import Deep3DFiles

SAMPLE_RATE = 16_000
RESNET_BATCH = 32
CHUNK_HOP, CHUNK_OVERLAP = 320_000, 80  # samples: GeneFace's stretches of 20 s


class UnavailableError(Exception):
    """A peer cannot run on the model files that are here; the message says which file it lacks."""


class LibrosaMel:
    """log10 mel amplitude, one file at a time.

    ``keep_filters``: build the filter matrix once, not in each call as ``librosa.feature.melspectrogram`` (and
    GeneFace's own function around it) does.
    """

    def __init__(self, keep_filters: bool = False) -> None:
        import librosa

        self._librosa = librosa
        self._filters = None
        if keep_filters:
            self._filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=512, n_mels=80, fmin=80, fmax=7600)
        self(np.zeros(SAMPLE_RATE, dtype=np.float32))  # librosa loads its parts when they are first used

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """[n] -> [80, rows]."""
        framing: dict[str, Any] = {"n_fft": 512, "hop_length": 320, "win_length": 512, "center": False}
        if self._filters is None:
            mel = self._librosa.feature.melspectrogram(
                y=waveform, sr=SAMPLE_RATE, **framing, power=1.0, n_mels=80, fmin=80, fmax=7600
            )
        else:
            mel = self._filters @ np.abs(self._librosa.stft(waveform, **framing))
        return np.log10(np.maximum(1e-6, mel))


def praat_pitch(waveform: np.ndarray) -> np.ndarray:
    """F0 in Hz, [rows], one file at a time."""
    sound = parselmouth.Sound(waveform.astype(np.float64), sampling_frequency=SAMPLE_RATE)
    pitch = sound.to_pitch_ac(time_step=0.02, voicing_threshold=0.6, pitch_floor=80, pitch_ceiling=750)
    return pitch.selected_array["frequency"]


class TransformersHubert:
    """transformers' HuBERT, one file at a time, in stretches of 20 s."""

    def __init__(self, folder: str, device: torch.device) -> None:
        self._processor = AutoFeatureExtractor.from_pretrained(folder)
        with no_progress_bars():
            model: Any = HubertModel.from_pretrained(folder)
        self._model = model.eval().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """[n] -> [(n - 80) // 320, D]."""
        values = self._processor(waveform, return_tensors="pt", sampling_rate=SAMPLE_RATE).input_values
        values = values.to(self._device)
        parts = []
        for start in range(0, values.shape[1], CHUNK_HOP):
            part = values[:, start : start + CHUNK_HOP + CHUNK_OVERLAP]
            if part.shape[1] >= 400:
                parts.append(self._model(part).last_hidden_state[0].cpu())
        return torch.cat(parts).numpy()


class MediaPipeLandmarks:
    """The mediapipe package's face landmarker, one frame at a time (IMAGE mode), with blendshapes, on the CPU."""

    def __init__(self, task: Path) -> None:
        if task.is_dir():
            raise UnavailableError("MediaPipe's landmarker reads only the .task file, and the older networks are here")
        with _quiet_native():
            import mediapipe

            tasks: Any = mediapipe.tasks
            self._mediapipe: Any = mediapipe
            options = tasks.vision.FaceLandmarkerOptions(
                base_options=tasks.BaseOptions(model_asset_path=str(task)), output_face_blendshapes=True, num_faces=1
            )
            self._landmarker = tasks.vision.FaceLandmarker.create_from_options(options)
            self(np.zeros((64, 64, 3), dtype=np.uint8))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """u8 [H, W, 3] -> [478, 2] pixels, NaN where no face was found."""
        image = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        faces = self._landmarker.detect(image).face_landmarks
        if not faces:
            return np.full((478, 2), np.nan, dtype=np.float32)
        height, width = frame.shape[:2]
        return np.array([(point.x * width, point.y * height) for point in faces[0]], dtype=np.float32)

    def close(self) -> None:
        self._landmarker.close()


class PillowResNet:
    """Deep3DFaceRecon: every frame aligned by Pillow, then torchvision's ResNet-50 in batches of 32."""

    def __init__(self, files: Deep3DFiles, device: torch.device) -> None:
        self._device = device
        self._standard = files.standard.numpy()
        self._network: Any = resnet50(num_classes=1)
        backbone = {k.removeprefix("backbone."): v for k, v in files.weights.items() if k.startswith("backbone.")}
        self._network.fc = nn.Identity()
        self._network.load_state_dict(backbone)
        self._network.eval().to(device)
        self._heads: Any = nn.ModuleList(
            nn.Conv2d(2048, len(files.weights[f"final_layers.{i}.bias"]), 1) for i in range(7)
        )
        heads = {k.removeprefix("final_layers."): v for k, v in files.weights.items() if k.startswith("final_layers.")}
        self._heads.load_state_dict(heads)
        self._heads.to(device)

    @torch.no_grad()
    def __call__(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """u8 [n, H, W, 3], [n, 68, 2] -> [n, 257]."""
        results = []
        for start in range(0, len(frames), RESNET_BATCH):
            part = slice(start, start + RESNET_BATCH)
            crops = [
                align_frame(frame, points, self._standard)
                for frame, points in zip(frames[part], landmarks[part], strict=True)
            ]
            pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self._device).float() / 255
            features = self._network(pictures.contiguous())[..., None, None]
            results.append(torch.cat([head(features) for head in self._heads], 1).flatten(1).cpu())
        return torch.cat(results).numpy()


def concatenated(parts: Sequence[np.ndarray]) -> torch.Tensor:
    """The peers' rows of several clips as one tensor."""
    return torch.from_numpy(np.concatenate(parts))


@contextlib.contextmanager
def _quiet_native() -> Iterator[None]:
    """Native code's lines on stderr, which no logging level reaches, go nowhere meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
