"""The page's style sheet: light, or dark where the reader's system is; from 400 pixels up."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #5d6878; --line: #dfe3e9;
  --accent: #2667c9; --second: #b3c4de; --warm: #d9641e; --good: #1d7f4e; --bad: #b3261e; --ground: #1c1f24; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1d2128; --ink: #e4e8ee; --soft: #98a3b3;
  --line: #323843; --accent: #6ea8ff; --second: #40536f; --warm: #ff9a55; --good: #5cc893; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; }
h3 { font-size: .95rem; margin: 0; }
p { margin: 4px 0 10px; max-width: 75ch; }
.soft, figcaption, .what { color: var(--soft); }
.what, .small { font-size: .82rem; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
.pill { display: inline-block; border-radius: 99px; padding: 1px 12px; font-size: .85rem; border: 1px solid; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--warm); }
.grid { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); margin-top: 18px; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card { min-width: 0; margin: 0; }
.card svg, .card img { display: block; width: 100%; }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 760px; } .scroll table { min-width: 460px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-top: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; border: 0; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: break-word; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
details.card summary { font-size: .95rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; margin: 8px 0; }
.pair > * { background: var(--ground); border-radius: 6px; aspect-ratio: 1; }
.none { display: grid; place-items: center; color: #98a3b3; font-size: .8rem; padding: 8px; text-align: center; }
.sound { position: relative; height: 84px; }
.card .sound img { height: 100%; image-rendering: auto; border-radius: 6px; object-fit: fill; }
.card .sound svg { position: absolute; inset: 0; height: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .85rem; margin-top: 8px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
.shares svg { height: 22px; border-radius: 4px; }
.reject { padding: 10px 0; border-top: 1px solid var(--line); } .reject:first-child { border: 0; padding-top: 0; }
.meter { height: 6px; border-radius: 3px; background: var(--warm); margin: 4px 0; min-width: 2px; }
.key { font-weight: 600; overflow-wrap: anywhere; }
svg { overflow: visible; }
svg .bar { fill: var(--accent); } svg .second { fill: var(--second); }
svg .area { fill: var(--accent); fill-opacity: .22; stroke: var(--accent); stroke-width: 1.2; }
svg .heat { fill: var(--accent); }
svg .median { stroke: var(--warm); stroke-width: 1.6; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); stroke-width: .8; }
svg .pause { stroke: var(--warm); stroke-dasharray: 4 3; }
svg .tick { fill: var(--soft); font-size: 13.5px; } .scroll .tick { font-size: 12px; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
svg .trace { fill: none; stroke: #5fd68b; stroke-opacity: .65; stroke-width: 1; }
svg .dot { fill: #5fd68b; } svg .fit { fill: #ff9a45; }
svg .pitch { fill: none; stroke: #6ec1ff; stroke-width: 3; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.c0 { fill: #2667c9; background: #2667c9; } .c1 { fill: #d9641e; background: #d9641e; }
.c2 { fill: #2f9e6b; background: #2f9e6b; } .c3 { fill: #8457c2; background: #8457c2; }
.c4 { fill: #c2447a; background: #c2447a; } .c5 { fill: #7a8796; background: #7a8796; }
"""
