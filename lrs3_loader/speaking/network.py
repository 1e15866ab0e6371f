"""LR-ASD: does the face in these frames speak what is heard? A score for every video frame.

Two encoders of three blocks each, which convolve over space (or frequency) and then over time, give 128 features per
frame; both halves are weighted by a channel attention, a GRU in each direction follows, another attention, and a linear
layer. Frames are at 25 per second, and MFCC rows at 100.

Liao et al., "LR-ASD: Lightweight and Robust Network for Active Speaker Detection", IJCV 2025. The weights, under MIT,
are those that its authors published.

Letters: B clips, T frames of the longest of them, C channels, S = 112.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrs3_loader.audio.mfcc import MFCC_PER_FRAME, NUM_CEPSTRA
from lrs3_loader.errors import RunError
from lrs3_loader.io.safe_load import load_plain

FACE_SIZE = 112
NUM_FEATURES = 128  # of each encoder
#: Frames before and after a frame that its face features depend on: three temporal convolutions of 5 and three of 3.
CONTEXT_FRAMES = 9
_MEAN, _SPREAD = 0.4161, 0.1688  # of grey levels 0..1
_EPSILON = 1e-3  # of all batch normalisations
_WIDTHS = ((1, 16, 32), (32, 32, 64), (64, 64, 128))  # channels of each block: in, between, out
_HIDDEN = 64
_BLOCKS = ("block1", "block2", "block3")

Weights = Mapping[str, Tensor]


class SpeakingNetwork(nn.Module):
    """The network; ``load`` reads the published weights.

    Batch normalisation is folded into the convolutions. Raises ``ValueError`` for ``weights`` (names and tensors of the
    published file) that lack one or have another shape.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.faces = nn.ModuleList([_visual_block(weights, i) for i in range(3)])
        self.sounds = nn.ModuleList([_audio_block(weights, i) for i in range(3)])
        self.fusion = _attention(weights, "model.fusion", 2 * NUM_FEATURES)
        self.ahead = _gru(weights, "model.detector.gru_forward")
        self.back = _gru(weights, "model.detector.gru_backward")
        self.attention = _attention(weights, "model.detector.attention", 2 * _HIDDEN)
        self.head = nn.Linear(2 * _HIDDEN, 1)
        classes = [_take(weights, f"lossAV.FC.{name}", shape) for name, shape in (("weight", (2, 128)), ("bias", (2,)))]
        self.head.load_state_dict({"weight": classes[0][1:], "bias": classes[1][1:]})  # the second class speaks
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: Path | str) -> SpeakingNetwork:
        """Load the published ``finetuning_TalkSet.model`` without executing anything in it.

        Raises:
            RunError: it cannot be read, or is another file.
        """
        try:
            weights = load_plain(Path(path))
            if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
                raise ValueError("it holds no table of tensors")
            return cls(weights)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} does not hold LR-ASD's weights: {error}") from error

    @torch.inference_mode()
    def forward(self, faces: Tensor, mfcc: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the score of every frame.

        Args:
            faces: u8 [B, T, S, S], grey levels of the faces (see ``speaking.crops``).
            mfcc: [B, 4 T, 13], floating point (see ``audio.mfcc``).
            lengths: i64 [B], the frames of each clip, where some are padded to T; what the padding holds does not
                matter. None: all have T.

        Returns:
            f32 [B, T], logits: positive where the face speaks. Of no meaning in the padding.

        Raises:
            ValueError: an argument has another shape or type.
        """
        num_clips, num_frames = faces.shape[:2]
        if faces.dtype != torch.uint8 or faces.shape != (num_clips, num_frames, FACE_SIZE, FACE_SIZE):
            wanted = f"u8 [B, T, {FACE_SIZE}, {FACE_SIZE}]"
            raise ValueError(f"faces must be {wanted}, got {faces.dtype} {list(faces.shape)}")
        if mfcc.shape != (num_clips, MFCC_PER_FRAME * num_frames, NUM_CEPSTRA):
            wanted = f"[{num_clips}, {MFCC_PER_FRAME * num_frames}, {NUM_CEPSTRA}]"
            raise ValueError(f"mfcc must be {wanted}, got {list(mfcc.shape)}")
        if lengths is None:
            lengths = torch.full((num_clips,), num_frames, device=faces.device)
        return self.score(self.encode_faces(faces, lengths), self.encode_audio(mfcc, lengths), lengths)

    @torch.inference_mode()
    def encode_faces(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Compute the features of faces u8 [B, T, S, S]: f32 [B, T, 128]; see ``CONTEXT_FRAMES``."""
        num_clips, num_frames = faces.shape[:2]
        images = faces.flatten(0, 1)[..., None].float().div(255).sub(_MEAN).div(_SPREAD)
        x = images.permute(0, 3, 1, 2)  # [B T, C, H, W], stored with C last, as everything below
        inside = _inside(num_frames, lengths)[:, None, :, None]
        for i, block in enumerate(self.faces):
            first, second, *temporal = _layers(block)
            x = second(first(x).relu_()).relu_()
            height, width = x.shape[2:]
            over_time = _over_time(x, num_clips)
            for convolution in temporal:
                over_time = convolution(over_time * inside).relu_()
            x = over_time.permute(0, 2, 3, 1).reshape(-1, height, width, over_time.shape[1]).permute(0, 3, 1, 2)
            if i < 2:
                x = F.max_pool2d(x, 3, 2, 1)
        return x.amax((2, 3)).view(num_clips, num_frames, -1)

    @torch.inference_mode()
    def encode_audio(self, mfcc: Tensor, lengths: Tensor) -> Tensor:
        """Compute the features of MFCC rows f32 [B, 4 T, 13]: f32 [B, T, 128]."""
        x = mfcc[:, None].float()  # [B, C, rows, 13]
        rows_per_frame = MFCC_PER_FRAME
        for i, block in enumerate(self.sounds):
            first, second, *temporal = _layers(block)
            x = second(first(x).relu_()).relu_()
            inside = _inside(x.shape[2], rows_per_frame * lengths)[:, None, :, None]
            for convolution in temporal:
                x = convolution(x * inside).relu_()
            if i < 2:  # the maximum of three rows, none of which is below 0
                x = F.max_pool2d(x * inside, (3, 1), (2, 1), (1, 0))
                rows_per_frame //= 2
        return x.mean(3).transpose(1, 2)

    @torch.inference_mode()
    def score(self, face_features: Tensor, audio_features: Tensor, lengths: Tensor) -> Tensor:
        """Compute the scores f32 [B, T] from the features of both encoders, f32 [B, T, 128] each."""
        x = self.fusion(torch.cat([audio_features, face_features], 2))
        mirrored = _mirrored(x.shape[1], lengths)[..., None]
        backward = self.back(x.gather(1, mirrored.expand(x.shape)))[0]
        backward = backward.gather(1, mirrored.expand(backward.shape))
        return self.head(self.attention(torch.cat([self.ahead(x)[0], backward], 2)))[..., 0]


class _Attention(nn.Module):
    """Weights each channel of each frame [B, T, C] by a sigmoid of all of its channels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(len(weight), len(weight))
        self.linear.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear(x).sigmoid()


def _inside(num_rows: int, lengths: Tensor) -> Tensor:
    """Return f32 [B, rows]: 1 for the first ``lengths`` [B] rows, 0 in the padding."""
    return (torch.arange(num_rows, device=lengths.device) < lengths[:, None]).float()


def _mirrored(num_frames: int, lengths: Tensor) -> Tensor:
    """Return i64 [B, T], the frame that takes each one's place when the clip, without its padding, is reversed."""
    frame = torch.arange(num_frames, device=lengths.device)
    backward = lengths[:, None] - 1 - frame
    return backward.where(backward >= 0, frame)


def _layers(block: nn.Module) -> list[nn.Module]:
    assert isinstance(block, nn.ModuleList)
    return list(block)


def _over_time(x: Tensor, num_clips: int) -> Tensor:
    """View [B T, C, H, W], stored with C last, as [B, C, T, H W], without a copy."""
    channels = x.shape[1]
    return x.permute(0, 2, 3, 1).reshape(num_clips, -1, x.shape[2] * x.shape[3], channels).permute(0, 3, 1, 2)


def _visual_block(weights: Weights, i: int) -> nn.ModuleList:
    """Convolutions over 5 x 5 and 3 x 3 pixels, then 5 and 3 frames; the first halves the size of the image."""
    prefix, (_, between, out) = f"model.visualEncoder.{_BLOCKS[i]}", _WIDTHS[i]
    spatial = (("s_1", "s_norm_1", between, 5), ("s_2", "s_norm_2", out, 3))
    temporal = (("t_1", "t_norm_1", out, 5), ("t_2", "t_norm_2", out, 3))
    layers, width = nn.ModuleList(), _WIDTHS[i][0]
    for name, norm, channels, size in spatial:
        folded = _folded(weights, f"{prefix}.{name}", f"{prefix}.{norm}", (channels, width, 1, size, size))
        layers.append(_convolution(folded[0][:, :, 0], folded[1], stride=2 if i == 0 and width == 1 else 1))
        width = channels
    for name, norm, channels, size in temporal:
        folded = _folded(weights, f"{prefix}.{name}", f"{prefix}.{norm}", (channels, width, size, 1, 1))
        layers.append(_convolution(folded[0][..., 0], folded[1]))
    return layers


def _audio_block(weights: Weights, i: int) -> nn.ModuleList:
    """Convolutions over 5 and 3 coefficients, then 5 and 3 rows."""
    prefix, (width, between, out) = f"model.audioEncoder.{_BLOCKS[i]}", _WIDTHS[i]
    layers = nn.ModuleList()
    for name, norm, channels, size in (("m_1", "m_norm_1", between, (5, 1)), ("m_2", "m_norm_2", out, (3, 1)),
                                       ("t_1", "t_norm_1", out, (1, 5)), ("t_2", "t_norm_2", out, (1, 3))):  # fmt: skip
        folded = _folded(weights, f"{prefix}.{name}", f"{prefix}.{norm}", (channels, width, *size))
        layers.append(_convolution(folded[0].transpose(2, 3), folded[1]))  # published with time as the last axis
        width = channels
    return layers


def _convolution(weight: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    channels, width, *size = weight.shape
    height, across = size
    layer = nn.Conv2d(width, channels, (height, across), stride, (height // 2, across // 2))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _attention(weights: Weights, prefix: str, width: int) -> _Attention:
    weight, bias = _folded(weights, f"{prefix}.attention", f"{prefix}.bn", (width, width, 1))
    return _Attention(weight[..., 0], bias)


def _gru(weights: Weights, prefix: str) -> nn.GRU:
    layer = nn.GRU(2 * NUM_FEATURES, _HIDDEN, batch_first=True)
    layer.load_state_dict(
        {name: _take(weights, f"{prefix}.{name}", tuple(value.shape)) for name, value in layer.state_dict().items()}
    )
    return layer


def _folded(weights: Weights, convolution: str, norm: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Fold the batch normalisation that follows a convolution into its weight: f32 weight of ``shape`` and bias."""
    weight = _take(weights, f"{convolution}.weight", shape).double()
    names = ("weight", "bias", "running_mean", "running_var")
    gain, offset, mean, variance = (_take(weights, f"{norm}.{name}", shape[:1]).double() for name in names)
    scale = gain / (variance + _EPSILON).sqrt()
    return (weight * scale.view(-1, *(1,) * (len(shape) - 1))).float(), (offset - mean * scale).float()


def _take(weights: Weights, name: str, shape: tuple[int, ...]) -> Tensor:
    value = weights.get(name)
    if value is None or tuple(value.shape) != shape or not value.is_floating_point():
        found = "is missing" if value is None else f"is {value.dtype} {list(value.shape)}"
        raise ValueError(f"{name} must be a tensor {list(shape)} of floating-point numbers, it {found}")
    return value
