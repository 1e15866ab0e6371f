"""Turns findings into one HTML page that refers to nothing outside itself and runs no script.

The markup lies in ``templates/``; every value is escaped there. This module computes what the templates show.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from lrs3_loader.errors import ClipError
from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz.overlay import LANDMARK_LINES
from lrs3_loader.viz.report import figures
from lrs3_loader.viz.report.clip_figures import ClipFigures, Distribution, Group
from lrs3_loader.viz.report.collect import Extremes, Findings
from lrs3_loader.viz.report.gallery import Card
from lrs3_loader.viz.report.measures import DURATION, MEASURES

NUM_EXAMPLES = 5  # of rejected clips, for each reason
NUM_FURTHEST = 5  # clips with odd offsets
FAR_OFFSET = 3  # frames: offsets beyond this are worth a look
_STAGES = {
    "decode_wait": "waiting for decoded clips",
    "landmarks": "landmarks",
    "regression": "Deep3D regression",
    "quality": "figures measured on pixels",
    "sound": "mel and speech encoder",
    "fit": "face model fit",
}


def render(
    findings: Findings,
    cards: Sequence[Card],
    extremes: Sequence[tuple[Extremes, Sequence[Card]]] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Render the page.

    Args:
        findings: what was collected from the run.
        cards: the gallery; without any the page has none.
        extremes: figures with the cards of the clips at their ends.
        remarks: why some images are missing.
    """
    folder, totals, timeline = findings.folder, findings.totals, findings.timeline
    config, software = folder.record.get("config", {}), folder.record.get("software", {})
    templates = PackageLoader("lrs3_loader.viz.report")
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "duration": figures.duration,
        "figure": figures.figure,
        "percent": lambda share, digits: f"{share:.{digits}%}",
        "thousands": lambda count: f"{count:,.0f}",
    }
    return environment.get_template("report.html.jinja").render(
        findings=findings,
        folder=folder,
        totals=totals,
        num_shards_left=totals.num_planned_shards - totals.num_shards,
        corpus=config.get("corpus", {}).get("corpus"),
        tiles=_tiles(findings),
        throughput=None if timeline is None else figures.throughput(timeline),
        narrow_throughput=None if timeline is None else figures.throughput(timeline, figures.NARROW),
        stages=_stages(findings),
        rejects=_rejects(findings),
        distributions=_distributions(findings),
        offsets=_offsets(findings),
        cards=cards,
        extremes=[(found, drawn) for found, drawn in extremes if drawn],
        remarks=remarks,
        figure_groups=_figure_groups(findings.figures),
        speaker_minutes=_speaker_minutes(findings.figures),
        landmark_lines=LANDMARK_LINES,
        models=sorted(folder.record.get("models", {}).items()),
        settings=list(_flatten(config)),
        software=_versions(software),
        other_software=[_versions(dict(found.items() - software.items())) for found in findings.other_software],
    )


def _tiles(findings: Findings) -> list[tuple[str, str]]:
    """Names and values at the top of the page."""
    totals = findings.totals
    num_rejects = len(totals.rejects)
    share = f", {num_rejects / (totals.num_samples + num_rejects):.2%}" if num_rejects else ""
    tiles = [
        ("clips planned", f"{findings.num_clips:,}"),
        ("samples written", f"{totals.num_samples:,}"),
        (f"rejects{share}", f"{num_rejects:,}"),
        ("of speech", figures.duration(totals.num_frames / FRAMES_PER_SECOND)),
        ("frames", f"{totals.num_frames:,}"),
        ("on disk", figures.size(totals.num_bytes)),
        ("shards", f"{totals.num_shards:,} of {totals.num_planned_shards:,}"),
        ("speakers", f"{findings.num_speakers:,}"),
    ]
    if findings.num_silent:
        tiles.append(("without any sound", f"{findings.num_silent:,}"))
    if len(findings.splits) > 1:
        tiles += [(f"in {name}", f"{count:,}") for name, count in sorted(findings.splits.items())[:4]]
    if findings.timeline is not None and findings.timeline.axis.seconds > 0:
        rate = sum(rank.num_frames for rank in findings.timeline.ranks) / findings.timeline.axis.seconds
        tiles += [("frames per second", f"{rate:,.0f}"), ("times real time", f"{rate / FRAMES_PER_SECOND:,.1f}")]
    return tiles


