"""The sections of the page, one function each; an empty text where there is nothing to say."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from lrs3_loader.errors import ClipError
from lrs3_loader.run.offsets import MAX_OFFSET
from lrs3_loader.viz.report import figures
from lrs3_loader.viz.report.collect import Findings
from lrs3_loader.viz.report.gallery import Card
from lrs3_loader.viz.report.measures import DURATION, MEASURES, Histogram, Measure

NUM_EXAMPLES = 5
NUM_ODD_OFFSETS = 5
FAR_OFFSET = 3  # frames: offsets beyond this are worth a look
_STAGES = {
    "decode_wait": "waiting for decoded clips",
    "landmarks": "landmarks",
    "regression": "Deep3D regression",
    "sound": "mel and speech encoder",
    "fit": "face model fit",
}
_MEANING = {kind.reason: inspect.getdoc(kind) or "" for kind in ClipError.__subclasses__()}


def throughput(findings: Findings) -> str:
    timeline, stages = findings.timeline, findings.stage_seconds
    if timeline is None:
        note = '<p class="soft">The ledgers of this run do not say when its shards were made.</p>'
        return _section("Throughput", note) if findings.totals.num_shards else ""
    rows = [
        (
            f"rank {rank.rank}",
            ", ".join(rank.devices),
            f"{rank.num_shards:,}",
            f"{rank.num_clips:,}",
            f"{rank.num_frames:,}",
            figures.duration(rank.busy_seconds),
            f"{rank.num_frames / max(rank.busy_seconds, 1e-9):,.0f}",
        )
        for rank in timeline.ranks
    ]
    table = _table(("", "device", "shards", "clips", "frames", "busy", "frames/s"), rows, numbers=range(2, 7))
    if len(rows) > 8:
        table = f"<details><summary>All {len(rows)} ranks</summary>{table}</details>"
    what = (
        '<p class="what">Frames a second over time worked: all ranks together (area), and each rank (strip, the '
        "stronger its colour, the faster). A shard's frames are spread evenly over the time it took.</p>"
    )
    parts = [f'<div class="card">{what}<div class="scroll">{figures.throughput(timeline)}{table}</div></div>']
    if sum(stages.values()) > 0:
        parts.append(_stage_card(stages.most_common()))
    return _section("Throughput", "".join(f'<div style="margin-top:14px">{part}</div>' for part in parts))


def _stage_card(stages: Sequence[tuple[str, float]]) -> str:
    named = [(_STAGES.get(name, name), seconds) for name, seconds in stages]
    total = sum(seconds for _, seconds in named)
    legend = "".join(
        f'<span><i class="c{number % 6}"></i>{escape(name)} {seconds / total:.1%}</span>'
        for number, (name, seconds) in enumerate(named)
    )
    what = f'<p class="what">Where the time went: {figures.duration(total)} over all ranks</p>'
    return f'<div class="card shares">{what}{figures.shares(named)}<div class="legend">{legend}</div></div>'


def rejects(findings: Findings) -> str:
    totals = findings.totals
    if not totals.num_shards:
        return ""
    if not totals.rejects:
        return _section("Rejects", "<p>None: every clip became a sample.</p>")
    blocks = [_reject_block(findings, reason, count) for reason, count in totals.reasons.most_common()]
    retry = (
        '<p class="small soft"><code>lrs3-loader extract ... --retry-rejects REASON</code> runs their shards again.</p>'
    )
    return _section("Rejects", f'<div class="card">{"".join(blocks)}{retry}</div>')


def _reject_block(findings: Findings, reason: str, count: int) -> str:
    totals = findings.totals
    share = count / (totals.num_samples + len(totals.rejects))
    examples = [(key, text) for key, found, text in totals.rejects if found == reason][:NUM_EXAMPLES]
    listed = "".join(f'<div class="small"><code>{escape(key)}</code>: {escape(text)}</div>' for key, text in examples)
    more = f'<div class="small soft">and {count - len(examples):,} more</div>' if count > len(examples) else ""
    return (
        f'<div class="reject"><b>{escape(reason)}</b> {count:,} <span class="soft">({share:.2%} of clips) · '
        f'{escape(_MEANING.get(reason, ""))}</span><div class="meter" style="width:{100 * share:.2f}%"></div>'
        f"{listed}{more}</div>"
    )


def distributions(findings: Findings) -> str:
    shown = [(measure, findings.histograms[measure.name]) for measure in (DURATION, *MEASURES)]
    charts = [_distribution(measure, values) for measure, values in shown if values.total]
    if not charts:
        return ""
    of = findings.num_measured
    share = "all clips" if of == findings.totals.num_samples else f"{of:,} clips, evenly spread over the run"
    note = f'<p class="soft">Of {share}. The line marks the median; the outermost bars hold what lies beyond.</p>'
    return _section("Distributions", note + f'<div class="grid charts">{"".join(charts)}</div>')


def _distribution(measure: Measure, values: Histogram) -> str:
    low, middle, high = (figures.figure(values.quantile(share)) for share in (0.05, 0.5, 0.95))
    return (
        f'<figure class="card"><h3>{escape(measure.name)} <span class="soft">({escape(measure.unit)})</span></h3>'
        f'<div class="what">{escape(measure.what)}</div>{figures.histogram(values, measure.unit, measure.limits)}'
        f'<figcaption class="small">median {middle}, 5–95 %: {low} to {high}</figcaption></figure>'
    )


def offsets(findings: Findings) -> str:
    if findings.offsets is None:
        return ""
    known = [line for line in findings.offsets if line["offset_frames"] is not None]
    title = "Audio-video offsets"
    if not known:
        return _section(title, "<p>Measured, but no clip was long enough to say.</p>")
    values = np.array([line["offset_frames"] for line in known])
    far = sum(abs(values - np.median(values)) > FAR_OFFSET)
    names = [f"{offset:+d}" if offset else "0" for offset in range(-MAX_OFFSET, MAX_OFFSET + 1)]
    counts = [int((values == offset).sum()) for offset in range(-MAX_OFFSET, MAX_OFFSET + 1)]
    median = int(np.median(values))
    chart = (
        '<figure class="card"><h3>Offset <span class="soft">(frames at 25 fps)</span></h3>'
        '<div class="what">a clip; above 0: the sound comes late</div>'
        f"{figures.counted(names, counts, names[median + MAX_OFFSET])}"
        f'<figcaption class="small">median {names[median + MAX_OFFSET]}; {far:,} of {len(known):,} clips lie more than '
        f"{FAR_OFFSET} frames from it; {len(findings.offsets) - len(known):,} too short to say; "
        f"{sum(line['in_training'] for line in known):,} of speakers the network was trained on</figcaption></figure>"
    )
    odd = sorted(known, key=lambda line: (-abs(line["offset_frames"] - median), -line["confidence"]))
    rows = [
        (Raw(f"<code>{escape(line['key'])}</code>"), f"{line['offset_frames']:+d}", f"{line['confidence']:.2f}")
        for line in odd[:NUM_ODD_OFFSETS]
    ]
    table = _table(("furthest from the median", "frames", "confidence"), rows, numbers=(1, 2))
    return _section(title, f'<div class="grid charts">{chart}<div class="card">{table}</div></div>')


def gallery(cards: Sequence[Card], remark: str) -> str:
    if not cards:
        return ""
    note = (
        '<p class="soft">Drawn from the features alone, no picture of anybody: <span style="color:#2f9e6b">landmarks '
        'as detected</span> and <span style="color:var(--warm)">as fitted</span>, the fitted mesh, mel spectrogram '
        "with pitch (0 – 400 Hz). The frame is that of the widest open mouth.</p>"
    )
    trouble = f'<p class="open">{escape(remark)}</p>' if remark else ""
    return _section("Gallery", note + trouble + f'<div class="grid cards">{"".join(map(_card, cards))}</div>')


def _card(card: Card) -> str:
    reason = f' <span class="pill open small">{escape(card.reason)}</span>' if card.reason else ""
    landmarks = card.landmarks or '<div class="none">no landmarks</div>'
    mesh = f'<img alt="fitted mesh" src="{card.mesh}">' if card.mesh else '<div class="none">no mesh</div>'
    sound = ""
    if card.mel:
        sound = f'<div class="sound"><img alt="mel spectrogram" src="{card.mel}">{card.pitch or ""}</div>'
    where = "" if card.frame is None else f" · frame {card.frame}"
    return (
        f'<div class="card"><div class="key">{escape(card.key)}{reason}</div>'
        f'<div class="what">{escape(card.facts)}{where}</div><div class="pair">{landmarks}{mesh}</div>{sound}</div>'
    )


def provenance(findings: Findings) -> str:
    record = findings.folder.record
    rows = []
    for part, model in sorted(record.get("models", {}).items()):
        digest = str(model.get("sha256") or "")
        remarks = [str(model[name]) for name in ("licence",) if model.get(name)]
        remarks += ["<b>untrained</b>"] * bool(model.get("untrained"))
        remarks += [f"layer {model['layer']}, width {model['width']}"] if {"layer", "width"} <= model.keys() else []
        name = model.get("name") or model.get("model") or "?"
        rows.append((part.replace("_", " "), str(name), Raw(", ".join(remarks)), Raw(f"<code>{digest[:16]}</code>")))
    models = _table(("model", "", "", "sha256"), rows) if rows else ""
    plan = str(record.get("plan_sha256", ""))[:16]
    facts = (
        f'<p class="small">Device <code>{escape(str(record.get("device_type", "?")))}</code> · plan '
        f"<code>{plan}</code> · run <code>{findings.folder.run_hash[:16]}</code></p>{_software(findings)}"
    )
    settings = _table(("setting", "value"), [(name, text) for name, text in _flat(record.get("config", {}))])
    more = f"<details><summary>All settings</summary>{settings}</details>"
    return _section("Provenance", f'<div class="card"><div class="scroll">{models}</div>{facts}{more}</div>')


def _software(findings: Findings) -> str:
    usual = findings.folder.record.get("software", {})
    lines = [f'<p class="small soft">{escape(_versions(usual))}</p>']
    for found in findings.other_software:
        changed = {name: version for name, version in found.items() if usual.get(name) != version}
        lines.append(f'<p class="open">Some shards were made with other versions: {escape(_versions(changed))}</p>')
    return "".join(lines)


def _versions(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(software.items()))


def _flat(config: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


class Raw(str):
    """Text that is HTML already."""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=num' if column in right else ''}>{text if isinstance(text, Raw) else escape(text)}</{tag}>"
            for column, text in enumerate(row)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{lines}</tbody></table>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
