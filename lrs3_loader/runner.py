"""The whole way for one rank: prepare or resume the run, then lease, decode, extract, publish until nothing is left."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lrs3_loader import __version__, demo
from lrs3_loader.assets import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import LaunchConfig, RunConfig, as_json, resolve
from lrs3_loader.corpus import corpus_root, scan_corpus
from lrs3_loader.decode import ClipLoader
from lrs3_loader.disk import writing
from lrs3_loader.errors import REASONS, RunError
from lrs3_loader.extract import Extractor
from lrs3_loader.manifest import plan_sha256
from lrs3_loader.models import Models
from lrs3_loader.plan import make_plan
from lrs3_loader.progress import ProgressDisplay, Tally
from lrs3_loader.runfolder import RunFolder, Totals, demo_corpus_folder, differences
from lrs3_loader.runlock import RunLock
from lrs3_loader.types import FIELDS, Clip, Shard
from lrs3_loader.work import WorkQueue

logger = logging.getLogger(__name__)

SOFTWARE = ("torch", "torchaudio", "transformers", "numpy", "decord", "av", "praat-parselmouth", "webdataset")


@dataclass(frozen=True)
class Outcome:
    """What one launch did; only rank 0 gets one."""

    folder: RunFolder
    totals: Totals
    num_frames: int  # extracted by this launch
    seconds: float


def run(config: RunConfig, launch: LaunchConfig, queue: WorkQueue) -> Outcome | None:
    """Do this rank's part of a run, and on rank 0 wait for the others and add it all up.

    Raises:
        RunError: something the user has to put right, or another launch writes to the same folder. When rank 0 fails
            to start, the other ranks end silently.
    """
    with contextlib.ExitStack() as held:
        return _run(config, launch, queue, held)


def _run(config: RunConfig, launch: LaunchConfig, queue: WorkQueue, held: contextlib.ExitStack) -> Outcome | None:
    device = pick_device(launch.device)
    config = resolve(config, device.type)
    if launch.demo:
        config = replace(config, corpus=replace(config.corpus, corpus=demo_corpus_folder(launch.out), layout="lrs3"))
    configure_torch(config.threads)
    assets = Assets(launch.assets)
    if queue.rank == 0:
        try:
            held.enter_context(RunLock(launch.out))
            folder, extractor, pending = prepare(config, launch, assets, device)
        except BaseException as error:
            queue.announce({"error": str(error)})
            raise
        queue.announce({"pending": pending})
    else:
        message = queue.announcement()
        if "error" in message:
            raise SystemExit(1)  # rank 0 has said why
        pending = message["pending"]
        folder = RunFolder.open(launch.out)
        extractor = Extractor(config, Models.load(config, assets, device), device)

    if queue.rank != 0:
        extract_shards(folder, pending, config, launch, extractor, queue)
        queue.add("ranks_done", 1)
        return None
    num_clips = sum(len(shard.clips) for shard in folder.shards)
    num_pending = sum(len(folder.shards[index].clips) for index in pending)
    try:
        with ProgressDisplay(queue, num_clips, num_clips - num_pending) as display:
            extract_shards(folder, pending, config, launch, extractor, queue)
            queue.add("ranks_done", 1)
            while queue.add("ranks_done", 0) < queue.world_size:
                time.sleep(0.2)
            seconds = display.seconds
    except KeyboardInterrupt:
        num_left = len(folder.pending())
        logger.info(
            "stopped with %d of %d shards to go; run the same command again to resume", num_left, len(folder.shards)
        )
        raise
    return Outcome(folder, folder.totals(), queue.add("frames", 0), seconds)


def prepare(
    config: RunConfig, launch: LaunchConfig, assets: Assets, device: torch.device
) -> tuple[RunFolder, Extractor, list[int]]:
    """Rank 0's part before any work: corpus, models, run folder, and the indices of the shards to do."""
    if launch.demo:
        with writing(demo_corpus_folder(launch.out)):
            demo.make_demo_corpus(demo_corpus_folder(launch.out))
    shards = None
    if not RunFolder.exists(launch.out):
        shards = plan_corpus(config)
    assets.ensure(config.face.face_model)
    extractor = Extractor(config, Models.load(config, assets, device), device)
    if shards is not None:
        record = make_record(config, device, extractor.models.record, shards)
        folder = RunFolder.create(launch.out, record, shards)
    else:
        folder = resume(config, launch.out, device, extractor.models.record)
    folder.clear_scratch()
    if launch.retry_rejects is None:
        pending = folder.pending()
    else:
        unknown = set(launch.retry_rejects) - set(REASONS)
        if unknown:
            raise RunError(f"unknown reject reason {', '.join(sorted(unknown))}; known are {', '.join(REASONS)}")
        pending = folder.with_rejects(launch.retry_rejects)
    num_clips = sum(len(shard.clips) for shard in folder.shards)
    logger.info(
        "%d clips in %d shards, %d shards to do, on %s",
        num_clips,
        len(folder.shards),
        len(pending),
        device.type,
    )
    return folder, extractor, pending


