"""The loss of the generator.

    loss = error(decode(z ~ posterior)) + error(decode(mode of the prior)) + w_kl KL + w_sync sync

The second term makes the mode of the prior, which ``generate(temperature=0)`` decodes, a best estimate. ``error`` is
the mean square of the normalised motion plus ``w_velocity`` times that of its change from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lrs3_loader.audio2motion.model import MotionModel, reference_of
from lrs3_loader.stream.tasks import MOUTH, SYNC_FRAMES, SYNC_ROWS, Item
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.types import ROWS_PER_FRAME

_SYNC_WINDOWS = 4  # drawn from each clip and step


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss."""

    kl: float
    velocity: float
    sync: float


def motion_loss(
    network: MotionModel, batch: Item, speech: str, target: str, weights: LossWeights, expert: SyncNetModel | None
) -> dict[str, torch.Tensor]:
    """Return the loss of a batch of task ``"audio2motion"``, and its parts.

    Args:
        speech: name of the field with the speech features. target: name of that with the motion.
        expert: a lip-sync network, frozen; with it the batch needs ``hubert``, and the target is ``idexp_lm3d``.
    """
    motion, mask, rows = batch[target], batch["y_mask"][..., None], batch["x_mask"][..., None]
    seen = batch["valid"][..., None]
    reference = reference_of(motion, seen)
    condition = network.condition(network.speech_inputs(batch[speech], batch["f0"], rows), mask)
    posterior = network.posterior(motion, reference, condition, mask)
    noise = torch.randn_like(posterior.latent)
    found = network.decode(posterior.latent, reference, condition, mask)
    estimate = network.decode(network.draw(torch.zeros_like(noise), condition, mask), reference, condition, mask)
    parts = {
        "reconstruction": _error(found - motion, seen, weights.velocity) / network.motion_deviation.square(),
        "estimate": _error(estimate - motion, seen, weights.velocity) / network.motion_deviation.square(),
        "kl": posterior.kl.sum() / mask.sum(),
    }
    loss = parts["reconstruction"] + parts["estimate"] + weights.kl * parts["kl"]
    if expert is not None and weights.sync > 0:
        sample = network.decode(network.draw(noise, condition, mask), reference, condition, mask)
        parts["sync"] = sync_loss(expert, sample, batch["hubert"], batch["y_lengths"])
        loss = loss + weights.sync * parts["sync"]
    return {"loss": loss, **parts}


def _error(difference: torch.Tensor, seen: torch.Tensor, velocity_weight: float) -> torch.Tensor:
    """Mean square of [B, T, C] where ``seen`` [B, T, 1] is 1, and of its change between two such frames."""
    width = difference.shape[-1]
    error = (difference * seen).square().sum() / (seen.sum() * width).clamp_min(1.0)
    both = seen[:, 1:] * seen[:, :-1]
    change = (difference.diff(dim=1) * both).square().sum() / (both.sum() * width).clamp_min(1.0)
    return error + velocity_weight * change


def sync_loss(expert: SyncNetModel, motion: torch.Tensor, hubert: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the expert's cross-entropy for "these lips belong to this sound", over windows of 0.2 s.

    ``_SYNC_WINDOWS`` windows are drawn from each clip of at least 5 frames; gradients go into the motion only.

    Args:
        motion: [B, T, 204] (decimetres x 10). hubert: [B, 2T, D]. lengths: [B], true frames.
    """
    last = lengths - SYNC_FRAMES  # the last frame at which a window may begin
    drawn = torch.rand(len(motion), _SYNC_WINDOWS, device=motion.device)
    starts = (drawn * (last[:, None] + 1).clamp_min(1)).long()  # [B, W]
    clips = torch.arange(len(motion), device=motion.device)[:, None, None]
    frames = starts[..., None] + torch.arange(SYNC_FRAMES, device=motion.device)
    rows = ROWS_PER_FRAME * starts[..., None] + torch.arange(SYNC_ROWS, device=motion.device)
    mouth = motion.unflatten(-1, (-1, 3))[:, :, MOUTH].flatten(2)
    enough = (last >= 0)[:, None].expand_as(starts).flatten().to(motion.dtype)
    inside = lengths[:, None, None] - 1
    logits = expert(
        mouth[clips, frames.minimum(inside.clamp_max(motion.shape[1] - 1))].flatten(0, 1),
        hubert[clips, rows.minimum(ROWS_PER_FRAME * inside + 1)].flatten(0, 1),
    )
    return (F.softplus(-logits) * enough).sum() / enough.sum().clamp_min(1.0)