def _stages(findings: Findings) -> list[dict[str, Any]]:
    """The stages of extraction with the time that ranks spent in each, the longest first."""
    total = sum(findings.stage_seconds.values())
    return [
        {"name": _STAGES.get(name, name), "seconds": seconds, "share": seconds / total}
        for name, seconds in findings.stage_seconds.most_common()
        if total > 0
    ]


def _rejects(findings: Findings) -> list[dict[str, Any]]:
    """Reasons for rejects with what they mean and some of their clips, the most common first."""
    totals = findings.totals
    meaning = {kind.reason: inspect.getdoc(kind) or "" for kind in ClipError.__subclasses__()}
    return [
        {
            "reason": reason,
            "count": count,
            "share": count / (totals.num_samples + len(totals.rejects)),
            "meaning": meaning.get(reason, ""),
            "examples": [(key, text) for key, found, text in totals.rejects if found == reason][:NUM_EXAMPLES],
        }
        for reason, count in totals.reasons.most_common()
    ]


def _distributions(findings: Findings) -> list[tuple[Any, ...]]:
    """For every measure with values: the measure, its histogram, and its 5 %, 50 % and 95 % quantiles."""
    shown = [(measure, findings.histograms[measure.name]) for measure in (DURATION, *MEASURES)]
    return [
        (measure, figures.histogram(values, measure.unit, measure.limits), *map(values.quantile, (0.05, 0.5, 0.95)))
        for measure, values in shown
        if values.total
    ]


def _figure_groups(found: ClipFigures | None) -> list[tuple[Group, list[tuple[Distribution, dict[str, Any], str]]]]:
    """For every group of figures: the group, and of each figure that varies the histogram and the bounds in words."""
    groups = [] if found is None else found.groups
    return [(group, [_figure_chart(each) for each in group.varied]) for group in groups]


def _figure_chart(found: Distribution) -> tuple[Distribution, dict[str, Any], str]:
    assert found.histogram is not None, "a figure that varies has a histogram"
    marks = [(place, f"{rule}: {bound}") for rule, bound in found.bounds for place in bound.places]
    words = ", ".join(
        f"{rule} {'|x| ' if bound.is_magnitude else ''}{bound.sign} {figures.figure(bound.value)}"
        for rule, bound in found.bounds
    )
    limits = (0.0 if found.low >= 0 else -math.inf, math.inf)
    return found, figures.histogram(found.histogram, found.unit, limits, marks), words


def _speaker_minutes(found: ClipFigures | None) -> dict[str, Any] | None:
    """The distribution of minutes per speaker; None where all have as much."""
    values = None if found is None else found.minutes_by_speaker
    return None if values is None else figures.histogram(values, "min", (0.0, math.inf))


def _offsets(findings: Findings) -> dict[str, Any]:
    """The audio-video offsets in numbers and as a chart; empty where none is known."""
    known = [line for line in findings.offsets or () if line["offset_frames"] is not None]
    if not known:
        return {}
    values = np.array([line["offset_frames"] for line in known])
    median = int(np.median(values))
    counts = {_signed(offset): int((values == offset).sum()) for offset in range(-MAX_OFFSET, MAX_OFFSET + 1)}
    furthest = sorted(known, key=lambda line: (-abs(line["offset_frames"] - median), -line["confidence"]))
    return {
        "chart": figures.counted(counts, _signed(median)),
        "median": _signed(median),
        "far": FAR_OFFSET,
        "num_far": int((abs(values - np.median(values)) > FAR_OFFSET).sum()),
        "num_known": len(known),
        "num_in_training": sum(line["in_training"] for line in known),
        "furthest": furthest[:NUM_FURTHEST],
    }


def _signed(offset: int) -> str:
    return f"{offset:+d}" if offset else "0"


def _versions(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(software.items()))


def _flatten(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (dotted name, value as text)."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