def plan_corpus(config: RunConfig) -> tuple[Shard, ...]:
    """Find the clips and cut them into shards."""
    clips = scan_corpus(config.corpus)
    return make_plan(clips, config.plan, corpus_root(config.corpus))


def make_record(
    config: RunConfig, device: torch.device, models: dict[str, Any], shards: tuple[Shard, ...]
) -> dict[str, Any]:
    """The contents of ``run.json``."""
    return {
        "format": 1,
        "config": as_json(config),
        "device_type": device.type,
        "plan_sha256": plan_sha256(shards),
        "models": models,
        "fields": {name: as_json(spec) for name, spec in FIELDS.items()},
        "software": software(),
    }


def resume(config: RunConfig, path: Path, device: torch.device, models: dict[str, Any]) -> RunFolder:
    """Open a run that was begun before, if this launch would write the same bytes.

    Raises:
        RunError: the config, the models or the kind of device differ; the message lists each difference.
    """
    folder = RunFolder.open(path)
    now = {"config": as_json(config), "models": models, "device_type": device.type}
    lines = differences({name: folder.record.get(name) for name in now}, now)
    if lines:
        listed = "\n  ".join(lines)
        raise RunError(
            f"{path} holds a run with other settings (there -> asked for):\n  {listed}\n"
            "give the same settings to resume it, or another --out to begin a new one"
        )
    if folder.record["software"] != software():
        changed = ", ".join(differences(folder.record["software"], software()))
        logger.warning("software changed since the run began (%s): last bits may differ between shards", changed)
    return folder


def extract_shards(
    folder: RunFolder,
    pending: list[int],
    config: RunConfig,
    launch: LaunchConfig,
    extractor: Extractor,
    queue: WorkQueue,
) -> None:
    """Lease shards until none is left; decode, extract and publish each."""
    tally = Tally(queue)

    def clips() -> Iterator[tuple[Shard, Clip]]:
        for index in queue.leases(pending):
            for clip in folder.shards[index].clips:
                yield folder.shards[index], clip

    root = corpus_root(config.corpus)
    provenance = {"software": software(), "device": extractor.device_name}
    with ClipLoader(clips(), root, config.decode, launch.workers, pitch=f0_praat) as loader:
        for shard, items in itertools.groupby(loader, key=lambda pair: pair[0]):
            timings: dict[str, float] = {}
            results = extractor.extract((item for _, item in items), timings, tally.add)
            folder.publish(shard, results, timings, provenance)
            tally.flush()


def pick_device(name: str) -> torch.device:
    """``auto``: this rank's GPU where there is one; else what is named.

    Raises:
        RunError: no such device here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank % max(torch.cuda.device_count(), 1)}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise RunError(f"--device {name} cannot be used here ({first_line}); try --device cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def configure_torch(threads: int) -> None:
    """Same input, same bits: fixed thread count, no kernels chosen by timing."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def software() -> dict[str, str]:
    """Versions of everything that can change a number."""
    versions = {name: metadata.version(name) for name in SOFTWARE}
    return {"lrs3_loader": __version__, "python": platform.python_version(), **versions}
