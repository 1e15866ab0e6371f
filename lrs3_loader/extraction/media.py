"""Cuts and encodes the pixels and the audio that a run stores by choice, while the frames of a shard pass.

Crops are cut on the device. The host encodes the crops of one batch while the device works on the next: a clip's
encoder holds its compressed frames, so that no pixels wait for the end of the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lrs3_loader.config import MediaConfig
from lrs3_loader.errors import TooLargeError
from lrs3_loader.extraction.batch import FrameSpan
from lrs3_loader.face.geometry.topology import to_ibug68
from lrs3_loader.face.image.alignment import (
    FACE_RULE,
    MOUTH_RULE,
    MOUTH_SIZE,
    AlignedFaces,
    FaceAligner,
    cut,
    oversampling_of,
)
from lrs3_loader.face.image.colour import grey_to_yuv420, to_grey, to_yuv420
from lrs3_loader.face.landmarks.landmarker import FrameLandmarks
from lrs3_loader.io.media_codec import MAX_VIDEO_BYTES, VideoEncoder, encode_flac
from lrs3_loader.runtime.pipelining import BackgroundTask, one_behind
from lrs3_loader.runtime.transfer import HostCopy, to_device

_FRAMES_AT_A_TIME = 32  # that are oversampled: 100 MB of 256 x 256 crops


class ClipMedia:
    """The crops of one clip while its frames pass: their encoders, and the transforms back to the frame.

    Raises:
        TooLargeError: nobody could decode its face crops again.
    """

    def __init__(self, config: MediaConfig, num_frames: int) -> None:
        self.aligner = FaceAligner(num_frames)
        self.encoders: dict[str, VideoEncoder] = {}
        self.transforms: dict[str, list[np.ndarray]] = {}
        for name, size in sizes(config).items():
            num_bytes = num_frames * size * size * (3 if name == "face" else 1)
            if num_bytes > MAX_VIDEO_BYTES:
                raise TooLargeError(f"its {name} crops would have {num_bytes} bytes, {MAX_VIDEO_BYTES} are allowed")
            self.encoders[name] = VideoEncoder(size, config.codec, config.final_quality)
            self.transforms[name] = []

    def append(self, name: str, transforms: np.ndarray, planes: np.ndarray) -> None:
        """Take the next crops of one kind, as ``VideoEncoder.append`` does."""
        self.transforms[name].append(transforms)
        self.encoders[name].append(planes)

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, bytes]]:
        """Return transforms and mp4 files of the whole clip, by field."""
        arrays = {f"{name}_to_frame": np.concatenate(parts) for name, parts in self.transforms.items()}
        return arrays, {name: encoder.finish() for name, encoder in self.encoders.items()}


def sizes(config: MediaConfig) -> dict[str, int]:
    """Return the sides of the crops that are stored, by field."""
    found = {"face": config.store_face, "mouth": MOUTH_SIZE if config.store_mouth else None}
    return {name: size for name, size in found.items() if size is not None}


def media_fields(config: MediaConfig) -> frozenset[str]:
    """Return all fields that a config stores."""
    crops = {name for size in sizes(config) for name in (size, f"{size}_to_frame")}
    return frozenset({*crops, "audio"} if config.store_audio else crops)


def media_with(config: MediaConfig, fields: Collection[str]) -> MediaConfig:
    """Return the same config with those of its fields alone that are among ``fields``."""
    return replace(
        config,
        store_audio=config.store_audio and "audio" in fields,
        store_face=config.store_face if "face" in fields else None,
        store_mouth=config.store_mouth and "mouth" in fields,
    )


@dataclass
class _Crops:
    """The crops of one span on their way to the host."""

    clip: ClipMedia
    transforms: dict[str, HostCopy] = field(default_factory=dict)
    planes: dict[str, HostCopy] = field(default_factory=dict)


@dataclass
class _Aligned:
    clip: ClipMedia
    frames: torch.Tensor
    faces: AlignedFaces
    oversampling: HostCopy | None  # i64 [n], of the face


Located = tuple[list[FrameSpan[Any]], list[FrameLandmarks]]
Clock = Callable[[str], AbstractContextManager[None]]


class MediaStage:
    """Passes batches of located frames on, and cuts and encodes what the config stores of them on the way.

    The owner of each span has its ``ClipMedia`` in the attribute ``media``; None: nothing is stored of it.
    """

    def __init__(self, config: MediaConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._sizes = sizes(config)

    @property
    def conventions(self) -> dict[str, str]:
        """Conventions of the crops, for the metadata of each sample."""
        rules = {"face": FACE_RULE, "mouth": MOUTH_RULE}
        return {name: rules[name] for name in self._sizes}

    def open_clip(self, num_frames: int) -> ClipMedia | None:
        """Return what is to be given to a clip of T frames; raises ``TooLargeError`` as ``ClipMedia`` does."""
        return ClipMedia(self._config, num_frames) if self._sizes else None

    def pass_through(self, located: Iterable[Located], clock: Clock) -> Iterator[Located]:
        """Yield the same batches in order; when the last is taken, all their crops are encoded.

        Args:
            clock: measures the time in a block, ``with clock("media"): ...``.
        """
        if not self._sizes:
            yield from located
            return
        with BackgroundTask("encode") as task:
            for batch, crops in one_behind(located, partial(self._align, clock), partial(self._cut, clock)):
                with clock("media"):
                    if self._device.type == "cuda":
                        task.submit(partial(self._encode, crops))  # waits for the crops, and so for the batch
                    else:
                        self._encode(crops)
                yield batch

    def audio(self, waveform: torch.Tensor) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Encode a clip's audio, if it is stored; return its file by field, and what the json says of it."""
        if not self._config.store_audio:
            return {}, {}
        data, scale = encode_flac(waveform.numpy(), self._config.audio_bits)
        return {"audio": data}, {"audio_scale": scale} if scale != 1 else {}

    @torch.inference_mode()
    def _align(self, clock: Clock, located: Located) -> tuple[Located, list[_Aligned]]:
        aligned = []
        with clock("media"):
            for span, landmarks in zip(*located, strict=True):
                clip: ClipMedia | None = span.owner.media
                if clip is None:
                    continue
                frames, faces = clip.aligner.append(span.frames, to_ibug68(landmarks.points)[..., :2])
                if len(frames):
                    size = self._sizes.get("face")
                    samples = None if size is None else HostCopy(oversampling_of(faces.face(size)))
                    aligned.append(_Aligned(clip, frames, faces, samples))
        return located, aligned

    @torch.inference_mode()
    def _cut(self, clock: Clock, started: tuple[Located, list[_Aligned]]) -> tuple[Located, list[_Crops]]:
        located, aligned = started
        with clock("media"):
            return located, [self._cut_span(each) for each in aligned]

    def _cut_span(self, aligned: _Aligned) -> _Crops:
        crops = _Crops(aligned.clip)
        for name, size in self._sizes.items():
            if name == "mouth":
                transforms = aligned.faces.mouth()
                planes = grey_to_yuv420(to_grey(cut(aligned.frames, transforms, size)))
            else:
                assert aligned.oversampling is not None
                transforms = aligned.faces.face(size)
                planes = _cut_faces(aligned.frames, transforms, size, aligned.oversampling.wait())
            crops.transforms[name], crops.planes[name] = HostCopy(transforms), HostCopy(planes)
        return crops

    def _encode(self, crops: list[_Crops]) -> None:
        for each in crops:
            for name in self._sizes:
                each.clip.append(name, each.transforms[name].wait().numpy(), each.planes[name].wait().numpy())


def _cut_faces(frames: torch.Tensor, transforms: torch.Tensor, size: int, oversampling: torch.Tensor) -> torch.Tensor:
    """Cut faces with as many samples per pixel as each needs: u8 planes [n, 3 S / 2, S]."""
    planes = torch.empty(len(frames), size * 3 // 2, size, dtype=torch.uint8, device=frames.device)
    for samples in oversampling.unique().tolist():
        for chosen in (oversampling == samples).nonzero()[:, 0].split(_FRAMES_AT_A_TIME):
            rows = to_device(chosen, frames.device)
            planes[rows] = to_yuv420(cut(frames[rows], transforms[rows], size, samples))
    return planes
