"""Makes a run of the chosen clips of another one, with the same arrays and the same guarantees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrs3_loader.config import PlanConfig
from lrs3_loader.errors import RunError
from lrs3_loader.run.folder import RunFolder
from lrs3_loader.run.ledger import REPAIR
from lrs3_loader.run.manifest import plan_sha256
from lrs3_loader.run.record import differences
from lrs3_loader.run.shards import check_sample
from lrs3_loader.run.tar import DamagedError
from lrs3_loader.selection.expression import Expression
from lrs3_loader.selection.waterfall import Step, waterfall
from lrs3_loader.types import Clip, ClipFeatures, Shard


def chosen_keys(folder: RunFolder, where: Expression) -> set[str]:
    """Return the keys of the published clips for which the condition is true; raises ``RunError`` as ``waterfall``."""
    table = folder.figures()
    chosen, _ = waterfall(table, where)
    return set(table.columns["key"][chosen].tolist())


def filter_run(
    folder: RunFolder, where: Expression, out: Path, progress: Callable[[int], object] = lambda count: None
) -> tuple[RunFolder, list[Step]]:
    """Write the chosen clips as a run of its own; called again with the same arguments, it goes on where it stopped.

    Shards are cut anew, to the size of the source's. Each is published whole or not at all, every member is compared
    with its checksum on the way, and the bytes depend only on the source and the condition. Rejects stay behind.

    Args:
        folder: a finished run.
        out: folder of the new run.
        progress: told of clips as they are written.

    Returns:
        the new run, and what each condition took.

    Raises:
        RunError: the source is not finished or damaged, no clip is chosen, or ``out`` holds another run.
    """
    left = len(folder.pending())
    if left:
        raise RunError(
            f"{left} of {len(folder.shards)} shards of {folder.path} are still to be extracted; finish the run"
        )
    table = folder.figures()
    mask, steps = waterfall(table, where)
    lengths = dict(zip(table.columns["key"][mask].tolist(), table.columns["num_frames"][mask].tolist(), strict=True))
    if not lengths:
        raise RunError(f"no clip of {folder.path} is chosen by {where.text}")
    plan = _plan(folder, lengths)
    config = {**folder.record["config"], "filter": {"where": where.text, "run": folder.run_hash}}
    record = {**folder.record, "config": config, "plan_sha256": plan_sha256(plan)}
    record.pop("manifest", None)  # that of a source that has grown
    if RunFolder.exists(out):
        new = RunFolder.open(out)
        if lines := differences(new.record, record):
            raise RunError(f"{out} holds another run ({'; '.join(lines)[:500]}); choose another folder")
    else:
        new = RunFolder.create(out, record, plan)
    new.clear_scratch()
    homes = {clip.key: shard for shard in folder.shards for clip in shard.clips if clip.key in lengths}
    provenance = {"software": folder.record.get("software", {}), "device": "filter", "rank": 0}
    for number in new.pending():
        shard = new.shards[number]
        new.publish(shard, _copies(folder, shard, homes, progress), {}, provenance)
    new.save_index()
    return new, steps


def _plan(folder: RunFolder, lengths: Mapping[str, int]) -> tuple[Shard, ...]:
    """Cut the chosen clips, sorted by key, to shards of the size that the source was planned with."""
    saved = folder.record["config"].get("plan", {})
    target = PlanConfig(**{name: saved[name] for name in ("shard_frames", "shard_clips") if name in saved})
    parts: dict[str, list[list[Clip]]] = {}
    frames = 0
    chosen = (clip for shard in folder.shards for clip in shard.clips if clip.key in lengths)
    for clip in sorted(chosen, key=lambda clip: clip.key):  # a source that has grown is not sorted
        shards = parts.setdefault(clip.split, [])
        if not shards or frames + lengths[clip.key] > target.shard_frames or len(shards[-1]) >= target.shard_clips:
            shards.append([])
            frames = 0
        shards[-1].append(clip)
        frames += lengths[clip.key]
    return tuple(
        Shard(f"{split}-{number:06d}", tuple(clips))
        for split, shards in parts.items()
        for number, clips in enumerate(shards)
    )


def _copies(
    folder: RunFolder, shard: Shard, homes: Mapping[str, Shard], progress: Callable[[int], object]
) -> Iterator[ClipFeatures]:
    """Yield the samples of a new shard, in order, from the shards of the source that hold them."""
    clips = list(shard.clips)
    while clips:
        home = homes[clips[0].key]
        here = [clip for clip in clips if homes[clip.key] is home or homes[clip.key].name == home.name]
        clips = clips[len(here) :]
        try:
            with folder.open_tar(home) as tar:
                places = {sample.key: place for place, sample in enumerate(tar.samples)}
                for clip in here:
                    yield _features(clip, check_sample(str(tar.path), tar.read(places[clip.key], None)))
                    progress(1)
        except (DamagedError, KeyError) as error:
            raise RunError(f"{home.name} of {folder.path} is damaged ({error}); {REPAIR}") from error


def _features(clip: Clip, sample: dict[str, Any]) -> ClipFeatures:
    meta = sample["json"]
    arrays = {name: array for name, array in sample.items() if name != "json" and not name.startswith("__")}
    return ClipFeatures(replace(clip), meta["num_frames"], arrays, meta)
