"""Loads what a preview shows: the features of one clip, their face model, and the video where there is one.

From a clip file, which is extracted on the spot by the extraction's own classes, or from a sample of a run.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import (
    CorpusConfig,
    DecodeConfig,
    FaceConfig,
    Fit,
    LandmarkConfig,
    RunConfig,
    SpeechConfig,
    resolve,
    upgrade_saved,
)
from lrs3_loader.corpus.scan import corpus_root, key_part
from lrs3_loader.decode.clip_queue import ChunkRequest
from lrs3_loader.decode.dataset import ClipDataset
from lrs3_loader.errors import RunError
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models, load_face_model
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.io.storage import local_path
from lrs3_loader.quality.figures import SILENT_RMS
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.types import MEDIA_FIELDS, Clip, DecodedChunk, Reject, Shard

logger = logging.getLogger(__name__)

NEEDED = ("mel", "f0", "lm68", "valid", "id", "exp", "pose")
NUM_SUGGESTIONS = 5


@dataclass(frozen=True)
class Subject:
    """One clip to be shown. Arrays as ``types.FIELDS``."""

    name: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]  # the sample's json
    model: FaceModel  # on the CPU
    video: Video | None

    @property
    def num_frames(self) -> int:
        return len(self.arrays["lm68"])

    @property
    def waveform(self) -> np.ndarray | None:
        """Audio [640 T] f32 of the video, else as stored; None where there is neither."""
        return self.arrays.get("audio") if self.video is None else self.video.waveform

    @property
    def is_silent(self) -> bool:
        """True if no sound is heard in the whole clip."""
        return bool(self.meta.get("quality", {}).get("sound_rms", 1.0) < SILENT_RMS)

    @property
    def height(self) -> int:
        """Height of the source frame in pixels."""
        return int(self.meta["source"]["height"])

    @property
    def width(self) -> int:
        return int(self.meta["source"]["width"])


class Video:
    """The frames and the audio of one clip, decoded in this process, as often as they are asked for.

    Raises:
        RunError: the clip cannot be decoded.
    """

    def __init__(self, clip: Clip, root: Path, config: DecodeConfig) -> None:
        self._dataset = ClipDataset(root, config, f0_praat)
        self._clip = clip
        self._first = self._decode(0)
        assert self._first.head is not None
        self.num_frames = self._first.num_frames
        self.waveform = self._first.head.waveform.numpy()

    def chunks(self) -> Iterator[DecodedChunk]:
        chunk = self._first
        yield chunk
        while not chunk.is_last:
            chunk = self._decode(chunk.stop)
            yield chunk

    def frames(self) -> Iterator[np.ndarray]:
        """[H, W, 3] u8, one after another."""
        for chunk in self.chunks():
            yield from chunk.frames.numpy()

    def _decode(self, start: int) -> DecodedChunk:
        chunk = self._dataset[ChunkRequest(self._clip, start)]
        if isinstance(chunk, Reject):
            raise RunError(f"cannot show this clip ({chunk.reason}): {chunk.message}")
        return chunk


def from_file(
    path: Path,
    face_model: str,
    assets: Assets,
    device: torch.device,
    speech: str | None = None,
    fit: Fit = "fast",
) -> Subject:
    """Decode a clip and extract it as a run would, however few frames hold a face.

    Args:
        speech: a speech encoder whose rows are to be shown as well.
        fit: as ``FaceConfig.fit``.

    Raises:
        RunError: no such file, no video, no audio, no face at all, or a model file is missing.
    """
    decode = DecodeConfig()
    clip = Clip(f"preview/clip/{key_part(path.stem)}", path.name, path.stat().st_size)
    video = Video(clip, path.parent, decode)
    lenient = LandmarkConfig(min_valid_fraction=0.0, max_gap_frames=decode.max_frames)
    encoder = SpeechConfig(model=speech or "demo")  # extraction wants one, whether its rows are shown or not
    config = RunConfig(decode=decode, landmarks=lenient, face=FaceConfig(face_model, fit), speech=encoder)
    config = resolve(config, device.type)
    assets.ensure(face_model)
    models = Models.load(config, assets, device)
    (found,) = ShardExtractor(config, models, device).extract(video.chunks(), {}, lambda **counts: None)
    if isinstance(found, Reject):
        raise RunError(f"cannot show this clip ({found.reason}): {found.message}")
    shown = {field: array for field, array in found.arrays.items() if field != "hubert" or speech is not None}
    return Subject("/".join(path.parts[-3:]), shown, dict(found.meta), models.face_model.to("cpu"), video)


def from_run(
    path: str | Path,
    key: str,
    assets: Assets,
    *,
    face_model: str | None = None,
    corpus: Path | None = None,
    video: bool = True,
) -> Subject:
    """Read a sample of a run, and its video where the corpus is still there.

    Args:
        face_model: where the run's face model is now, if not where it was.
        corpus: where the corpus is now, if not where it was.
        video: whether to look for the video at all, and to show stored crops and audio.

    Raises:
        RunError: no run there, no such key in it (the nearest ones are listed), the clip was rejected or not
            extracted yet, a sample without a fit, or another face model than the run's.
    """
    folder = RunFolder.open(path)
    places = {clip.key: (shard, clip) for shard in folder.shards for clip in shard.clips}
    if key not in places:
        raise RunError(f"no key {key} in {folder.path}; the nearest are {', '.join(nearest(key, sorted(places)))}")
    shard, clip = places[key]
    sample = _read_sample(folder, shard, key)
    missing = [name for name in NEEDED if name not in sample]
    if missing:
        raise RunError(f"{key} has no {', '.join(missing)}: nothing to draw a fit from")
    model = model_of_run(folder, face_model, assets)
    if (len(sample["id"]), sample["exp"].shape[1]) != (model.num_id, model.num_exp):
        raise RunError(
            f"{key} was fitted with another face model than {model.name}: name the right one with --face-model"
        )
    meta = sample.pop("json")
    if not meta.get("source", {}).keys() >= {"height", "width"}:
        raise RunError(f"{key} does not say how large its frames are: its fit cannot be drawn")
    found = None
    if not video:
        sample = {name: value for name, value in sample.items() if name not in MEDIA_FIELDS}
    else:
        try:
            found = video_of_run(folder, clip, corpus, int(meta["num_frames"]))
        except RunError as error:
            logger.warning("showing features alone: %s", error)
    return Subject(sample.pop("__key__"), sample, meta, model, found)


def list_keys(path: str | Path) -> list[str]:
    """All keys that a run planned, sorted."""
    return sorted(clip.key for shard in RunFolder.open(path).shards for clip in shard.clips)


def nearest(key: str, keys: list[str]) -> list[str]:
    """The keys most like ``key``: those that contain it first."""
    containing = [other for other in keys if key in other][:NUM_SUGGESTIONS]
    similar = difflib.get_close_matches(key, keys, n=NUM_SUGGESTIONS, cutoff=0.0)
    return list(dict.fromkeys([*containing, *similar]))[:NUM_SUGGESTIONS]


def _read_sample(folder: RunFolder, shard: Shard, key: str) -> dict[str, Any]:
    try:
        ledger = folder.ledger(shard)
    except FileNotFoundError as error:
        raise RunError(f"{key} is not extracted yet: its shard {shard.name} is not published") from error
    for rejected, reason, message in ledger.rejects:
        if rejected == key:
            raise RunError(f"{key} was rejected ({reason}): {message}")
    for sample in folder.samples(shard):
        if sample["__key__"] == key:
            return sample
    raise RunError(f"{shard.name} of {folder.path} does not hold {key} although its ledger says so; verify the run")


def model_of_run(folder: RunFolder, face_model: str | None, assets: Assets, *, fetch: bool = True) -> FaceModel:
    """Load the face model that a run's coefficients are of, on the CPU.

    Args:
        face_model: where it is now, if not where it was.
        fetch: whether it may be fetched where it is not on this machine.

    Raises:
        RunError: the run names none, it is not here, or what is here is another one.
    """
    name = face_model or folder.record["config"].get("face", {}).get("face_model")
    if name is None:
        raise RunError(f"{folder.path} does not say which face model it was made with: name it with --face-model")
    if fetch and name != "demo":
        assets.ensure_face_model(name)
    model = load_face_model(FaceConfig(name), assets)
    theirs = folder.record["models"].get("face_model", {})
    if theirs and model.source_sha256 != theirs["sha256"]:
        raise RunError(
            f"the run's face model was {theirs['name']} with sha256 {theirs['sha256'][:12]}..., {name} here has "
            f"{model.source_sha256[:12]}...: name the right one with --face-model"
        )
    return model


def frame_of_run(folder: RunFolder, corpus: Path | None, clip: Clip, num_frames: int, index: int) -> np.ndarray:
    """Return one frame, [H, W, 3] u8, of the video of a sample; arguments and errors as of ``video_of_run``."""
    return next(itertools.islice(video_of_run(folder, clip, corpus, num_frames).frames(), index, None))


def video_of_run(folder: RunFolder, clip: Clip, corpus: Path | None, num_frames: int) -> Video:
    """Open the video of a sample of so many frames.

    Args:
        corpus: where the corpus is now, if not where it was.

    Raises:
        RunError: the corpus is gone or has changed.
    """
    settings = upgrade_saved(folder.record["config"])
    saved = settings.get("corpus", {})
    place = corpus or Path(saved.get("corpus", "of an imported set"))
    if corpus is None and not place.exists():
        raise RunError(f"the corpus {place} is not here (name it with --corpus)")
    root = local_path(corpus_root(CorpusConfig(corpus=place, layout=saved.get("layout", "auto"))), "showing a clip")
    if not (root / clip.video_path).is_file():
        raise RunError(f"{clip.video_path} is not in {root}")
    video = Video(clip, root, DecodeConfig(**settings.get("decode", {})))
    if video.num_frames != num_frames:
        raise RunError(f"{clip.video_path} has changed since the run")
    return video
