"""The generator: a variational autoencoder of motion given speech, with a flow as its prior.

After the variational motion generator of GeneFace (Ye et al., "GeneFace: Generalized and high-fidelity audio-driven 3D
talking face synthesis", 2023): dilated convolutions over time, a latent at a quarter of the frame rate, and a
volume-preserving flow for what the speech tells of the latent.

    condition = encoder(speech, pitch)
    latent ~ q(latent | motion, condition) in training, or flow(noise, condition) when generating
    motion = reference + deviation * decoder(latent, condition)

The *reference* [C] is the person: their mean shape (``idexp_lm3d``) or mean expression (``exp``). The network predicts
movement about it, so it need not guess an unseen person's face from their voice. It does not see the reference itself,
from which it would learn the few people of a small corpus by heart.

Shape letters: B clips, T frames (a multiple of 4), L = T / 4 latent steps, D width of the speech features, C of the
motion, H channels, Z of the latent. Masks are [B, T, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lrs3_loader.audio2motion.flow import FlowPrior
from lrs3_loader.audio2motion.layers import TemporalStack, dilations
from lrs3_loader.types import ROWS_PER_FRAME

LATENT_FRAMES = 4  # per latent step
_PITCH_CHANNELS = 2  # voiced or not, and the logarithm of the pitch
_HIDDEN_PITCH = 0.2  # share of the training clips whose pitch is hidden, so that a sound may be given without
_LOG_SIGMA = (-6.0, 2.0)  # bounds of the posterior's
_LEAST = 1e-6


@dataclass(frozen=True)
class NetworkSize:
    """Channels and layers of a network."""

    width: int  # H
    condition_blocks: int  # of the encoder of speech; each is a convolution and a linear layer
    motion_blocks: int  # of the posterior, and of the decoder
    latent: int  # Z
    flow_layers: int
    dropout: float
    average_decay: float  # of the moving average of the weights, per step


SIZES = {
    "demo": NetworkSize(
        width=64,
        condition_blocks=4,
        motion_blocks=3,
        latent=8,
        flow_layers=2,
        dropout=0.3,
        average_decay=0.98,
    ),
    "real": NetworkSize(
        width=512,
        condition_blocks=12,
        motion_blocks=6,
        latent=32,
        flow_layers=4,
        dropout=0.1,
        average_decay=0.999,
    ),
}


def network_size(name: str | None) -> NetworkSize:
    """Return the size of that name; None stands for ``real``."""
    return SIZES[name or "real"]


@dataclass(frozen=True)
class Posterior:
    """A sample of the latent of a true motion, and its divergence from the prior."""

    latent: torch.Tensor  # [B, L, Z], a sample
    kl: torch.Tensor  # [B, L], its log q - log p: one sample of the divergence, in nats


class MotionModel(nn.Module):
    """Generates motion from speech.

    Nothing depends on the other clips of a batch or on padding, and any number of frames will do.
    """

    speech_deviation: torch.Tensor
    pitch_deviation: torch.Tensor
    reference_mean: torch.Tensor
    motion_deviation: torch.Tensor

    def __init__(self, speech_width: int, motion_width: int, size: NetworkSize):
        super().__init__()
        self.speech_width, self.motion_width, self.size = speech_width, motion_width, size
        width, inputs = size.width, ROWS_PER_FRAME * (speech_width + _PITCH_CHANNELS)
        self.speech_encoder = TemporalStack(inputs, width, width, dilations(size.condition_blocks), size.dropout)
        blocks = dilations(size.motion_blocks)
        self.posterior_encoder = TemporalStack(motion_width + width, width, width, blocks, size.dropout)
        self.posterior_moments = nn.Linear(width, 2 * size.latent)
        self.prior = FlowPrior(size.latent, width, size.flow_layers, width // 2)
        self.decoder = TemporalStack(size.latent + width, motion_width, width, blocks, size.dropout)
        self.register_buffer("speech_deviation", torch.ones(speech_width))
        self.register_buffer("pitch_deviation", torch.ones(()))
        self.register_buffer("reference_mean", torch.zeros(motion_width))
        self.register_buffer("motion_deviation", torch.ones(()))

    def speech_inputs(self, speech: torch.Tensor, f0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return normalised speech features and pitch, [B, 2T, D + 2].

        The mean of each feature over the clip is taken away, as is usual against the speaker's and the microphone's
        colour of the sound; so is the mean of the logarithm of the pitch over the voiced rows.

        Args:
            speech: [B, 2T, D]. f0: [B, 2T] Hz, 0 = unvoiced. rows: [B, 2T, 1], 1 = a true row.
        """
        centred = (speech - _masked_mean(speech, rows)) / self.speech_deviation
        voiced = (f0[..., None] > 0).to(speech.dtype) * rows
        pitch = f0[..., None].clamp_min(1.0).log()
        pitch = (pitch - _masked_mean(pitch, voiced)) / self.pitch_deviation * voiced
        return torch.cat([centred * rows, voiced, pitch], dim=-1)

    def condition(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the condition [B, T, H] of ``speech_inputs`` [B, 2T, D + 2].

        In training, some features of each clip are hidden for all of its length, and in some clips the pitch.
        """
        if self.training:
            speech, pitch = inputs.split((self.speech_width, _PITCH_CHANNELS), dim=-1)
            speech = F.dropout1d(speech.transpose(1, 2), self.size.dropout).transpose(1, 2)
            shown = (torch.rand(len(inputs), 1, 1, device=inputs.device) >= _HIDDEN_PITCH).to(inputs.dtype)
            inputs = torch.cat([speech, pitch * shown], dim=-1)
        return self.speech_encoder(inputs.unflatten(1, (-1, ROWS_PER_FRAME)).flatten(2), mask)

    def posterior(
        self, motion: torch.Tensor, reference: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor
    ) -> Posterior:
        """Encode a true motion [B, T, C], and draw a latent."""
        moved = (motion - reference[:, None]) / self.motion_deviation * mask
        hidden = _pooled(self.posterior_encoder(torch.cat([moved, condition], dim=-1), mask), mask)
        mean, log_sigma = self.posterior_moments(hidden).chunk(2, dim=-1)
        log_sigma = log_sigma.clamp(*_LOG_SIGMA)
        noise = torch.randn_like(mean)
        latent = mean + noise * log_sigma.exp()
        prior_noise = self.prior.to_noise(latent, _pooled(condition, mask), mask[:, ::LATENT_FRAMES])
        kl = (0.5 * prior_noise.square() - 0.5 * noise.square() - log_sigma).sum(-1)
        return Posterior(latent, kl * mask[:, ::LATENT_FRAMES, 0])

    def draw(self, noise: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the latent [B, L, Z] that the prior makes of noise [B, L, Z]; zeros give its mode."""
        return self.prior.to_latent(noise, _pooled(condition, mask), mask[:, ::LATENT_FRAMES])

    def decode(
        self, latent: torch.Tensor, reference: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the motion [B, T, C] of a latent, in the unit of the training; padding is the reference."""
        spread = latent.repeat_interleave(LATENT_FRAMES, dim=1)
        moved = self.decoder(torch.cat([spread, condition], dim=-1), mask)
        return reference[:, None] + self.motion_deviation * moved

    @torch.inference_mode()
    def generate(
        self,
        speech: torch.Tensor,
        f0: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Generate the motion of one clip; the same arguments give the same motion.

        Args:
            speech: [2T, D] rows at 50 Hz, as stored in a run.
            f0: [2T] Hz, 0 = unvoiced; None: the pitch is not known.
            reference: [C], the person's mean motion; None: the mean of the people trained on.
            seed: of the sample.
            temperature: deviation of the noise. 1: a sample; 0: the mode of the prior, which is the best estimate.

        Returns:
            [T, C] f32 on the CPU: decimetres x 10 (``idexp_lm3d``) or coefficients (``exp``).

        Raises:
            ValueError: an array has a wrong shape.
        """
        rows, device = len(speech), self.speech_deviation.device
        if speech.ndim != 2 or speech.shape[1] != self.speech_width or rows == 0 or rows % ROWS_PER_FRAME:
            raise ValueError(f"speech must be [2T, {self.speech_width}] with T > 0, got {list(speech.shape)}")
        if f0 is not None and f0.shape != (rows,):
            raise ValueError(f"f0 must be [{rows}], a row for each of the speech features, got {list(f0.shape)}")
        if reference is not None and reference.shape != (self.motion_width,):
            raise ValueError(f"reference must be [{self.motion_width}], got {list(reference.shape)}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        num_frames = rows // ROWS_PER_FRAME
        padding = -num_frames % LATENT_FRAMES
        mask = F.pad(torch.ones(1, num_frames, 1, device=device), (0, 0, 0, padding))
        features = F.pad(speech.to(device, torch.float32)[None], (0, 0, 0, ROWS_PER_FRAME * padding))
        pitch = torch.zeros(features.shape[:2], device=device)
        if f0 is not None:
            pitch[0, :rows] = f0.to(device, torch.float32)
        person = self.reference_mean if reference is None else reference.to(device, torch.float32)
        steps = (num_frames + padding) // LATENT_FRAMES
        noise = torch.randn(1, steps, self.size.latent, generator=torch.Generator().manual_seed(seed))
        inputs = self.speech_inputs(features, pitch, mask.repeat_interleave(ROWS_PER_FRAME, dim=1))
        condition = self.condition(inputs, mask)
        latent = self.draw(temperature * noise.to(device), condition, mask)
        return self.decode(latent, person[None], condition, mask)[0, :num_frames].cpu()

    @torch.no_grad()
    def set_normalization(self, batches: Sequence[Mapping[str, Any]], speech: str, target: str) -> None:
        """Set what normalises the inputs, from batches of task ``"audio2motion"``.

        Speech features have a deviation each, about the mean of their clip. The coordinates of the motion share one,
        because it matters which of them move much.

        Args:
            speech: name of the field with the speech features. target: name of that with the motion.
        """
        centred, pitches, references, moved = [], [], [], []
        for batch in batches:
            rows, frames = batch["x_mask"][..., None], batch["valid"][..., None]
            centred.append((batch[speech] - _masked_mean(batch[speech], rows))[rows[..., 0] > 0])
            voiced = (batch["f0"] > 0)[..., None].float() * rows
            pitch = batch["f0"].clamp_min(1.0).log()[..., None]
            pitches.append((pitch - _masked_mean(pitch, voiced))[voiced > 0])
            reference = reference_of(batch[target], frames)
            references.append(reference)
            moved.append((batch[target] - reference[:, None])[frames[..., 0] > 0])
        self.speech_deviation.copy_(_rms(torch.cat(centred)).clamp_min(_LEAST))
        self.pitch_deviation.copy_(_rms(torch.cat(pitches)[:, None]).squeeze().clamp_min(_LEAST))
        self.reference_mean.copy_(torch.cat(references).mean(0))
        self.motion_deviation.copy_(torch.cat(moved).square().mean().sqrt().clamp_min(_LEAST))


class AveragedMotionModel(nn.Module):
    """The network that is trained, and the moving average of its weights over the steps, which is used afterwards.

    The average wanders less than the weights do at a constant learning rate, and fits the training clips less closely.
    """

    def __init__(self, model: MotionModel):
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(model.size.average_decay))
        self.average.requires_grad_(False)

    def update(self) -> None:
        """Take the present weights into the average; called once for each step."""
        self.average.update_parameters(self.model)

    @property
    def averaged(self) -> MotionModel:
        """The network with the average of the weights."""
        averaged = self.average.module
        assert isinstance(averaged, MotionModel), "a copy of the model"
        return averaged


def reference_of(motion: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Return the mean [B, C] of motion [B, T, C] over its frames with a face, ``frames`` [B, T, 1]."""
    return _masked_mean(motion, frames)[:, 0]


def _masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over time, [B, 1, N], of the steps where ``mask`` is 1; 0 where there is none."""
    return (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1.0)


def _pooled(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average [B, T, N] over the true frames of each latent step, [B, L, N]."""
    total = (values * mask).unflatten(1, (-1, LATENT_FRAMES)).sum(2)
    return total / mask.unflatten(1, (-1, LATENT_FRAMES)).sum(2).clamp_min(1.0)


def _rms(rows: torch.Tensor) -> torch.Tensor:
    """Return the root mean square [N] of rows [M, N]; 1 without any row."""
    return rows.square().mean(0).sqrt() if len(rows) else torch.ones(rows.shape[1:])
