"""Speech features from a self-supervised encoder: HuBERT, WavLM or wav2vec 2.0, batched over clips.

(Whisper's encoder is in ``whisper``.)

The encoder gives one row every 320 samples, from a window of 400: ``n`` samples give ``(n - 80) // 320`` rows, so a
clip of ``640 T`` samples has ``2 T - 1``. The last row is repeated to make ``2 T``.

``chunking="reference"`` reproduces GeneFace: the whole utterance is normalised to zero mean and unit variance, then cut
into chunks of 320080 samples (20 s and the 80 that complete the last window) every 320000. Each chunk is encoded by
itself, and the rows of all chunks are joined.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lrs3_loader.audio.checkpoint import SpeechCheckpoint, load_checkpoint
from lrs3_loader.audio.mel import check_waveform
from lrs3_loader.audio.model_folder import RECEPTIVE_FIELD
from lrs3_loader.config import SpeechConfig
from lrs3_loader.runtime.batching import batch_by_length
from lrs3_loader.runtime.memory import split_on_oom
from lrs3_loader.runtime.transfer import join_on_device
from lrs3_loader.types import HOP_LENGTH, ROWS_PER_FRAME, SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_HOP = 20 * SAMPLE_RATE
OVERLAP = RECEPTIVE_FIELD - HOP_LENGTH  # samples that neighbouring windows share
CHUNK_LENGTH = CHUNK_HOP + OVERLAP
VARIANCE_FLOOR = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor
BATCH_SECONDS = {"cpu": 20.0, "cuda": 320.0}
#: The shortest chunk of a batch has at least this share of the length of its longest: padding costs as much as speech.
MIN_FILL = 0.85


class SpeechEncoder:
    """Computes hidden layers of a speech encoder for the audio of many clips: 50 rows per second.

    Batching changes no row beyond rounding (under 1e-4 in float32). Waveforms of different lengths are padded and
    masked, except for encoders whose convolutions normalise over time (``feat_extract_norm = "group"``): there, only
    waveforms of equal length share a batch. Results are deterministic.
    """

    def __init__(self, checkpoint: SpeechCheckpoint, config: SpeechConfig, device: torch.device | str) -> None:
        """Use a loaded checkpoint, whose layers above those of ``config.layer`` are dropped.

        Raises:
            ValueError: a layer is out of range, or comes twice.
        """
        self.device = torch.device(device)
        precise = "float32" if self.device.type == "cpu" else "bfloat16"
        self.dtype: torch.dtype = getattr(torch, precise if config.dtype == "auto" else config.dtype)
        self.layers = resolve_layers(config.layer, checkpoint.model.config.num_hidden_layers)
        self._checkpoint = checkpoint
        self.name = checkpoint.name  # in descriptions
        self.files = checkpoint.files  # sha256 by name, of all files that shape the numbers
        self._chunking: str = config.chunking
        seconds = config.batch_seconds or BATCH_SECONDS.get(self.device.type, BATCH_SECONDS["cuda"])
        self._batch_samples = int(seconds * SAMPLE_RATE)
        self._min_fill = MIN_FILL if self._is_padding_safe(checkpoint.model.config) else 1.0
        model: Any = self._adapted(checkpoint.model, max(self.layers))
        self._model = model.to(self.device, self.dtype)
        self._inputs: dict[int, torch.Tensor] = {}  # of layers, in the present batch
        for layer in set(self.layers) - {max(self.layers)}:
            blocks = getattr(self._model, "encoder", self._model).layers
            blocks[layer].register_forward_pre_hook(partial(self._keep_input, layer), with_kwargs=True)

    @staticmethod
    def _is_padding_safe(settings: Any) -> bool:
        """Return whether waveforms of different lengths may share a batch.

        Masked padding changes rows where convolutions are normalised over time, or where a batch norm makes masked
        zeros nonzero before the positional convolution, which pads an unpadded waveform with true zeros.
        """
        return settings.feat_extract_norm == "layer" and not getattr(settings, "conv_pos_batch_norm", False)

    def _adapted(self, model: PreTrainedModel, layer: int) -> PreTrainedModel:
        """Return the network as far as ``layer``."""
        model = _cut_above(model, layer)
        return _with_channels_last(model) if self.device.type == "cpu" else model  # not measured on a GPU

    def _keep_input(self, layer: int, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._inputs[layer] = given[0] if given else named["hidden_states"]

    @classmethod
    def load(cls, config: SpeechConfig, device: torch.device | str) -> SpeechEncoder:
        """Load the encoder that ``config.model`` names; raises as ``load_checkpoint`` and ``SpeechEncoder`` do."""
        checkpoint = load_checkpoint(config.model)
        if checkpoint.model.config.model_type == "whisper":
            from lrs3_loader.audio.whisper import WhisperEncoder

            return WhisperEncoder(checkpoint, config, device)
        return cls(checkpoint, config, device)

    @property
    def width(self) -> int:
        """The width D of a row."""
        return int(self._model.config.hidden_size)

    def num_rows(self, num_frames: int) -> int:
        """Return the true rows of a clip of T frames, before the last is repeated."""
        return ROWS_PER_FRAME * num_frames - 1

    def description(self, number: int = 0) -> dict[str, Any]:
        """Describe the encoder with one of its layers in JSON values, for the metadata of samples and runs."""
        return {
            "model": self.name,
            "type": self._model.config.model_type,
            "sha256": self._checkpoint.sha256,
            "untrained": self._checkpoint.untrained,
            "layer": self.layers[number],
            "width": self.width,
            "dtype": str(self.dtype).removeprefix("torch."),
            "normalized": self._checkpoint.normalize,
            "chunking": self._chunking,
            "transformers": metadata.version("transformers"),
        }

    def __call__(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode the audio of each clip; return the rows of the first layer, as ``encode`` gives them."""
        return [layers[0] for layers in self.encode(waveforms)]

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Encode the audio of each clip.

        Args:
            waveforms: per clip [640 T_i] f32, mono, 16 kHz; on any device.

        Returns:
            per clip and per layer [2 T_i, D] f32, on this encoder's device, in the order given; row 2 T - 1 repeats
            row 2 T - 2 (Whisper has rows of its own there).

        Raises:
            ValueError: a waveform is not a whole, positive number of video frames long.
        """
        chunks: list[torch.Tensor] = []
        chunks_of_clip: list[slice] = []
        for waveform in waveforms:
            check_waveform(waveform)
        lengths = [len(waveform) for waveform in waveforms]
        for waveform in join_on_device(waveforms, self.device).split(lengths) if lengths else ():
            if self._checkpoint.normalize:
                centred = waveform - waveform.mean()
                waveform = centred / (centred.square().mean() + VARIANCE_FLOOR).sqrt()
            first = len(chunks)
            chunks += [waveform[bounds] for bounds in self._bounds(len(waveform))]
            chunks_of_clip.append(slice(first, len(chunks)))
        rows = self._encode(chunks)
        clips = [self._joined(rows[bounds]) for bounds in chunks_of_clip]
        return [[clip[:, number] for number in range(len(self.layers))] for clip in clips]

    def _bounds(self, num_samples: int) -> list[slice]:
        """Return the parts of an utterance that are encoded separately."""
        return chunk_bounds(num_samples, self._chunking)

    def _num_rows_of(self, num_samples: int) -> int:
        """Return the rows of one part."""
        return (num_samples - OVERLAP) // HOP_LENGTH

    def _batch_length(self, length: int) -> int:
        """Return how many samples a part of this length takes in a batch that it does not share with longer ones."""
        return length

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Join the rows of the parts of a clip to 2 T."""
        return torch.cat([*parts, parts[-1][-1:]])

    def count_padding(self, lengths: Sequence[int]) -> dict[str, int]:
        """Count samples, without and with padding, in the batches that waveforms of these lengths form."""
        chunks = [bounds.stop - bounds.start for length in lengths for bounds in self._bounds(length)]
        taken = [self._batch_length(length) for length in chunks]
        batches = batch_by_length(taken, self._batch_samples, min_fill=self._min_fill)
        slots = sum(len(batch) * taken[batch[0]] for batch in batches)
        return {"audio_samples": sum(chunks), "audio_slots": slots}

    def _encode(self, chunks: list[torch.Tensor]) -> list[torch.Tensor]:
        """Encode normalised waveforms [n_i] in batches; returns [(n_i - 80) // 320, K layers, D] f32 for each."""
        rows: dict[int, torch.Tensor] = {}
        lengths = [len(chunk) for chunk in chunks]
        taken = [self._batch_length(length) for length in lengths]
        with _exact_arithmetic(), warnings.catch_warnings():
            # WavLM gives torch a boolean padding mask together with a position bias of floats
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")
            for batch in batch_by_length(taken, self._batch_samples, min_fill=self._min_fill):
                parts = split_on_oom(self._forward, [chunks[i] for i in batch])
                for i, clip_hidden in zip(batch, itertools.chain.from_iterable(parts), strict=True):
                    rows[i] = clip_hidden[: self._num_rows_of(lengths[i])].float()
        return [rows[i] for i in range(len(chunks))]

    def _forward(self, chunks: list[torch.Tensor]) -> torch.Tensor:
        """Run the network on one batch, longest chunk first; returns [B, rows of the longest, K layers, D]."""
        lengths = torch.tensor([len(chunk) for chunk in chunks])
        padded = nn.utils.rnn.pad_sequence(chunks, batch_first=True)
        mask = None
        if int(lengths.min()) < padded.shape[1]:
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(self.device)
        return self._layers_of(self._model(padded.to(self.dtype), attention_mask=mask).last_hidden_state)

    def _layers_of(self, last: torch.Tensor) -> torch.Tensor:
        """Return all wanted layers of the batch that was just computed, [B, R, K, D]."""
        if len(self.layers) == 1:
            return last[:, :, None]
        inputs = {**self._inputs, max(self.layers): last}
        self._inputs.clear()
        return torch.stack([inputs[layer] for layer in self.layers], 2)


