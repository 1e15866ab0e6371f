"""Text that a launch prints when it ends: totals, speed and rejects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lrs3_loader.errors import count_of
from lrs3_loader.run.folder import RunFolder, Totals, demo_corpus_folder
from lrs3_loader.types import FRAMES_PER_SECOND

if TYPE_CHECKING:  # importing it imports all models
    from lrs3_loader.launch.runner import Outcome

NUM_EXAMPLES = 3  # rejects shown per reason


def describe_outcome(outcome: Outcome) -> str:
    """Describe what was written, how fast, and which clips were rejected for which reason."""
    totals = outcome.totals
    rate = outcome.num_frames / max(outcome.seconds, 1e-9)
    lines = [
        f"{count_of(totals.num_samples, 'sample')}, {count_of(len(totals.rejects), 'reject')} "
        f"in {totals.num_shards} of {count_of(totals.num_planned_shards, 'shard')}, "
        f"{count_of(totals.num_frames, 'frame')}, {totals.num_bytes / 1e6:.1f} MB in {outcome.folder.path}",
        f"this launch: {outcome.num_frames} frames in {outcome.seconds:.1f} s, {rate:.0f} frames/s, "
        f"{rate / FRAMES_PER_SECOND:.1f}x real time",
    ]
    if outcome.padding:
        shares = ", ".join(f"{100 * share:.1f} % of {kind}" for kind, share in outcome.padding.items())
        lines.append(f"padding in batches: {shares}")
    return "\n".join(lines + describe_rejects(totals))


def outcome_as_json(outcome: Outcome) -> str:
    """Format the same as one JSON object, for scripts."""
    totals = outcome.totals
    values = {
        "out": str(outcome.folder.path),
        "clips": outcome.folder.shards.num_clips,
        **totals_as_json(totals),
        "launch": {"frames": outcome.num_frames, "seconds": round(outcome.seconds, 3)},
    }
    return json.dumps(values)


def totals_as_json(totals: Totals) -> dict[str, Any]:
    """Return the sums over the published shards of a run as JSON values."""
    return {
        "shards": totals.num_planned_shards,
        "published": totals.num_shards,
        "samples": totals.num_samples,
        "rejects": dict(totals.reasons.most_common()),
        "frames": totals.num_frames,
        "bytes": totals.num_bytes,
    }


def describe_rejects(totals: Totals) -> list[str]:
    """Return a line per reject reason, most frequent first, each followed by a few examples."""
    lines = []
    for reason, count in totals.reasons.most_common():
        lines.append(f"  {count} rejected: {reason}")
        examples = [(key, text) for key, found, text in totals.rejects if found == reason]
        lines += [f"    {key}: {text}" for key, text in examples[:NUM_EXAMPLES]]
        if count > NUM_EXAMPLES:
            lines.append(f"    ... and {count - NUM_EXAMPLES} more (see {reason!r} in the ledgers)")
    return lines


def describe_demo(folder: RunFolder) -> str:
    """Describe how well the mouth opening of the demo corpus was recovered, compared with its true values."""
    from lrs3_loader.demo.corpus import TRUTH_FOLDER, mouth_recovery

    landmarks = {sample["__key__"]: sample["lm68"] for shard in folder.shards for sample in folder.samples(shard)}
    truth = demo_corpus_folder(folder.path) / TRUTH_FOLDER
    recovery = mouth_recovery(truth, landmarks)
    return f"mouth opening against the truth: correlation {recovery.overall:.3f} over {len(landmarks)} clips"
