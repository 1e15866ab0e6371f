"""Prepares a launch on rank 0: starts a new run, or checks that this launch can resume an existing one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import LaunchConfig, RunConfig, as_json, inherit_auto_values, resolve, upgrade_saved
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import corpus_root, find_corpus
from lrs3_loader.doctor.disk_space import warn_if_short_of_space
from lrs3_loader.errors import RunError, count_of
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.models import Models, require_extras
from lrs3_loader.launch.adding import config_with_added, record_added
from lrs3_loader.launch.identity import (
    adopt_names,
    check_compatible,
    check_offsets,
    find_new_clips,
    software,
    tell_changes,
    what_decides_bytes,
)
from lrs3_loader.run.folder import RunFolder, demo_corpus_folder
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.offsets import load_offsets, with_offsets
from lrs3_loader.runtime.device import free_gpu_bytes
from lrs3_loader.types import FIELDS, Clip, Shard

logger = logging.getLogger(__name__)


def prepare(
    config: RunConfig, launch: LaunchConfig, assets: Assets, device: torch.device
) -> tuple[RunFolder, ShardExtractor, list[int]]:
    """Prepare corpus, models and run folder on rank 0.

    Returns:
        the run's folder, the extractor with its models loaded, and the indices of the shards still to be done.

    Raises:
        RunError: the corpus, a model file or the folder cannot be used; the message says what to do.
    """
    require_extras(config.face)
    if launch.demo:
        from lrs3_loader.demo import make_demo_corpus

        make_demo_corpus(demo_corpus_folder(launch.out))
    begun = RunFolder.open(launch.out) if RunFolder.exists(launch.out) else None
    if launch.add:
        if begun is None:
            raise RunError(f"--add is for a run that has begun, and {launch.out} holds none")
        config = config_with_added(begun, config, launch.add)
    config = finalize_config(config, begun, device)
    shards: tuple[Shard, ...] = ()
    added: tuple[Clip, ...] = ()
    if begun is None:
        corpus = find_corpus(config.corpus)
        logger.info("%s", corpus.describe())
        config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, layout=corpus.layout))
        found = corpus.clips if launch.offsets is None else with_offsets(corpus.clips, _offsets(launch))
        shards = make_plan(found, config.plan, corpus.root)
        warn_if_short_of_space(config, shards, launch.out, assets)
    else:
        added = find_new_clips(begun, config.corpus, launch.extend)
        if launch.offsets is not None:
            offsets = _offsets(launch)
            check_offsets(begun, offsets)
            added = with_offsets(added, offsets)
    assets.ensure(config.face.face_model, speaking=config.speaking.needs_scores)
    extractor = load_extractor(config, assets, device, begun, adding=bool(launch.add))
    if begun is not None and launch.add:
        begun = record_added(begun, extractor)
    if begun is not None:
        folder = grow(begun, added, config) if added else begun
    else:
        now = what_decides_bytes(extractor)
        fields = {name: as_json(spec) for name, spec in FIELDS.items()}
        record = {"format": 1, **now, "plan_sha256": plan_sha256(shards), "fields": fields, "software": software()}
        folder = RunFolder.create(launch.out, record, shards)
    pending = _find_pending(folder, launch)
    folder.save_index()
    if begun is not None and not (pending or launch.extend):
        tell_changes(folder, config.corpus)
    clips, all_shards = count_of(folder.shards.num_clips, "clip"), count_of(len(folder.shards), "shard")
    logger.info("%s in %s, %s to do, on %s", clips, all_shards, count_of(len(pending), "shard"), device.type)
    return folder, extractor, pending


def _find_pending(folder: RunFolder, launch: LaunchConfig) -> list[int]:
    """Clear what earlier launches left, and return the indices of the shards that this one is to make."""
    damaged = folder.unpublish_damaged() if launch.repair else []
    folder.clear_scratch()
    if launch.retry_rejects is None:
        return folder.pending()
    return sorted({*folder.with_rejects(launch.retry_rejects), *damaged})


def _offsets(launch: LaunchConfig) -> dict[str, int]:
    limits = launch.offsets_limits
    return load_offsets(
        str(launch.offsets),
        min_offset_frames=limits.min_offset_frames,
        max_offset_frames=limits.max_offset_frames,
        min_confidence=limits.min_offset_confidence,
    )


def load_extractor(
    config: RunConfig, assets: Assets, device: torch.device, begun: RunFolder | None, *, adding: bool = False
) -> ShardExtractor:
    """Load all models, and check that they and the config are those of the run that was begun, if any.

    Args:
        adding: the config stores more fields than that of the run.

    Raises:
        RunError: a model cannot be loaded, or something differs (see ``identity.check_compatible``).
    """
    models = Models.load(config, assets, device)
    extractor = ShardExtractor(dataclasses.replace(config, kernels=models.kernels), models, device)
    if begun is not None:
        adopt_names(extractor, begun)
        now = what_decides_bytes(extractor)
        check_compatible(begun, {**now, "config": upgrade_saved(begun.record["config"])} if adding else now)
    return extractor


def grow(folder: RunFolder, added: Sequence[Clip], config: RunConfig) -> RunFolder:
    """Plan further shards for new clips of the corpus; their numbers follow those of their split."""
    last: dict[str, int] = {}
    for name in folder.shards.names:
        split, _, number = name.rpartition("-")
        last[split] = max(last.get(split, -1), int(number))
    planned = make_plan(added, config.plan, corpus_root(config.corpus))
    shards = []
    for shard in planned:
        split, _, number = shard.name.rpartition("-")
        shards.append(Shard(f"{split}-{last.get(split, -1) + 1 + int(number):06d}", shard.clips))
    logger.info("added: %s in %s", count_of(len(added), "clip"), count_of(len(shards), "shard"))
    return folder.extend(shards)


def finalize_config(config: RunConfig, begun: RunFolder | None, device: torch.device) -> RunConfig:
    """Fill in all values left to the device: those the run was started with, or by the memory that is free now."""
    if begun is not None and begun.record.get("device_type") == device.type:
        config = inherit_auto_values(config, upgrade_saved(begun.record["config"]))
    return resolve(config, device.type, free_gpu_bytes(device))
