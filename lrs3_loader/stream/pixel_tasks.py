"""Tasks that read pixels and audio, which a run holds by choice (docs/media.md).

Shape letters: B clips of a batch, T frames (25 fps) of the longest, padded; P windows; S side of a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lrs3_loader.audio.wav2lip_mel import NUM_BANDS, ROWS_PER_SECOND, wav2lip_mel
from lrs3_loader.run.tar import Sample
from lrs3_loader.stream.tasks import Item, RandomFor, frames_of, pad
from lrs3_loader.types import FRAMES_PER_SECOND, SAMPLES_PER_FRAME

WINDOW_FRAMES = 5
WINDOW_ROWS = 16  # of mel, 0.2 s


@dataclass(frozen=True)
class Wav2Lip:
    """Windows of 5 faces with a reference and mel, as Wav2Lip's training reads them.

    ==============  ========================  ==================================================================
    ``keys``        list of P str             the clip of each window; P = ``windows_per_clip`` x clips
    ``x``           [P, 6, 5, S, S] f32       channels 0-2: frames t .. t + 4 with the lower half 0; 3-5: reference
    ``indiv_mels``  [P, 5, 1, 80, 16] f32     mel around each frame: 0.2 s that begin one frame before it
    ``mel``         [P, 1, 80, 16] f32        mel of the window: 0.2 s from frame t on
    ``y``           [P, 3, 5, S, S] f32       frames t .. t + 4, to be drawn
    ``start``       [P] i64                   t, in frames
    ``reference``   [P] i64                   first frame of the reference, not t
    ==============  ========================  ==================================================================

    Pixels lie in 0..1, in the order blue, green, red, as there. Mel is Wav2Lip's own (``audio.wav2lip_mel``), -4..4, of
    the stored audio. Faces are the run's aligned ones, averaged down to S = ``size`` (None: as stored). Windows are
    drawn among those in whose frames, if possible, a face was found. Clips of up to 15 frames are skipped.
    """

    windows_per_clip: int = 1
    size: int | None = 96
    fields: tuple[str, ...] = ("audio", "face", "valid")
    name: str = "wav2lip"
    min_frames: int = 3 * WINDOW_FRAMES + 1
    multiple: int = 1
    batched: bool = True

    def __post_init__(self) -> None:
        if self.windows_per_clip < 1 or (self.size is not None and self.size < 2):
            raise ValueError(f"windows_per_clip must be at least 1 and size at least 2, got {self}")

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        windows = [window for sample in samples for window in self._windows(sample, random_for(sample["__key__"]))]
        faces = torch.stack([window["faces"] for window in windows])
        seen = faces.clone()
        seen[..., faces.shape[-2] // 2 :, :] = 0
        return {
            "keys": [window["key"] for window in windows],
            "x": torch.cat([seen, torch.stack([window["references"] for window in windows])], 1),
            "indiv_mels": torch.stack([window["indiv_mels"] for window in windows]),
            "mel": torch.stack([window["mel"] for window in windows]),
            "y": faces,
            "start": torch.tensor([window["start"] for window in windows]),
            "reference": torch.tensor([window["reference"] for window in windows]),
        }

    def _windows(self, sample: Sample, random: np.random.Generator) -> list[dict[str, Any]]:
        mel = wav2lip_mel(torch.from_numpy(sample["audio"]))
        last = frames_of(sample) - WINDOW_FRAMES
        # The mel of frame t - 1 must exist, and all of the mel of frame t + 3.
        starts = np.array([t for t in range(1, last + 1) if mel_row(t + WINDOW_FRAMES - 2) + WINDOW_ROWS <= len(mel)])
        whole = np.all(
            np.lib.stride_tricks.sliding_window_view(sample["valid"], WINDOW_FRAMES), axis=-1, keepdims=False
        )
        starts = starts[whole[starts]] if whole[starts].any() else starts
        windows = []
        for start in random.choice(starts, self.windows_per_clip, replace=self.windows_per_clip > len(starts)):
            references = np.flatnonzero(whole) if whole.sum() > 1 else np.arange(last + 1)
            reference = random.choice(references[references != start])
            around = [_mel_at(mel, frame) for frame in range(start - 1, start - 1 + WINDOW_FRAMES)]
            windows.append(
                {
                    "key": sample["__key__"],
                    "start": int(start),
                    "reference": int(reference),
                    "faces": self._faces(sample["face"], start),
                    "references": self._faces(sample["face"], reference),
                    "mel": _mel_at(mel, start),
                    "indiv_mels": torch.stack(around),
                }
            )
        return windows

    def _faces(self, faces: np.ndarray, start: int) -> torch.Tensor:
        """Return the faces of a window, f32 [3, 5, S, S]."""
        pixels = torch.from_numpy(faces[start : start + WINDOW_FRAMES, ..., ::-1].copy()).permute(0, 3, 1, 2).float()
        if self.size is not None and self.size != pixels.shape[-1]:
            pixels = torch.nn.functional.interpolate(
                pixels, size=(self.size, self.size), mode="bilinear", antialias=True
            )
        return pixels.div_(255).transpose(0, 1)


def mel_row(frame: int) -> int:
    """Return the row of Wav2Lip's mel at which the sound of a frame begins."""
    return ROWS_PER_SECOND * frame // FRAMES_PER_SECOND


def _mel_at(mel: torch.Tensor, frame: int) -> torch.Tensor:
    """Return the mel of 0.2 s from a frame on, [1, 80, 16]."""
    first = mel_row(int(frame))
    return mel[first : first + WINDOW_ROWS].T.reshape(1, NUM_BANDS, WINDOW_ROWS)


@dataclass(frozen=True)
class Avsr:
    """Mouths, audio and text of whole clips, for audio-visual speech recognition.

    =================  =======================  ================================================================
    ``keys``           list of B str            clip keys
    ``mouth``          [B, T, 96, 96] u8        grey levels at 25 fps, aligned as by auto_avsr; padding is 0
    ``audio``          [B, 640 T] f32           mono, 16 kHz, full scale = 1; padding is 0
    ``text``           list of B str            what is said, as the corpus writes it; "" where it is not known
    ``lengths``        [B] i64                  true frames
    ``audio_lengths``  [B] i64                  true samples, 640 times as many
    =================  =======================  ================================================================

    Networks for 88 x 88 pixels cut these at random, or out of the middle. Clips are not to be cropped in time: their
    text is of the whole (``max_frames`` skips long ones).
    """

    fields: tuple[str, ...] = ("audio", "mouth")
    name: str = "avsr"
    min_frames: int = 1
    multiple: int = 1
    batched: bool = True
    whole_clips: bool = True

    def __call__(self, samples: Sequence[Sample], random_for: RandomFor) -> Item:
        lengths = torch.tensor([frames_of(sample) for sample in samples])
        num_frames = int(lengths.max())
        mouths = torch.zeros((len(samples), num_frames, *samples[0]["mouth"].shape[1:]), dtype=torch.uint8)
        for row, sample in zip(mouths, samples, strict=True):
            row[: len(sample["mouth"])] = torch.from_numpy(sample["mouth"])
        return {
            "keys": [sample["__key__"] for sample in samples],
            "mouth": mouths,
            "audio": pad([sample["audio"] for sample in samples], SAMPLES_PER_FRAME * num_frames),
            "text": [str(sample.get("json", {}).get("text") or "") for sample in samples],
            "lengths": lengths,
            "audio_lengths": SAMPLES_PER_FRAME * lengths,
        }
