"""Prepares a launch on rank 0: starts a new run, or checks that this launch can resume an existing one."""

from __future__ import annotations

import logging
import platform
from importlib import metadata
from typing import Any

import torch

from lrs3_loader import __version__, demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.config import LaunchConfig, RunConfig, as_json, inherit_auto_values, resolve, upgrade_saved
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.doctor.disk_space import warn_if_short_of_space
from lrs3_loader.errors import REASONS, RunError
from lrs3_loader.extract.extractor import Extractor
from lrs3_loader.extract.models import Models, require_extras
from lrs3_loader.run.folder import RunFolder, demo_corpus_folder, differences
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.types import FIELDS, Shard

logger = logging.getLogger(__name__)

SOFTWARE = ("torch", "torchaudio", "transformers", "numpy", "av", "praat-parselmouth", "webdataset")


def prepare(
    config: RunConfig, launch: LaunchConfig, assets: Assets, device: torch.device
) -> tuple[RunFolder, Extractor, list[int]]:
    """Prepare corpus, models and run folder on rank 0.

    Returns:
        the run's folder, the extractor with its models loaded, and the indices of the shards still to be done.

    Raises:
        RunError: the corpus, a model file or the folder cannot be used; the message says what to do.
    """
    require_extras(config.face)
    if launch.demo:
        demo.make_demo_corpus(demo_corpus_folder(launch.out))
    begun = RunFolder.open(launch.out) if RunFolder.exists(launch.out) else None
    config = finalize_config(config, begun, device)
    shards: tuple[Shard, ...] = ()
    if begun is None:
        root = corpus_root(config.corpus)
        shards = make_plan(scan_corpus(config.corpus), config.plan, root)
        warn_if_short_of_space(config, shards, launch.out, assets)
    assets.ensure(config.face.face_model, speaking=config.speaking.needs_scores)
    extractor = Extractor(config, Models.load(config, assets, device), device)
    now = what_decides_bytes(extractor)
    if begun is not None:
        folder = begun
        check_compatible(folder, now)
    else:
        fields = {name: as_json(spec) for name, spec in FIELDS.items()}
        record = {"format": 1, **now, "plan_sha256": plan_sha256(shards), "fields": fields, "software": software()}
        folder = RunFolder.create(launch.out, record, shards)
    if unknown := sorted(set(launch.retry_rejects or ()) - set(REASONS)):
        raise RunError(f"unknown reject reason {', '.join(unknown)}; known are {', '.join(REASONS)}")
    damaged = folder.unpublish_damaged() if launch.repair else []
    folder.clear_scratch()
    if launch.retry_rejects is None:
        pending = folder.pending()
    else:
        pending = sorted({*folder.with_rejects(launch.retry_rejects), *damaged})
    folder.save_index()
    counts = folder.shards.num_clips, len(folder.shards), len(pending), device.type
    logger.info("%d clips in %d shards, %d shards to do, on %s", *counts)
    return folder, extractor, pending


def finalize_config(config: RunConfig, begun: RunFolder | None, device: torch.device) -> RunConfig:
    """Fill in all values left to the device: those the run was started with, or by the memory that is free now."""
    if begun is not None and begun.record.get("device_type") == device.type:
        config = inherit_auto_values(config, upgrade_saved(begun.record["config"]))
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return resolve(config, device.type, free_bytes)


def what_decides_bytes(extractor: Extractor) -> dict[str, Any]:
    """Return what this launch would write into ``run.json`` as ``config``, ``models`` and ``device_type``."""
    return {
        "config": as_json(extractor.config),
        "models": extractor.models.record,
        "device_type": extractor.device.type,
    }


def check_compatible(folder: RunFolder, now: dict[str, Any]) -> None:
    """Check that this launch (see ``what_decides_bytes``) would write the same bytes as the one that started the run.

    Raises:
        RunError: they differ from those of the run; the message lists each difference.
    """
    saved = folder.record["models"]
    # Runs of version 0.1 recorded no ``files``: what they hold is compared.
    models = {
        kind: {name: value for name, value in model.items() if name != "files" or name in saved.get(kind, {})}
        for kind, model in now["models"].items()
    }
    now = now | {"models": models}
    begun = {name: folder.record.get(name) for name in now}
    lines = differences(begun | {"config": upgrade_saved(folder.record["config"])}, now)
    if lines:
        listed = "\n  ".join(lines)
        raise RunError(
            f"{folder.path} holds a run with other settings (saved -> given now):\n  {listed}\n"
            "give the same settings and model files to resume it, or another --out to start a new one"
        )
    if folder.record.get("software") != software():
        changed = ", ".join(differences(folder.record.get("software", {}), software()))
        logger.warning("software changed since the run began (%s): last bits may differ between shards", changed)


def software() -> dict[str, str]:
    """Return the versions of all software that can change a number."""
    versions = {name: metadata.version(name) for name in SOFTWARE}
    return {"lrs3_loader": __version__, "python": platform.python_version(), **versions}
