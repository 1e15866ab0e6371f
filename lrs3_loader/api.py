"""Extraction from Python: ``extract`` for a call, ``Extractor`` to keep the models loaded (docs/python.md)."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import RunConfig, WorkerConfig, resolve
from lrs3_loader.corpus.layouts import NO_NAME, file_size
from lrs3_loader.corpus.scan import key_part
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.decode.loader import ClipLoader
from lrs3_loader.errors import clip_error
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.flags import with_settings
from lrs3_loader.io.storage import is_url
from lrs3_loader.runtime.device import free_gpu_bytes, pick_device, torch_configured
from lrs3_loader.types import Clip, ClipFeatures, DecodedChunk, Reject

_ROOT = Path("/")  # that absolute paths are relative to
_PATHS = ("video_path", "sound_path", "transcript_path")  # of a clip

ClipLike = str | os.PathLike[str] | Clip
"""A video file; or a :class:`Clip`, which can name a part of one, an audio file or a transcript."""


class Extractor:
    """Extracts features from video files, as a run does, with models that are loaded once.

    ``extractor(path)`` returns the features of one file, ``extractor(paths)`` yields those of many, in order. The
    numbers are those that a run stores, to the bit, where a shard of the run holds the same clips.

    Args:
        config: all settings (those of the corpus and of shards have no effect here). Default: those of a run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; auto is a GPU if there is one.
        assets: folder with model files, searched first. Missing models are fetched, or the error says how to get them.
        workers: decode processes for calls with many files, which survive a decoder that crashes or hangs. 0 decodes
            in this process. With any, a script needs ``if __name__ == "__main__":``, as with torch's DataLoader.
        batch_clips: clips of one call that are processed together. More of them fill the batches of a GPU better; the
            numbers are then those of a shard of these clips, whose last bits may differ from those of a clip alone.
        settings: flags of ``lrs3-loader extract`` that differ from ``config``, with underscores: ``face_model="demo"``,
            ``hubert="demo"``, ``store_lm478=True``, ``min_frames=8``, ``threads=4``.

    Attributes:
        config: the settings, complete.
        device: where the models are.

    Raises:
        TypeError, ValueError: a setting does not exist, or its value is not allowed.
        RunError: a model is missing or damaged, or there is no such device; the message says what to do.
    """

    def __init__(
        self,
        config: RunConfig | None = None,
        *,
        device: str | torch.device = "auto",
        assets: str | os.PathLike[str] | None = None,
        workers: int = 0,
        batch_clips: int = 1,
        **settings: Any,
    ) -> None:
        if workers < 0 or batch_clips < 1:
            raise ValueError(f"workers must be at least 0 and batch_clips 1, got {workers} and {batch_clips}")
        _refuse_in_bootstrap()
        config = with_settings(config or RunConfig(), settings)
        self.device = pick_device(str(device))
        self.config = resolve(config, self.device.type, free_gpu_bytes(self.device))
        self._workers, self._batch_clips = workers, batch_clips
        places = Assets(None if assets is None else Path(assets))
        places.ensure(self.config.face.face_model, speaking=self.config.speaking.needs_scores)
        with torch_configured(self.config.threads):
            self._shards = ShardExtractor(self.config, Models.load(self.config, places, self.device), self.device)
        self._turn = threading.Lock()

    @property
    def face_model(self) -> FaceModel:
        """The face model whose coefficients are ``id`` and ``exp``, on ``device``."""
        return self._shards.models.face_model

    @overload
    def __call__(self, clips: ClipLike) -> ClipFeatures: ...  # type: ignore[overload-overlap]  # a str is one path
    @overload
    def __call__(self, clips: Iterable[ClipLike]) -> Iterator[ClipFeatures | Reject]: ...
    def __call__(self, clips: ClipLike | Iterable[ClipLike]) -> ClipFeatures | Iterator[ClipFeatures | Reject]:
        """Extract one file, or many.

        Args:
            clips: a path, or several. The key of a file's features is ``all/FOLDER/NAME``. A :class:`Clip` has its own
                key; its paths are relative to the current folder.

        Returns:
            For one file, its features. For several, an iterator with the features of each, in order, or a
            :class:`Reject` with the reason; each is extracted when the iterator comes to it.

        Raises:
            ClipError: the one file cannot be extracted, by the reason: ``NoFaceError``, ``UnreadableError``...
            ValueError: a URL is given: copy the file to this machine.
        """
        if isinstance(clips, (str, os.PathLike, Clip)):
            (result,) = self._decode_here(self._batches([_clip(clips)]))
            if isinstance(result, Reject):
                raise clip_error(result.reason, result.message)
            return result
        return self._many(map(_clip, clips))

    def _many(self, clips: Iterator[Clip]) -> Iterator[ClipFeatures | Reject]:
        batches = self._batches(clips)
        if self._workers == 0:
            yield from self._decode_here(batches)
            return
        workers = WorkerConfig(num_workers=self._workers)
        with ClipLoader(batches, _ROOT, self.config.decode, workers, pitch=f0_praat) as loader:
            yield from self._extract(loader)

    def _decode_here(self, batches: Iterable[tuple[int, Clip]]) -> Iterator[ClipFeatures | Reject]:
        dataset = ClipDataset(_ROOT, self.config.decode, f0_praat)
        return self._extract((number, item) for number, clip in batches for item in dataset.chunks(clip))

    def _batches(self, clips: Iterable[Clip]) -> Iterator[tuple[int, Clip]]:
        """Yield each clip with the number of its batch; one that is given twice is in two batches."""
        number, batch = 0, list[Clip]()
        for clip in clips:
            if len(batch) == self._batch_clips or clip in batch:
                number, batch = number + 1, []
            batch.append(clip)
            yield number, clip

    def _extract(self, items: Iterable[tuple[int, DecodedChunk | Reject]]) -> Iterator[ClipFeatures | Reject]:
        """Extract decoded clips batch by batch."""
        for _, batch in itertools.groupby(items, key=lambda pair: pair[0]):
            with self._turn, torch_configured(self.config.threads):
                results = list(self._shards.extract((item for _, item in batch), {}, _count_nothing))
            yield from results


def _refuse_in_bootstrap() -> None:
    """Raise ``RuntimeError`` in a decode process that imports the main script, which would start such processes again.

    ``multiprocessing`` refuses that, too, but only after all models are loaded.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError("decode processes import this script: put what it does under `if __name__ == '__main__':`")


