"""Findings -> one HTML page that refers to nothing outside itself and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lrs3_loader.types import FRAMES_PER_SECOND
from lrs3_loader.viz.report import figures, sections
from lrs3_loader.viz.report.collect import Findings
from lrs3_loader.viz.report.gallery import Card
from lrs3_loader.viz.report.style import STYLE


def render(findings: Findings, cards: Sequence[Card], remark: str) -> str:
    """The page. ``remark``: why some pictures are missing from the gallery, or nothing."""
    body = [
        _header(findings),
        _tiles(findings),
        sections.throughput(findings),
        sections.rejects(findings),
        sections.distributions(findings),
        sections.offsets(findings),
        sections.gallery(cards, remark),
        sections.provenance(findings),
    ]
    title = escape(findings.folder.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} – run report</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    )


def _header(findings: Findings) -> str:
    totals, folder = findings.totals, findings.folder
    left = totals.num_planned_shards - totals.num_shards
    if left:
        kind, text = "open", f"unfinished: {totals.num_shards:,} of {totals.num_planned_shards:,} shards"
    else:
        kind, text = "good", "finished"
    corpus = folder.record.get("config", {}).get("corpus", {}).get("corpus")
    lines = [
        f'<h1>{escape(folder.name)} <span class="pill {kind}">{text}</span></h1>',
        f'<p class="soft">{f"Corpus <code>{escape(str(corpus))}</code> · " if corpus else ""}run '
        f"<code>{folder.run_hash[:12]}</code></p>",
    ]
    if left:
        lines.append("<p>Everything below is of the shards there are. The same command as before resumes the run.</p>")
    lines += [
        f'<p class="bad">Damaged: {escape(problem)}. <code>lrs3-loader verify</code> checks all shards.</p>'
        for problem in findings.damaged
    ]
    return "<header>" + "\n".join(lines) + "</header>"


def _tiles(findings: Findings) -> str:
    totals = findings.totals
    num_rejects = len(totals.rejects)
    num_read = totals.num_samples + num_rejects
    tiles = [
        ("clips planned", f"{findings.num_clips:,}"),
        ("samples written", f"{totals.num_samples:,}"),
        ("rejects" + (f", {num_rejects / num_read:.2%}" if num_rejects else ""), f"{num_rejects:,}"),
        ("of speech", figures.duration(totals.num_frames / FRAMES_PER_SECOND)),
        ("frames", f"{totals.num_frames:,}"),
        ("on disk", size(totals.num_bytes)),
        ("shards", f"{totals.num_shards:,} of {totals.num_planned_shards:,}"),
        ("speakers", f"{findings.num_speakers:,}"),
    ]
    if len(findings.splits) > 1:
        tiles += [(f"in {name}", f"{count:,}") for name, count in sorted(findings.splits.items())[:4]]
    if findings.timeline is not None and findings.timeline.axis.seconds > 0:
        rate = sum(rank.num_frames for rank in findings.timeline.ranks) / findings.timeline.axis.seconds
        tiles.append(("frames a second", f"{rate:,.0f}"))
        tiles.append(("times real time", f"{rate / FRAMES_PER_SECOND:,.1f}"))
    cells = "".join(f'<div class="tile"><b>{escape(text)}</b>{escape(name)}</div>' for name, text in tiles)
    return f'<div class="grid tiles">{cells}</div>'


def size(num_bytes: int) -> str:
    """``512 B``, ``1.9 MB``, ``3.21 TB``."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
