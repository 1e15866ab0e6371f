"""Scores of whole clips: crops their faces while frames pass, and runs the network on many clips at once.

The face features of a frame depend on the nine frames before and after it. So a long clip is encoded in pieces that
overlap by so many, which gives the same features as the whole, and at most one piece of a clip waits in memory. What is
left of each clip is encoded together with others of similar length, padding masked.

Letters: n frames, T frames of a clip, S = 112.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrs3_loader.audio.mfcc import Mfcc
from lrs3_loader.runtime.batching import batch_by_length
from lrs3_loader.runtime.memory import split_on_oom
from lrs3_loader.runtime.transfer import to_device
from lrs3_loader.speaking.crops import FaceCropper
from lrs3_loader.speaking.network import CONTEXT_FRAMES, SpeakingNetwork
from lrs3_loader.types import SAMPLES_PER_FRAME

SPEAKING_CONVENTION = "logit per frame at 25 fps; above 0: the face speaks; over lower face and MFCC of the whole clip"
PIECE_FRAMES = 128  # of a long clip that are encoded at a time, without the overlap
#: Frames in one batch, padding included: on a CPU a piece; elsewhere, 1.6 GB in the network's widest layers.
BATCH_FRAMES = {"cpu": PIECE_FRAMES + 2 * CONTEXT_FRAMES, "cuda": 1024}
#: Rows of the recurrent part in one batch, padding included: it needs a hundredth of the memory.
BATCH_ROWS = {"cpu": 4096, "cuda": 65_536}
MIN_FILL = 0.8  # the shortest clip of a batch has at least this share of the length of its longest


class ClipFaces:
    """The faces of one clip while its frames pass."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.cropper = FaceCropper(num_frames)
        self.crops: list[Tensor] = []  # u8 [n, S, S] each: those not yet encoded, and before them ``num_before`` more
        self.num_before = 0  # frames that are only context for the next
        self.features: list[Tensor] = []  # f32 [n, 128] each

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors on the device."""
        return self.crops + self.features


class SpeakingScorer:
    """Scores, frame by frame, whether the face that is followed speaks what is heard.

    A clip has the same scores in any company, but for rounding (1e-5). Algorithms are deterministic.
    """

    def __init__(self, network: SpeakingNetwork, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.mfcc = Mfcc().to(self.device)

    @torch.inference_mode()
    def append(self, clip: ClipFaces, frames: Tensor, points: Tensor) -> None:
        """Take the next frames of a clip, u8 [n, H, W, 3], and their landmarks; see ``FaceCropper.append``."""
        self.append_crops(clip, clip.cropper.append(frames, points))

    @torch.inference_mode()
    def append_crops(self, clip: ClipFaces, crops: Tensor) -> None:
        """Take the next faces of a clip, u8 [n, S, S], that were cut out already."""
        clip.crops.append(crops)
        while sum(map(len, clip.crops)) >= clip.num_before + PIECE_FRAMES + CONTEXT_FRAMES:
            self._encode_piece(clip)

    @torch.inference_mode()
    def __call__(self, clips: Sequence[ClipFaces], waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Compute the scores of clips all of whose frames were taken; their crops and features are dropped.

        Args:
            waveforms: per clip [640 T] f32, mono, 16 kHz, on any device.

        Returns:
            per clip [T] f32, on the device: logits, positive where the face speaks.

        Raises:
            ValueError: a clip lacks frames, or its audio has another length.
        """
        for clip, waveform in zip(clips, waveforms, strict=True):
            num_taken = sum(map(len, clip.tensors)) - clip.num_before
            if num_taken != clip.num_frames or len(waveform) != SAMPLES_PER_FRAME * clip.num_frames:
                raise ValueError(f"a clip of {clip.num_frames} frames has {num_taken} and {len(waveform)} samples")
        self._encode_rest(clips)
        rows = self.mfcc(waveforms)
        scores: dict[int, Tensor] = {}
        lengths = [clip.num_frames for clip in clips]
        with self._exact():
            for batch in batch_by_length(
                lengths, BATCH_ROWS.get(self.device.type, BATCH_ROWS["cuda"]), min_fill=MIN_FILL
            ):
                faces = _padded([torch.cat(clips[i].features) for i in batch])
                num_rows = to_device(torch.tensor([lengths[i] for i in batch]), self.device)
                audio = self.network.encode_audio(_padded([rows[i] for i in batch]), num_rows)
                for i, row in zip(batch, self.network.score(faces, audio, num_rows), strict=True):
                    scores[i] = row[: lengths[i]]
        for clip in clips:
            clip.features.clear()
        return [scores[i] for i in range(len(clips))]

    def _encode_piece(self, clip: ClipFaces) -> None:
        """Encode the next ``PIECE_FRAMES`` of a clip, and keep of their crops what the next need as context."""
        crops = torch.cat(clip.crops)
        stop = clip.num_before + PIECE_FRAMES
        piece = crops[: stop + CONTEXT_FRAMES]
        (features,) = self._encode([piece])
        clip.features.append(features[clip.num_before : stop])
        clip.crops, clip.num_before = [crops[stop - CONTEXT_FRAMES :].clone()], CONTEXT_FRAMES

    def _encode_rest(self, clips: Sequence[ClipFaces]) -> None:
        """Encode the crops that are left of each clip, and drop them."""
        crops = [torch.cat(clip.crops) for clip in clips]
        for clip in clips:
            clip.crops.clear()
        lengths = list(map(len, crops))
        for batch in batch_by_length(
            lengths, BATCH_FRAMES.get(self.device.type, BATCH_FRAMES["cuda"]), min_fill=MIN_FILL
        ):
            parts = split_on_oom(self._encode, [crops[i] for i in batch])
            for i, features in zip(batch, itertools.chain.from_iterable(parts), strict=True):
                clips[i].features.append(features[clips[i].num_before :])
                clips[i].num_before = 0

    def _encode(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Encode crops u8 [n_i, S, S] in one batch: f32 [n_i, 128] each."""
        lengths = list(map(len, crops))
        with self._exact():
            features = self.network.encode_faces(_padded(crops), to_device(torch.tensor(lengths), self.device))
        return [row[:length] for row, length in zip(features, lengths, strict=True)]

    def _exact(self) -> contextlib.AbstractContextManager[None]:
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return parts[0][None] if len(parts) == 1 else nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
