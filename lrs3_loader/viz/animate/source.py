"""What a generator of motion hears: the features of a sound file, or those that a run holds of a clip.

Letters: T frames, D width of the speech features, C numbers per frame of the motion, I identity modes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.audio.hubert import SpeechEncoder
from lrs3_loader.audio.mel import MelSpectrogram
from lrs3_loader.config import DecodeConfig, FaceConfig, SpeechConfig
from lrs3_loader.corpus.scan import key_part
from lrs3_loader.decode.audio import read_sound
from lrs3_loader.errors import ClipError, RunError
from lrs3_loader.extraction.models import load_face_model
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.reader import Run
from lrs3_loader.run.record import differences
from lrs3_loader.train.checkpoint import feature_differences
from lrs3_loader.types import FRAMES_PER_SECOND, ROWS_PER_FRAME, SAMPLES_PER_FRAME, Clip, ClipFeatures
from lrs3_loader.viz.preview.subject import Video, video_of_run

logger = logging.getLogger(__name__)

MIN_FRAMES = 5  # a fifth of a second: less holds no syllable
MAX_FRAMES = 15_000  # ten minutes


class Trained(Protocol):
    """The facts about a trained generator that animation needs; ``Audio2MotionCheckpoint`` has them."""

    @property
    def target(self) -> str:
        """Field that it generates: ``idexp_lm3d`` or ``exp``."""

    @property
    def speech(self) -> str:
        """The field of its speech features: ``hubert``, ``hubert_2`` ... or ``mel``."""

    @property
    def features(self) -> dict[str, Any]:
        """The models of the features that it was trained on, as ``feature_models`` gives them."""


@dataclass(frozen=True)
class Source:
    """One clip to be animated."""

    name: str
    waveform: np.ndarray  # [640 T] f32
    speech: torch.Tensor  # [2T, D] f32, of the field that the generator reads
    f0_hz: torch.Tensor  # [2T] f32, 0 = unvoiced
    mel: np.ndarray  # [2T, 80] f32
    id: torch.Tensor | None = None  # [I] f32, the person's identity where it is known
    motion: torch.Tensor | None = None  # [T, C] f32, the true motion where it is known
    video: Iterable[np.ndarray] | None = None  # frames [H, W, 3] u8 where there are some

    @property
    def num_frames(self) -> int:
        return len(self.speech) // ROWS_PER_FRAME


def from_sound(
    path: Path,
    trained: Trained,
    assets: Assets,
    device: torch.device,
    encoder: str | None = None,
    beside: Path | None = None,
) -> Source:
    """Compute the features of a sound file, or of the sound of a video, that a generator was trained on.

    Args:
        encoder: where the speech encoder is now, if not where the checkpoint says.
        beside: a video to be shown; if it is ``path`` itself, its sound begins with its first frame.

    Raises:
        RunError: the file holds no sound that can be read, or under 0.2 s or over ten minutes of it; the encoder is
            missing, or another one than the generator was trained on.
    """
    video = None if beside is None else _open_video(beside)
    if video is not None and beside is not None and beside.samefile(path):
        waveform = torch.from_numpy(video.waveform)
    else:
        try:
            waveform = read_sound(path, str(path), MAX_FRAMES).waveform
        except ClipError as error:
            raise RunError(f"cannot animate this sound ({error.reason}): {error}") from error
    num_frames = len(waveform) // SAMPLES_PER_FRAME
    if num_frames < MIN_FRAMES:
        raise RunError(f"cannot animate {path}: it lasts {num_frames / FRAMES_PER_SECOND:g} s, 0.2 s are the least")
    mel = MelSpectrogram()([waveform])[0]
    speech = mel if trained.speech == "mel" else _encode(waveform, trained, assets, device, encoder)
    f0_hz = torch.from_numpy(f0_praat(waveform.numpy(), len(mel))[0])
    frames = None if video is None else video.frames()
    return Source(path.name, waveform.numpy(), speech.float().cpu(), f0_hz, mel.numpy(), video=frames)


def _encode(
    waveform: torch.Tensor, trained: Trained, assets: Assets, device: torch.device, encoder: str | None
) -> torch.Tensor:
    """Rows [2T, D] of the encoder that the generator was trained on."""
    if trained.speech != "hubert":
        raise RunError(
            f"the generator was trained on {trained.speech}, whose encoder its checkpoint does not name: take the clip "
            "from a run that holds this field (--run RUN --key KEY)"
        )
    wanted: Mapping[str, Any] = trained.features["speech"]
    name = encoder or str(wanted["model"])
    config = SpeechConfig(model=assets.speech_encoder(name), layer=wanted["layer"])
    try:
        found = SpeechEncoder.load(config, device)
    except ValueError as error:
        raise RunError(f"{name} is not the speech encoder that the generator was trained on: {error}") from error
    described = found.description()
    changes = differences(_identity(wanted), _identity(described))
    if changes:
        raise RunError(
            f"{name} is not the speech encoder that the generator was trained on (trained on -> found): "
            f"{'; '.join(changes)}. Name the right one with --hubert"
        )
    return found([waveform])[0]


def _identity(speech: Mapping[str, Any]) -> dict[str, Any]:
    return {name: speech.get(name) for name in ("sha256", "layer", "width")}


def from_sample(
    run: Run, key: str, trained: Trained, features: Mapping[str, Any], corpus: Path | None, *, video: bool
) -> Source:
    """Take from a run the features, the identity and the true motion of a clip, and its sound.

    The sound is that of the sample (``--store-audio``), else that of the video; the video's frames are shown, else
    stored faces (``--store-face``), else nothing.

    Args:
        features: the models of the run's features.
        corpus: where the run's corpus is now, if not where it was.
        video: whether to look for pixels at all.

    Raises:
        RunError: there is no such clip, the run was extracted with other models, lacks a field, or there is no sound.
    """
    changes = feature_differences({name: trained.features.get(name) for name in features}, features)
    if changes:
        raise RunError(
            f"the generator was trained on other features than those of {run.path} (trained on -> found): "
            f"{'; '.join(changes)}"
        )
    try:
        sample = run[key]
    except KeyError as error:
        raise RunError(str(error.args[0])) from error
    needed = {trained.speech, trained.target, "f0", "mel", "id"}
    if missing := sorted(needed - sample.arrays.keys()):
        raise RunError(f"{key} of {run.path} has no {', '.join(missing)}: nothing to animate it from")
    filmed = _film(run, sample, corpus)
    if "audio" in sample.arrays:
        waveform = sample.arrays["audio"]
    elif filmed is not None:
        waveform = filmed.waveform
    else:
        raise RunError(
            f"{run.path} holds no sound of {key} (extract --resume {run.path} --add audio stores it), and its video is "
            "not here (name its corpus with --corpus)"
        )
    speech, f0_hz, fitted, motion = (
        torch.from_numpy(sample.arrays[name]).float() for name in (trained.speech, "f0", "id", trained.target)
    )
    id = fitted if features["idexp"] == "fit" else None  # that of a regression is not stored as id
    frames = None if not video else filmed.frames() if filmed is not None else sample.arrays.get("face")
    return Source(key, waveform, speech, f0_hz, sample.arrays["mel"], id, motion.flatten(1), frames)


def _film(run: Run, sample: ClipFeatures, corpus: Path | None) -> Video | None:
    try:
        return video_of_run(run.folder, sample.clip, corpus, sample.num_frames)
    except RunError as error:
        logger.info("without the video: %s", error)
        return None


def _open_video(path: Path) -> Video:
    if not path.is_file():
        raise RunError(f"no video to show beside: {path}")
    clip = Clip(f"animate/beside/{key_part(path.stem)}", path.name, path.stat().st_size)
    return Video(clip, path.parent, DecodeConfig(min_frames=1, max_frames=MAX_FRAMES))


def face_model_of(trained: Trained, name: str | None, assets: Assets) -> FaceModel:
    """Load the face model that a generator's motion is of, on the CPU.

    Args:
        name: where it is now; None: the name that the checkpoint says.

    Raises:
        RunError: it is missing or another one, or the landmarks are GeneFace's, which are not on the model's vertices.
    """
    if trained.features.get("idexp", "fit") == "geneface":
        raise RunError(
            "the generator was trained on GeneFace's landmark offsets, which lie beside the vertices of the landmarks: "
            "no mesh can be drawn from them. Train it on a run of --idexp-from fit"
        )
    wanted = trained.features["face_model"]
    name = name or str(wanted["name"])
    if name != "demo":
        assets.ensure_face_model(name)
    model = load_face_model(FaceConfig(name), assets)
    if wanted["sha256"] != model.source_sha256:
        raise RunError(
            f"the generator was trained on the face model {wanted['name']} with sha256 {str(wanted['sha256'])[:12]}"
            f"..., {name} here has {model.source_sha256[:12]}...: name the right one with --face-model"
        )
    return model
