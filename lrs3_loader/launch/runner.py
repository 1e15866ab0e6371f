"""Runs one rank: prepares or resumes the run, then leases, decodes, extracts and publishes its shards."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lrs3_loader.assets.locate import Assets
from lrs3_loader.audio.f0 import f0_praat
from lrs3_loader.config import LaunchConfig, RunConfig
from lrs3_loader.corpus.scan import corpus_root
from lrs3_loader.decode.loader import ClipLoader, import_ahead
from lrs3_loader.extraction.extractor import ShardExtractor
from lrs3_loader.extraction.upload import upload
from lrs3_loader.flags import config_from_json
from lrs3_loader.io.files import utc_now
from lrs3_loader.launch.adding import completed, missing_fields
from lrs3_loader.launch.cli import resumable
from lrs3_loader.launch.identity import software
from lrs3_loader.launch.leases import WorkQueue
from lrs3_loader.launch.prepare import finalize_config, load_extractor, prepare
from lrs3_loader.launch.progress import COUNTERS, Tally, progress_display
from lrs3_loader.launch.run_log import log_to
from lrs3_loader.run.folder import RunFolder, Totals, demo_corpus_folder
from lrs3_loader.run.ledger import Ledger
from lrs3_loader.run.lock import RunLock, guard_store
from lrs3_loader.run.shards import Result
from lrs3_loader.runtime.boards import Boards
from lrs3_loader.runtime.device import configure_torch, pick_device
from lrs3_loader.runtime.pipelining import BackgroundTask
from lrs3_loader.types import Clip, ClipFeatures, Reject, Shard

INDEX_EVERY = 1_000  # the rank that publishes every thousandth shard saves the index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Result of one launch, returned on rank 0."""

    folder: RunFolder
    totals: Totals
    num_frames: int  # frames extracted by this launch
    seconds: float
    padding: dict[str, float]  # share of padding in the batches, by kind ("frames", "audio")


def run(config: RunConfig, launch: LaunchConfig, queue: WorkQueue) -> Outcome | None:
    """Do this rank's part of a run; rank 0 waits for the others and returns the outcome.

    Raises:
        RunError: something that the user can fix, or another launch is writing to the same folder. When rank 0 fails
            to start, the other ranks exit without a message.
    """
    device = pick_device(launch.device)
    if launch.demo:
        config = replace(config, corpus=replace(config.corpus, corpus=demo_corpus_folder(launch.out), layout="lrs3"))
    configure_torch(config.threads)
    import_ahead(f0_praat)
    with contextlib.ExitStack() as held:
        held.enter_context(log_to(launch.log_folder, queue.rank))
        lock: RunLock | None = None
        if queue.rank == 0:
            with resumable():
                folder, extractor, pending, lock = _lead(config, launch, queue, device, held)
        else:
            folder, extractor, pending = _follow(config, launch, queue, device)
        leases = queue.leases(pending)
        if queue.rank != 0:
            extract_shards(folder, leases, launch, extractor, queue)
            queue.leave()
            return None
        num_clips = folder.shards.num_clips
        num_clips_done = num_clips - sum(folder.shards.counts[index] for index in pending)
        started = time.monotonic()
        try:
            with (
                _boards(folder, launch) as boards,
                progress_display(queue, num_clips, num_clips_done, launch.log_folder, boards),
            ):
                extract_shards(folder, leases, launch, extractor, queue)
                queue.leave()
                if unresponsive := ", ".join(map(str, queue.wait_for_all())):
                    logger.warning("ranks %s stopped responding; re-running their shards", unresponsive)
                    extract_shards(folder, queue.leases(folder.pending(), "left"), launch, extractor, queue)
        except KeyboardInterrupt:
            if lock is None or lock.lost is None:
                left = f"{len(folder.pending())} of {len(folder.shards)}"
                note = " (what torchrun prints now is of no interest)" if "TORCHELASTIC_RUN_ID" in os.environ else ""
                logger.info("stopped, %s shards left; run the same command again to resume%s", left, note)
            raise
        seconds = time.monotonic() - started
        counted = {name: queue.add(name, 0) for name in COUNTERS}
        padding = {
            "frames": 1 - counted["frames"] / max(counted["frame_slots"], counted["frames"], 1),
            "audio": 1 - counted["audio_samples"] / max(counted["audio_slots"], 1),
        }
        totals = folder.totals()
        folder.save_index()
        return Outcome(folder, totals, counted["frames"], seconds, padding if counted["frames"] else {})


