"""Estimates the size of a corpus's shards from file sizes and field widths; compares it with the free disk space."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import VIDEO_QUALITIES, MediaConfig, RunConfig
from lrs3_loader.corpus.plan import calibrate, estimate_frames
from lrs3_loader.corpus.scan import corpus_root
from lrs3_loader.doctor.checks import CheckResult
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.io.files import first_existing
from lrs3_loader.io.storage import Location
from lrs3_loader.types import FIELDS, FRAMES_PER_SECOND, MEDIA_FIELDS, ROWS_PER_FRAME, SAMPLES_PER_FRAME, Clip, Shard

logger = logging.getLogger(__name__)

#: Overhead per member: a tar header, a .npy header, and half a block of padding.
MEMBER_BYTES = 512 + 128 + 256
META_BYTES = 3_000  # size of a sample's json
BOX_BYTES = 32  # per frame: its box in the json, for clips with a transcript
#: Bytes per pixel of a face, by codec, and per sample of speech, by bits: rounded up from real clips.
VIDEO_PIXEL_BYTES = {"h264": 0.03, "jpeg": 0.15}
AUDIO_SAMPLE_BYTES = {16: 1.3, 24: 2.3}
_WIDTHS = {"demo": 64, "base": 768}  # of speech encoders, by a word in their names
_USUAL_WIDTH = 1024
_MODES = {"demo": (16, 14), "ict": (100, 53)}  # identity, expression
_USUAL_MODES = (100, 64)


def bytes_per_clip(config: RunConfig, num_frames: float, assets: Assets, transcript: bool) -> float:
    """Estimate the bytes that a sample of T = ``num_frames`` takes in its tar."""
    identity, expression = _num_modes(config.face.face_model, assets)
    sizes = {"T": num_frames, "2T": ROWS_PER_FRAME * num_frames, "L": 478, "I": identity, "E": expression}
    widths = [_speech_width(name, assets) for name in config.speech.models for _ in range(config.speech.num_layers)]
    sizes["D"] = sum(widths)
    media = _media_bytes(config.media)
    left_out = {
        **{name: name.removesuffix("_to_frame") not in media for name in ("face_to_frame", "mouth_to_frame")},
        "lm478": not config.landmarks.store_lm478,
        "blendshapes": not config.landmarks.store_blendshapes,
        "coeff": config.regression.checkpoint is None,
        "speaking": not config.speaking.store,
    }
    total = MEMBER_BYTES + META_BYTES + BOX_BYTES * num_frames * transcript
    for name, spec in FIELDS.items():
        if name in MEDIA_FIELDS:
            total += (MEMBER_BYTES + media[name] * num_frames) if name in media else 0
        elif not left_out.get(name, False):
            count = np.prod([sizes[size] if isinstance(size, str) else size for size in spec.shape])
            dtype = config.speech.store if name == "hubert" else spec.dtype
            total += MEMBER_BYTES + float(count) * np.dtype(dtype).itemsize
    return total


def _media_bytes(config: MediaConfig) -> dict[str, float]:
    """Estimate the bytes per frame of the encoded fields that are stored."""
    sides = {"face": config.store_face, "mouth": 96 if config.store_mouth else None}
    # x264 halves the size for every 6 steps
    finer = 2 ** ((VIDEO_QUALITIES["h264"][1] - config.final_quality) / 6) if config.codec == "h264" else 1
    sizes = {name: side * side * VIDEO_PIXEL_BYTES[config.codec] * finer for name, side in sides.items() if side}
    if config.store_audio:
        sizes["audio"] = SAMPLES_PER_FRAME * AUDIO_SAMPLE_BYTES[config.audio_bits]
    return sizes


def estimate_bytes(config: RunConfig, clips: Sequence[Clip], root: Location, assets: Assets) -> tuple[float, float]:
    """Estimate the number of bytes of all shards of ``clips``, and the number of frames."""
    bytes_per_frame = calibrate(clips, root)
    lengths = [min(estimate_frames(clip, bytes_per_frame), config.decode.max_frames) for clip in clips]
    # The size is linear in the length, so two lengths suffice.
    fixed = bytes_per_clip(config, 0, assets, False)
    per_frame = [bytes_per_clip(config, 1, assets, transcript) - fixed for transcript in (False, True)]
    total = sum(
        fixed + length * per_frame[clip.transcript_path is not None]
        for clip, length in zip(clips, lengths, strict=True)
    )
    return total, sum(lengths)


def check_disk_space(
    config: RunConfig, clips: Sequence[Clip], root: Location, out: Path, assets: Assets
) -> CheckResult:
    """Check that the shards of these clips fit on the disk of ``out``; shards already written count."""
    num_bytes, num_frames = estimate_bytes(config, clips, root, assets)
    place = first_existing(out)
    disk = os.statvfs(place)
    there = sum(entry.stat().st_size for entry in os.scandir(out / "shards")) if (out / "shards").is_dir() else 0
    free, needed = disk.f_bavail * disk.f_frsize, max(0.0, num_bytes - there)
    length = duration_text(num_frames / FRAMES_PER_SECOND)
    text = f"{count_of(len(clips), 'clip')}, about {length} long: {size_text(needed)} to write, {size_text(free)} free"
    if free >= 1.1 * needed:
        return CheckResult("room", "ok", text)
    return CheckResult("room", "warn", text, "free some space, choose another --out, or store fewer fields")


def warn_if_short_of_space(config: RunConfig, shards: Sequence[Shard], out: Location, assets: Assets) -> None:
    """Log a warning if the shards of a plan may not fit on the disk; object storage is not checked."""
    if not isinstance(out, Path):
        return
    clips = [clip for shard in shards for clip in shard.clips]
    check = check_disk_space(config, clips, corpus_root(config.corpus), out, assets)
    if check.level != "ok":
        logger.warning("the disk may fill up: %s; %s", check.text, check.remedy)


def size_text(num_bytes: float) -> str:
    """Return ``1.2 GB`` or ``3.4 MB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def duration_text(seconds: float) -> str:
    """Return ``40 seconds``, ``7 minutes`` or ``433.3 hours``."""
    if seconds < 120:
        return count_of(round(seconds), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.4g} hours"


def _num_modes(face_model: str, assets: Assets) -> tuple[int, int]:
    if face_model in _MODES:
        return _MODES[face_model]
    try:
        with np.load(assets.face_model_path(face_model), allow_pickle=False) as file:
            return len(file["id_names"]), len(file["exp_names"])
    except (OSError, KeyError, ValueError, RunError):
        return _USUAL_MODES


def _speech_width(model: str, assets: Assets) -> int:
    folder = Path(assets.speech_encoder(model))
    try:
        return int(json.loads((folder / "config.json").read_bytes())["hidden_size"])
    except (OSError, KeyError, ValueError):
        return next((width for word, width in _WIDTHS.items() if word in folder.name), _USUAL_WIDTH)