def _count_nothing(**counts: int) -> None:
    """Take the counts that a run shows as its progress."""


def _clip(given: ClipLike) -> Clip:
    """Return a clip with absolute paths."""
    if not isinstance(given, Clip):
        if is_url(text := os.fspath(given)):
            raise ValueError(f"{text} is a URL: copy the file to this machine, or extract the corpus with lrs3-loader")
        path = Path(os.path.abspath(text))
        given = Clip("/".join((NO_NAME, key_part(path.parent.name), key_part(path.stem))), str(path), 0)
    absolute = {name: os.path.abspath(path) for name in _PATHS if (path := getattr(given, name)) is not None}
    return dataclasses.replace(given, **absolute, num_bytes=file_size(absolute["video_path"]))


@overload
def extract(
    clips: ClipLike,
    config: RunConfig | None = None,
    *,
    device: str | torch.device = "auto",
    assets: str | os.PathLike[str] | None = None,
    workers: int = 0,
    batch_clips: int = 1,
    **settings: Any,
) -> ClipFeatures: ...
@overload
def extract(
    clips: Iterable[ClipLike],
    config: RunConfig | None = None,
    *,
    device: str | torch.device = "auto",
    assets: str | os.PathLike[str] | None = None,
    workers: int = 0,
    batch_clips: int = 1,
    **settings: Any,
) -> Iterator[ClipFeatures | Reject]: ...
def extract(
    clips: ClipLike | Iterable[ClipLike], config: RunConfig | None = None, **options: Any
) -> ClipFeatures | Iterator[ClipFeatures | Reject]:
    """Extract features from one video file, or from many. Every call loads the models: :class:`Extractor` keeps them.

    >>> features = lrs3_loader.extract("clip.mp4")
    >>> features.arrays["lm68"]  # [T, 68, 2] f32, pixels
    >>> for result in lrs3_loader.extract(paths, workers=2): ...

    Args:
        clips: a path, or several; a :class:`Clip` says more than a path.
        config, options: as for :class:`Extractor`: ``device``, ``assets``, ``workers``, ``batch_clips``, and settings
            such as ``face_model="demo"``.

    Returns:
        For one file, its features (arrays as in ``lrs3_loader.types.FIELDS``). For several, an iterator with the
        features of each, in order, or a :class:`Reject` with the reason.

    Raises:
        ClipError: the one file cannot be extracted; its class and its ``reason`` say why.
        RunError: a model is missing, or a setting cannot be used here; the message says what to do.
    """
    return Extractor(config, **options)(clips)