def _lead(
    config: RunConfig, launch: LaunchConfig, queue: WorkQueue, device: torch.device, held: contextlib.ExitStack
) -> tuple[RunFolder, ShardExtractor, list[int], RunLock | None]:
    """Lock and prepare the run on rank 0, and tell the other ranks which shards are pending, and the lock's token."""
    lock: RunLock | None = None
    try:
        launch.boards.require()
        if isinstance(launch.out, Path):  # object storage has no locks
            lock = held.enter_context(RunLock(launch.out))
        folder, extractor, pending = prepare(config, launch, Assets(launch.assets), device)
    except BaseException as error:
        queue.announce({"error": str(error)})
        raise
    token = lock.token if lock is not None else ""
    queue.announce({"pending": pending, "token": token})
    guard_store(folder.store, token)
    return folder, extractor, pending, lock


def _follow(
    config: RunConfig, launch: LaunchConfig, queue: WorkQueue, device: torch.device
) -> tuple[RunFolder, ShardExtractor, list[int]]:
    """Wait on another rank until rank 0 has prepared the run, and load the models."""
    message = queue.announcement()
    if "error" in message:
        raise SystemExit(1)  # rank 0 reports the error
    folder = RunFolder.open(launch.out)
    guard_store(folder.store, message["token"])
    if launch.add:  # what rank 0 has recorded meanwhile
        config = config_from_json(folder.record["config"])
    config = finalize_config(config, folder, device)
    extractor = load_extractor(config, Assets(launch.assets), device, folder)  # files may differ from node to node
    return folder, extractor, message["pending"]


@contextlib.contextmanager
def _boards(folder: RunFolder, launch: LaunchConfig) -> Iterator[Boards | None]:
    """Open the boards that the launch asks for, if any."""
    if not launch.boards.is_on:
        yield None
        return
    settings, identity = folder.record["config"], folder.run_hash[:16]
    with Boards(launch.boards, name=folder.name, identity=identity, settings=settings) as boards:
        yield boards


def extract_shards(
    folder: RunFolder, leases: Iterable[int], launch: LaunchConfig, extractor: ShardExtractor, queue: WorkQueue
) -> None:
    """Decode, extract and publish each leased shard, until no lease is left."""
    config, tally = extractor.config, Tally(queue)
    shards = map(folder.shards.__getitem__, leases)
    incomplete: dict[str, Ledger] = {}  # of shards to which fields are added

    def clips_of(shard: Shard) -> Iterator[Clip]:
        ledger = folder.incomplete(shard)
        if ledger is None or not ledger.samples:
            return iter(shard.clips)
        incomplete[shard.name] = ledger
        return (clip for clip in shard.clips if clip.key in ledger.places)

    clips = ((shard, clip) for shard in shards for clip in clips_of(shard))
    provenance = {"software": software(), "device": extractor.device_name, "rank": queue.rank}
    on_gpu = extractor.device.type == "cuda"

    def publish(
        shard: Shard, results: Iterable[ClipFeatures | Reject], timings: dict[str, float], started_at: str
    ) -> None:
        ledger = incomplete.pop(shard.name, None)
        whole: Iterable[Result] = results if ledger is None else completed(folder, shard, ledger, results)
        with extractor.clip_stream():
            ledger = folder.publish(shard, whole, timings, {**provenance, "started_at": started_at})
        counts = {"samples": len(ledger.samples), "rejects": len(ledger.rejects), "frames": ledger.num_frames}
        logger.debug("published", extra={"values": {"shard": shard.name, **counts}})
        tally.flush()
        if launch.boards.is_on:
            tally.add_timings(timings)
        if queue.add("shards", 1) % INDEX_EVERY == 0:
            folder.published()
            folder.save_index()

    with contextlib.ExitStack() as stack:
        root = corpus_root(config.corpus)
        loader = stack.enter_context(ClipLoader(clips, root, config.decode, launch.workers, pitch=f0_praat))
        decoded = stack.enter_context(contextlib.closing(upload(loader, extractor.device)))
        stack.callback(loader.stop)  # a thread of ``decoded`` may be waiting for it
        publisher = stack.enter_context(BackgroundTask("publish"))
        for shard, items in itertools.groupby(decoded, key=lambda pair: pair[0]):
            timings: dict[str, float] = {}
            started_at = utc_now()
            chosen = extractor
            if (before := incomplete.get(shard.name)) is not None:
                chosen = extractor.only(missing_fields(extractor, before))
            in_progress = chosen.process_frames((item for _, item in items), timings, tally.add)
            # A GPU works on the clips of one shard and the frames of the next together; a CPU would gain nothing.
            results = chosen.process_clips(in_progress) if on_gpu else list(chosen.process_clips(in_progress))
            publisher.submit(partial(publish, shard, results, timings, started_at))
