"""The whole way for one rank: prepare or resume the run, then lease, decode, extract, publish until nothing is left."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lrs3_loader import __version__, demo
from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import LaunchConfig, RunConfig, adopt, as_json, resolve
from lrs3_loader.corpus.plan import make_plan
from lrs3_loader.corpus.scan import corpus_root, scan_corpus
from lrs3_loader.decode.dataset import ClipLoader, import_ahead
from lrs3_loader.doctor.room import warn_if_tight
from lrs3_loader.errors import REASONS, RunError
from lrs3_loader.extract.extractor import Extractor
from lrs3_loader.extract.models import Models, require_extras
from lrs3_loader.extract.upload import upload
from lrs3_loader.io.disk import writing
from lrs3_loader.io.files import utc_now
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.launch.progress import COUNTERS, ProgressDisplay, Tally
from lrs3_loader.run.folder import RunFolder, Totals, demo_corpus_folder, differences
from lrs3_loader.run.lock import RunLock
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.runtime.memory import keep_freed_memory
from lrs3_loader.runtime.pipelining import Follower
from lrs3_loader.types import FIELDS, Clip, ClipFeatures, Reject, Shard

INDEX_EVERY = 1_000  # shards that all ranks publish between two savings of the index; whoever publishes that one saves

logger = logging.getLogger(__name__)

SOFTWARE = ("torch", "torchaudio", "transformers", "numpy", "decord", "av", "praat-parselmouth", "webdataset")


@dataclass(frozen=True)
class Outcome:
    """What one launch did; only rank 0 gets one."""

    folder: RunFolder
    totals: Totals
    num_frames: int  # extracted by this launch
    seconds: float
    padding: dict[str, float]  # share of the batches that held nothing, of frames and of sound


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
    if launch.demo:
        config = replace(config, corpus=replace(config.corpus, corpus=demo_corpus_folder(launch.out), layout="lrs3"))
    configure_torch(config.threads)
    import_ahead(f0_praat)
    assets = Assets(launch.assets)
    if queue.rank == 0:
        try:
            if isinstance(launch.out, Path):  # object storage knows no locks
                held.enter_context(RunLock(launch.out))
            folder, extractor, pending = prepare(config, launch, assets, device)
            config = extractor.config
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
        config = settle(config, folder, device)
        extractor = Extractor(config, Models.load(config, assets, device), device)

    if queue.rank != 0:
        extract_shards(folder, queue.leases(pending), config, launch, extractor, queue)
        queue.leave()
        return None
    num_clips = folder.shards.num_clips
    num_pending = sum(folder.shards.counts[index] for index in pending)
    try:
        with ProgressDisplay(queue, num_clips, num_clips - num_pending) as display:
            extract_shards(folder, queue.leases(pending), config, launch, extractor, queue)
            queue.leave()
            if silent := queue.wait_for_all():
                logger.warning("ranks %s fell silent: doing what they left", ", ".join(map(str, silent)))
                left = queue.leases(folder.pending(), "left")
                extract_shards(folder, left, config, launch, extractor, queue)
            seconds = display.seconds
    except KeyboardInterrupt:
        num_left = len(folder.pending())
        logger.info(
            "stopped with %d of %d shards to go; run the same command again to resume", num_left, len(folder.shards)
        )
        raise
    counted = {name: queue.add(name, 0) for name in COUNTERS}
    padding = {
        "frames": 1 - counted["frames"] / max(counted["frame_slots"], counted["frames"], 1),
        "sound": 1 - counted["sound_samples"] / max(counted["sound_slots"], 1),
    }
    totals = folder.totals()
    folder.save_index()
    return Outcome(folder, totals, counted["frames"], seconds, padding if counted["frames"] else {})


def prepare(
    config: RunConfig, launch: LaunchConfig, assets: Assets, device: torch.device
) -> tuple[RunFolder, Extractor, list[int]]:
    """Rank 0's part before any work: corpus, models, run folder, and the indices of the shards to do."""
    require_extras(config.face)
    if launch.demo:
        with writing(demo_corpus_folder(launch.out)):
            demo.make_demo_corpus(demo_corpus_folder(launch.out))
    begun = RunFolder.open(launch.out) if RunFolder.exists(launch.out) else None
    config = settle(config, begun, device)
    shards = plan_corpus(config) if begun is None else None
    if shards is not None:
        warn_if_tight(config, shards, launch.out, assets)
    assets.ensure(config.face.face_model)
    extractor = Extractor(config, Models.load(config, assets, device), device)
    if shards is not None:
        record = make_record(config, device, extractor.models.record, shards)
        folder = RunFolder.create(launch.out, record, shards)
    else:
        assert begun is not None
        folder = begun
        check_same(folder, config, device, extractor.models.record)
    folder.clear_scratch()
    if launch.retry_rejects is None:
        pending = folder.pending()
    else:
        unknown = set(launch.retry_rejects) - set(REASONS)
        if unknown:
            raise RunError(f"unknown reject reason {', '.join(sorted(unknown))}; known are {', '.join(REASONS)}")
        pending = folder.with_rejects(launch.retry_rejects)
    folder.save_index()
    logger.info(
        "%d clips in %d shards, %d shards to do, on %s",
        folder.shards.num_clips,
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


def settle(config: RunConfig, begun: RunFolder | None, device: torch.device) -> RunConfig:
    """The config with nothing left to the device: as the run was begun, or by the memory that is free now."""
    if begun is not None and begun.record.get("device_type") == device.type:
        config = adopt(config, begun.record["config"])
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return resolve(config, device.type, free_bytes)


def check_same(folder: RunFolder, config: RunConfig, device: torch.device, models: dict[str, Any]) -> None:
    """Whether this launch would write the same bytes as the one that began the run.

    Raises:
        RunError: the config, the models or the kind of device differ; the message lists each difference.
    """
    now = {"config": as_json(config), "models": models, "device_type": device.type}
    lines = differences({name: folder.record.get(name) for name in now}, now)
    if lines:
        listed = "\n  ".join(lines)
        raise RunError(
            f"{folder.path} holds a run with other settings (there -> asked for):\n  {listed}\n"
            "give the same settings to resume it, or another --out to begin a new one"
        )
    if folder.record["software"] != software():
        changed = ", ".join(differences(folder.record["software"], software()))
        logger.warning("software changed since the run began (%s): last bits may differ between shards", changed)


def extract_shards(
    folder: RunFolder,
    leases: Iterable[int],
    config: RunConfig,
    launch: LaunchConfig,
    extractor: Extractor,
    queue: WorkQueue,
) -> None:
    """Decode, extract and publish each shard that is leased, until none is left."""
    tally = Tally(queue)

    def clips() -> Iterator[tuple[Shard, Clip]]:
        for index in leases:
            shard = folder.shards[index]
            for clip in shard.clips:
                yield shard, clip

    root = corpus_root(config.corpus)
    provenance = {"software": software(), "device": extractor.device_name, "rank": queue.rank}
    on_gpu = extractor.device.type == "cuda"

    def publish(
        shard: Shard, results: Iterable[ClipFeatures | Reject], timings: dict[str, float], started_at: str
    ) -> None:
        with extractor.own_stream():
            folder.publish(shard, results, timings, {**provenance, "started_at": started_at})
        tally.flush()
        if queue.add("shards", 1) % INDEX_EVERY == 0:
            folder.published()
            folder.save_index()

    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(ClipLoader(clips(), root, config.decode, launch.workers, pitch=f0_praat))
        decoded = stack.enter_context(contextlib.closing(upload(loader, extractor.device)))
        stack.callback(loader.stop)  # a thread of ``decoded`` may be waiting for it
        follower = stack.enter_context(Follower("publish"))
        for shard, items in itertools.groupby(decoded, key=lambda pair: pair[0]):
            timings: dict[str, float] = {}
            started_at = utc_now()
            watched = extractor.watch((item for _, item in items), timings, tally.add)
            # A GPU finishes one shard while it watches the next; a core has nothing to gain from that.
            results = extractor.finish(watched) if on_gpu else list(extractor.finish(watched))
            follower.submit(partial(publish, shard, results, timings, started_at))


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
    """Same input, same bits: fixed thread count, no kernels chosen by timing.

    For the whole process: where one part's wishes hold only while it runs, they would reach into what other threads do.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def software() -> dict[str, str]:
    """Versions of everything that can change a number."""
    versions = {name: metadata.version(name) for name in SOFTWARE}
    return {"lrs3_loader": __version__, "python": platform.python_version(), **versions}
