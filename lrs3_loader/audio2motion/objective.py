"""Trains the generator by the common loop, and judges it beside its baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lrs3_loader.audio2motion.baselines import Ridge, RidgeClip
from lrs3_loader.audio2motion.checkpoint import Audio2MotionCheckpoint
from lrs3_loader.audio2motion.evaluate import ClipFigures, MotionEvaluation, score_motion
from lrs3_loader.audio2motion.loss import LossWeights, motion_loss
from lrs3_loader.audio2motion.model import AveragedMotionModel, MotionModel, network_size
from lrs3_loader.audio2motion.settings import Audio2MotionConfig
from lrs3_loader.audio2motion.targets import Target
from lrs3_loader.errors import RunError
from lrs3_loader.face.model.morphable import FaceModel
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.tar import Sample
from lrs3_loader.stream import Raw, ShardStream
from lrs3_loader.stream.tasks import Audio2Motion, Item
from lrs3_loader.syncnet.checkpoint import SyncNetCheckpoint
from lrs3_loader.syncnet.model import SyncNetModel
from lrs3_loader.train.checkpoint import feature_differences, feature_models
from lrs3_loader.train.ranks import gather, rank_and_world_size
from lrs3_loader.train.speakers import SpeakerSplit, speaker_of


class MotionTraining:
    """The generator of motion as an ``Objective``: motion of unseen speakers from their speech."""

    checkpoint = Audio2MotionCheckpoint
    best: tuple[str, Literal["highest", "lowest"]] = ("generator_mouth_centred_mm", "lowest")

    def __init__(
        self,
        folder: RunFolder,
        config: Audio2MotionConfig,
        sync: Path | None = None,
        face_model: FaceModel | None = None,
    ):
        """
        Args:
            sync: checkpoint of a lip-sync network, for its score in the evaluation, and for the loss if
                ``config.sync_weight`` is above 0. It is read when it is needed.
            face_model: that of the run; needed for target ``exp``.

        Raises:
            RunError: there are fewer than two speakers to train on, or the lip-sync network is missing or cannot read
                the target.
        """
        self.config, self._folder, self._sync_path = config, folder, sync
        self._split = SpeakerSplit.of(folder, config)
        if len(self._split.trained_on) < 2:
            raise RunError(f"{folder.path} leaves fewer than two speakers to train on: it needs three or more")
        self.target = Target(config.target, face_model)
        self._fitted: Ridge | None = None
        self._frozen: SyncNetModel | None = None
        if sync is None and config.sync_weight > 0:
            raise RunError("sync_weight is above 0 without a lip-sync network: give one with --sync CHECKPOINT")
        if sync is not None and config.target != "idexp_lm3d":
            raise RunError(f"a lip-sync network reads idexp_lm3d, not {config.target}: leave out --sync")

    @cached_property
    def features(self) -> dict[str, Any]:
        """The models that the features come from, and a hash of the lip-sync network if it is part of the loss.

        Raises:
            RunError: the lip-sync network cannot be read, or was trained on other features.
        """
        found = feature_models(self._folder.record)
        if self._sync is None:
            return found
        changes = feature_differences(self._sync.features, found)
        if changes:
            raise RunError(
                f"the lip-sync network was trained on other features than those of {self._folder.path} (trained on -> "
                f"found): {'; '.join(changes)}"
            )
        return {**found, "sync": _digest(self._sync)} if self.config.sync_weight > 0 else found

    @cached_property
    def _sync(self) -> SyncNetCheckpoint | None:
        return None if self._sync_path is None else SyncNetCheckpoint.load(self._sync_path)

    @property
    def speakers(self) -> frozenset[str]:
        return self._split.trained_on

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        fields = (self.config.speech, "f0", self.config.target, "valid")
        return fields if self._sync_path is None or "hubert" in fields else (*fields, "hubert")

    def stream(self, rank: int, world_size: int) -> ShardStream:
        config = self.config
        return ShardStream(
            self._folder.path,
            Audio2Motion(fields=self._fields),
            batch_size=config.batch_clips,
            crop_frames=config.crop_frames,
            seed=config.seed,
            select=self._split.is_trained_on,
            where=config.where,
            rank=rank,
            world_size=world_size,
        )

    def make_network(self, first: Sequence[Item]) -> AveragedMotionModel:
        speech, target = self.config.speech, self.config.target
        network = MotionModel(first[0][speech].shape[-1], first[0][target].shape[-1], network_size(self.config.size))
        network.set_normalization(first, speech, target)
        return AveragedMotionModel(network)

    def loss(self, network: AveragedMotionModel, batch: Item) -> dict[str, torch.Tensor]:
        config = self.config
        network.update()
        weights = LossWeights(config.kl_weight, config.velocity_weight, config.sync_weight)
        expert = self._expert(batch["valid"].device) if config.sync_weight > 0 else None
        return motion_loss(network.model, batch, config.speech, config.target, weights, expert)

    def evaluate(self, network: AveragedMotionModel) -> MotionEvaluation:
        """Evaluate the averaged weights on the held-out speakers, whose clips are divided among the ranks.

        Raises:
            RunError: none of their clips has a frame with a face.
        """
        model = network.averaged
        ridge = self._ridge(model)
        expert = None if self._sync is None else self._expert(model.motion_deviation.device)
        rank, world_size = rank_and_world_size()
        stream = self._clips(self._split.is_held_out, rank=rank, world_size=world_size, equal_batches=False)
        baselines = {
            "mean": lambda sample, reference: np.broadcast_to(reference, (len(sample["valid"]), len(reference))),
            "ridge": lambda sample, reference: reference + ridge(_inputs(model, sample, self.config.speech)),
        }
        found: list[ClipFigures] = []
        others = self._sounds_of_others()
        for sample in stream:
            if sample["valid"].any():
                other = others.get(sample["__key__"])
                found.append(score_motion(model, sample, self.config.speech, self.target, baselines, expert, other))
        try:
            return MotionEvaluation.of(gather(found))
        except ValueError as error:
            raise RunError(f"cannot evaluate on the held-out speakers of {self._folder.path}: {error}") from error

    def _clips(self, select: Any, **options: Any) -> ShardStream:
        where = self.config.where
        return ShardStream(
            self._folder.path, Raw(fields=self._fields), **{"shuffle": False, **options}, select=select, where=where
        )

    def _sounds_of_others(self) -> dict[str, np.ndarray]:
        """Return for each held-out clip the ``hubert`` of the next one, if there is a lip-sync network."""
        if self._sync is None:
            return {}
        sounds = {
            clip["__key__"]: clip["hubert"] for clip in self._clips(self._split.is_held_out, rank=0, world_size=1)
        }
        keys = list(sounds)
        return {key: sounds[other] for key, other in zip(keys, keys[1:] + keys[:1], strict=True) if key != other}

    def _ridge(self, network: MotionModel) -> Ridge:
        """Return the ridge regression, fitted on the training speakers; every rank fits the same."""
        if self._fitted is None:
            stream = self._clips(self._split.is_trained_on, shuffle=True, seed=0, rank=0, world_size=1)
            clips = islice((sample for sample in stream if sample["valid"].any()), self.config.baseline_clips)
            self._fitted = Ridge.fit([_ridge_clip(network, sample, self.config) for sample in clips])
        return self._fitted

    def _expert(self, device: torch.device) -> SyncNetModel:
        """Return the lip-sync network, frozen, on a device."""
        if self._frozen is None:
            assert self._sync is not None, "asked for only where one was given"
            self._frozen = self._sync.network(device).requires_grad_(False)
        return self._frozen


def _ridge_clip(network: MotionModel, sample: Sample, config: Audio2MotionConfig) -> RidgeClip:
    motion = sample[config.target].reshape(len(sample["valid"]), -1)
    moved = motion - motion[sample["valid"]].mean(0)
    inputs = _inputs(network, sample, config.speech)
    return RidgeClip(speaker_of(sample["__key__"]), inputs, moved, sample["valid"])


def _inputs(network: MotionModel, sample: Sample, speech: str) -> np.ndarray:
    """Return the network's normalised inputs [2T, D + 2] of a clip."""
    device = network.motion_deviation.device
    rows, f0 = (torch.from_numpy(sample[name]).to(device, torch.float32)[None] for name in (speech, "f0"))
    return network.speech_inputs(rows, f0, torch.ones_like(f0)[..., None])[0].cpu().numpy()


def _digest(sync: SyncNetCheckpoint) -> str:
    """Return a hash of the weights of a lip-sync network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sync.model.items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