def chunk_bounds(num_samples: int, chunking: str) -> list[slice]:
    """Return the chunks of an utterance that are encoded separately; their rows add up to those of the whole.

    ``chunking`` is ``whole`` for a single chunk, or ``reference`` for 320080 samples every 320000, without a tail that
    is too short for a row.
    """
    if chunking == "whole":
        return [slice(0, num_samples)]
    starts = range(0, num_samples, CHUNK_HOP)
    bounds = [slice(start, min(start + CHUNK_LENGTH, num_samples)) for start in starts]
    return [chunk for chunk in bounds if chunk.stop - chunk.start >= RECEPTIVE_FIELD]


def resolve_layers(given: int | tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Return the numbers of one or several layers as ``resolve_layer`` does; raises ``ValueError`` if two are equal."""
    layers = tuple(resolve_layer(layer, num_layers) for layer in (given if isinstance(given, tuple) else (given,)))
    if len(set(layers)) < len(layers):
        raise ValueError(f"a layer comes twice in {given}: of {num_layers} layers these are {layers}")
    return layers


def resolve_layer(layer: int | None, num_layers: int) -> int:
    """Return the number of transformer layers to run, from 0 (the input of the first) to ``num_layers`` (all of them).

    ``layer`` is the index of a hidden state; negative numbers count from the end, and None is the last. Raises
    ``ValueError`` if there is no such layer.
    """
    index = num_layers if layer is None else layer + num_layers + 1 if layer < 0 else layer
    if not 0 <= index <= num_layers:
        raise ValueError(f"layer must lie in 0..{num_layers} or -{num_layers + 1}..-1, got {layer}")
    return index


def _cut_above(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Drop the transformer layers above ``layer``, numbered as the hidden states of transformers.

    With "stable" layer norm the network ends in a layer norm that belongs to the last hidden state only.
    """
    encoder: Any = model.encoder
    if layer < len(encoder.layers):
        encoder.layers = encoder.layers[:layer]
        if model.config.do_stable_layer_norm:
            encoder.layer_norm = nn.Identity()
    positional = encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(positional):
        # Otherwise the weight norm is computed again in every call, and in low precision.
        parametrize.remove_parametrizations(positional, "weight")
    return model


class _ChannelsLastConv1d(nn.Module):
    """A Conv1d whose output [B, C, L] is stored as [B, L, C], without the copy of the input that torch's own makes.

    The layer norms and projections between these convolutions read [B, L, C], so that nothing is transposed.
    Groups of at most 8 channels are computed in float32: in bfloat16, oneDNN's kernels for AMX return wrong sums for
    them. No published encoder has such narrow groups, small ones for trials do.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        weight = conv.weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = conv.bias
        self.stride, self.groups = (1, *conv.stride), conv.groups
        self.padding, self.dilation = (0, *conv.padding), (1, *conv.dilation)
        self._narrow = conv.groups > 1 and conv.weight.shape[1] <= 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if self._narrow else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        found = nn.functional.conv2d(x[:, :, None].to(dtype), self.weight.to(dtype), bias, *settings)
        return found[:, :, 0].to(x.dtype)


def _with_channels_last(model: PreTrainedModel) -> PreTrainedModel:
    """Replace convolutions by channels-last ones: on a CPU in bfloat16, the encoder takes a tenth less time."""
    modules: Any = model
    layers = [modules.encoder.pos_conv_embed]
    if model.config.feat_extract_norm == "layer":  # a group norm reads [B, C, L]
        layers += modules.feature_extractor.conv_layers
    for layer in layers:
        layer.conv = _ChannelsLastConv1d(layer.conv)
    return model


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """Compute in float32 without TF32, with deterministic convolution algorithms."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
