"""Tasks turn the samples of a batch into the tensors of a training step. A new task is a new class like these.

Shape letters: B clips of a batch, T frames (25 fps) of the longest, padded; 2T rows (50 Hz); P pairs; D width of the
speech encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lrs3_loader.face.geometry.rotation import euler_to_matrix, matrix_to_quaternion
from lrs3_loader.run.tar import Sample
from lrs3_loader.types import ROWS_PER_FRAME, rows_per_frame

Item = dict[str, Any]
#: Gives the random generator of a clip in this epoch, by its key; every rank and worker gets the same one.
RandomFor = Callable[[str], np.random.Generator]

MOUTH = slice(48, 68)  # iBUG-68
SYNC_FRAMES = 5
SYNC_ROWS = ROWS_PER_FRAME * SYNC_FRAMES
_FRAMES_MULTIPLE = 4  # makes 50 Hz lengths multiples of 8


class Task(Protocol):
    """Turns the samples of a batch into the input of a training step. Instances must be picklable."""

    @property
    def name(self) -> str:
        """Name of the task, which saved states hold."""

    @property
    def fields(self) -> tuple[str, ...] | None:
        """Arrays to read (``lrs3_loader.types.FIELDS``); None: all arrays of a sample."""

    @property
    def min_frames(self) -> int:
        """Clips with fewer frames are skipped."""

    @property
    def multiple(self) -> int:
        """The batch is padded to a multiple of this many frames."""

    @property
    def batched(self) -> bool:
        """False if a batch always holds one sample."""

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        """Return the batch of these samples; ``random_for(key)`` is the random generator of a clip."""


@dataclass(frozen=True)
class Raw:
    """One sample at a time: ``__key__``, ``json`` and the arrays as stored (see ``lrs3_loader.types.FIELDS``)."""

    fields: tuple[str, ...] | None = None
    name: str = "raw"
    min_frames: int = 0
    multiple: int = 1
    batched: bool = False

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        (sample,) = samples
        return sample


@dataclass(frozen=True)
class Audio2Motion:
    """Speech features and facial motion, as GeneFace's audio2motion VAE reads them.

    ==============  ===================  =====================================================================
    ``keys``        list of B str        clip keys
    ``hubert``      [B, 2T, D] f32       speech features at 50 Hz; 2T is a multiple of 8
    ``f0``          [B, 2T] f32          pitch in Hz at 50 Hz, 0 = unvoiced
    ``idexp_lm3d``  [B, T, 204] f32      25 fps: 68 x (x, y, z) offsets from the mean face, decimetres x 10
    ``x_mask``      [B, 2T] f32          1 = a true row, 0 = padding
    ``y_mask``      [B, T] f32           1 = a true frame, 0 = padding
    ``valid``       [B, T] f32           1 = a true frame in which a face was detected (gaps are interpolated)
    ``x_lengths``   [B] i64              true rows, twice the true frames
    ``y_lengths``   [B] i64              true frames
    ==============  ===================  =====================================================================

    Padding is zero everywhere. Other 25 fps or 50 Hz fields named in ``fields`` are padded in the same way and keep
    their trailing dimensions.
    """

    fields: tuple[str, ...] = ("hubert", "f0", "idexp_lm3d", "valid")
    name: str = "audio2motion"
    min_frames: int = 1
    multiple: int = _FRAMES_MULTIPLE
    batched: bool = True

    def __post_init__(self) -> None:
        wrong = [name for name in self.fields if rows_per_frame(name) is None]
        if wrong:
            raise ValueError(f"only fields with a time axis can be padded, not {', '.join(wrong)}")

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        lengths = torch.tensor([frames_of(sample) for sample in samples])
        num_frames = -(-int(lengths.max()) // self.multiple) * self.multiple
        item: Item = {"keys": [sample["__key__"] for sample in samples]}
        for name in self.fields:
            rows = rows_per_frame(name)
            assert rows is not None, "checked when the task was made"
            item[name] = pad([sample[name] for sample in samples], num_frames * rows)
        if "idexp_lm3d" in item:
            item["idexp_lm3d"] = item["idexp_lm3d"].flatten(2)
        item["x_lengths"] = ROWS_PER_FRAME * lengths
        item["y_lengths"] = lengths
        item["x_mask"] = _mask(item["x_lengths"], ROWS_PER_FRAME * num_frames)
        item["y_mask"] = _mask(lengths, num_frames)
        return item


@dataclass(frozen=True)
class SyncNet:
    """Aligned and shifted pairs of 5 mouth frames and 10 speech rows (0.2 s), to train a lip-sync discriminator.

    ============  ===================  ========================================================================
    ``keys``      list of P str        the clip that each pair is from; P = 2 x ``pairs_per_clip`` x clips
    ``mouth``     [P, 5, 60] f32       frames t .. t + 4: landmarks 48-67 of ``idexp_lm3d``, x y z, decimetres x 10
    ``hubert``    [P, 10, D] f32       rows 2s .. 2s + 9, at 50 Hz
    ``label``     [P] f32              1 = aligned (s = t), 0 = shifted (another s of the same clip)
    ``start``     [P] i64              t, in frames
    ``shift``     [P] i64              s - t, in frames
    ============  ===================  ========================================================================

    In each epoch, ``pairs_per_clip`` windows of each clip are drawn (if possible, with a face in all of their frames);
    each is used once with its own audio and once with audio shifted by at most ``max_shift_frames`` (None: by any
    amount). Clips under 6 frames have no shifted pair and are skipped.
    """

    pairs_per_clip: int = 1
    max_shift_frames: int | None = None
    fields: tuple[str, ...] = ("hubert", "idexp_lm3d", "valid")
    name: str = "syncnet"
    min_frames: int = SYNC_FRAMES + 1
    multiple: int = 1
    batched: bool = True

    def __post_init__(self) -> None:
        if self.pairs_per_clip < 1 or (self.max_shift_frames is not None and self.max_shift_frames < 1):
            raise ValueError(f"pairs_per_clip and max_shift_frames must be at least 1, got {self}")

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        pairs = [pair for sample in samples for pair in self._pairs(sample, random_for(sample["__key__"]))]
        keys, mouths, audio, starts, shifts = zip(*pairs, strict=True)
        shift = torch.tensor(shifts)
        return {
            "keys": list(keys),
            "mouth": torch.from_numpy(np.stack(mouths)).float(),
            "hubert": torch.from_numpy(np.stack(audio)).float(),
            "label": (shift == 0).float(),
            "start": torch.tensor(starts),
            "shift": shift,
        }

    def _pairs(self, sample: Sample, random: np.random.Generator) -> list[tuple[str, np.ndarray, np.ndarray, int, int]]:
        mouth = sample["idexp_lm3d"][:, MOUTH].reshape(len(sample["idexp_lm3d"]), -1)
        windows = np.arange(frames_of(sample) - SYNC_FRAMES + 1)
        whole = np.lib.stride_tricks.sliding_window_view(sample["valid"], SYNC_FRAMES).all(-1)
        starts = windows[whole] if whole.any() else windows
        pairs = []
        drawn = random.choice(starts, self.pairs_per_clip, replace=self.pairs_per_clip > len(starts))
        for start in drawn.tolist():
            reach = self.max_shift_frames or len(windows)
            first, last = max(start - reach, 0), min(start + reach, len(windows) - 1)
            other = first + int(random.integers(last - first))
            for audio in (start, other + (other >= start)):  # any window within reach but this one
                rows = sample["hubert"][ROWS_PER_FRAME * audio : ROWS_PER_FRAME * audio + SYNC_ROWS]
                frames = mouth[start : start + SYNC_FRAMES]
                pairs.append((sample["__key__"], frames, rows, start, audio - start))
        return pairs


@dataclass(frozen=True)
class PostNet:
    """The batch of ``Audio2Motion`` with the head pose, for GeneFace's post-net.

    With this task, an item is ``{"corpus": batch, "person": batch}``. ``pose`` is [B, T, 7] f32: translation (x, y, z;
    decimetres), then the quaternion (w, x, y, z; w >= 0) of the stored Euler angles, in the coordinate system that
    ``conventions`` in the json of a sample describes. Padding is zero, also that of the quaternion.
    """

    fields: tuple[str, ...] = ("hubert", "f0", "idexp_lm3d", "pose", "valid")
    name: str = "postnet"
    min_frames: int = 1
    multiple: int = _FRAMES_MULTIPLE
    batched: bool = True

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        changed = [{**sample, "pose": to_translation_quaternion(sample["pose"])} for sample in samples]
        return Audio2Motion(fields=self.fields, multiple=self.multiple)(changed, random_for)


def to_translation_quaternion(pose: np.ndarray) -> np.ndarray:
    """Convert Euler angles and translation [T, 6] to translation and unit quaternion (w, x, y, z) [T, 7] f32."""
    angles, translation = torch.from_numpy(pose).float().split(3, dim=-1)
    return torch.cat([translation, matrix_to_quaternion(euler_to_matrix(angles))], dim=-1).numpy()


def pad(arrays: Sequence[np.ndarray], num_rows: int) -> torch.Tensor:
    """Stack B arrays [n_i, ...] into [B, num_rows, ...] f32, padded with zeros."""
    out = torch.zeros((len(arrays), num_rows, *arrays[0].shape[1:]))
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = torch.from_numpy(array)
    return out


def frames_of(sample: Sample) -> int:
    """Return T, the number of 25 fps frames of a sample, from its arrays.

    Raises:
        ValueError: no array has a time axis, or two disagree.
    """
    found = {len(array) // rows for name, array in sample.items() if (rows := rows_per_frame(name)) and array.ndim}
    if len(found) != 1:
        raise ValueError(f"{sample['__key__']}: no single length in frames, found {sorted(found)}")
    return found.pop()


def crop(sample: Sample, num_frames: int, random: np.random.Generator) -> Sample:
    """Cut a sample of more than ``num_frames`` frames to as many, at a random position."""
    total = frames_of(sample)
    start = int(random.integers(total - num_frames + 1)) if total > num_frames else 0
    cut: Sample = {}
    for name, value in sample.items():
        rows = rows_per_frame(name)
        cut[name] = value if rows is None else value[rows * start : rows * (start + num_frames)]
    return cut


def shift_audio(sample: Sample, offset_frames: int) -> Sample:
    """Undo an audio-video offset (positive: the audio is late), by dropping as many frames.

    Audio rows (``mel``, ``f0``, ``hubert``, ``audio``) lose their beginning and all others their end, or the other
    way round.
    """
    if offset_frames == 0:
        return sample
    shifted: Sample = {}
    for name, value in sample.items():
        rows = rows_per_frame(name)
        if rows is None:
            shifted[name] = value
            continue
        drop = rows * abs(offset_frames)
        at_start = (rows >= ROWS_PER_FRAME) == (offset_frames > 0)
        shifted[name] = value[drop:] if at_start else value[: len(value) - drop]
    return shifted


def _mask(lengths: torch.Tensor, num_rows: int) -> torch.Tensor:
    return (torch.arange(num_rows) < lengths[:, None]).float()
