"""The page's style sheet: system fonts, light and dark, from phone to wide screen."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --line: #e2e5ea; --text: #1b1f27; --soft: #5d6673; --tint: #eef1f6;
  --c0: #2563eb; --c1: #d9660a; --c2: #0d9488; --c3: #9333ea; --c4: #be185d; --c5: #65750b; --ref: #7b8494;
  --right: #0a7a4b; --right-tint: #dff5ea; --wrong: #b3261e; --wrong-tint: #fde7e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101318; --card: #181c23; --line: #2b313b; --text: #e6e9ee; --soft: #9aa4b2; --tint: #222833;
    --c0: #6ea0ff; --c1: #ffa257; --c2: #3fd0bf; --c3: #c792ff; --c4: #ff86b8; --c5: #c3d24a; --ref: #8b95a5;
    --right: #5fd39c; --right-tint: #15352a; --wrong: #ff8f86; --wrong-tint: #3d2022;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1280px; padding: 28px clamp(14px, 3vw, 40px) 60px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1, h2, h3, h4, p, ul, ol, dl, dd, figure { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 23px; line-height: 1.2; letter-spacing: -.01em; }
h3 { font-size: 16px; margin-top: 22px; }
section { margin-top: 52px; scroll-margin-top: 48px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em; }
.kicker { color: var(--soft); font-size: 13px; letter-spacing: .04em; }
.intro { color: var(--soft); max-width: 78ch; margin: 6px 0 18px; }
.verdict { margin: 2px 0 10px; }
.missing { color: var(--soft); border-left: 3px solid var(--line); padding: 4px 0 4px 12px; margin-top: 10px; max-width: 78ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px; min-width: 0; }
.badge { display: inline-block; padding: 0 9px; border-radius: 99px; background: var(--tint); color: var(--soft); }
.badge { font-size: 12px; font-weight: 400; }
.label { color: var(--soft); font-size: 12px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px 24px; margin-top: 18px; }
.facts dt { color: var(--soft); font-size: 12px; }
.facts dd { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.facts small { color: var(--soft); }
.facts .wide { grid-column: span 2; }
nav {
  position: sticky; top: 0; z-index: 1; display: flex; gap: 20px; margin-top: 22px; padding: 9px 0; overflow-x: auto;
  background: var(--page); border-bottom: 1px solid var(--line); font-size: 14px;
}
nav a { color: var(--soft); text-decoration: none; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--text); text-decoration: underline; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 12px; }
.number code { color: var(--soft); font-size: 12.5px; }
.number strong { display: block; font-size: 29px; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.number p { color: var(--soft); font-size: 13.5px; line-height: 1.45; }
.number .bar { display: block; height: 5px; border-radius: 3px; margin: 5px 0 10px; background: var(--tint); overflow: hidden; }
.number .bar::before { content: ""; display: block; height: 100%; width: var(--length); background: var(--ref); }
.number.main { border-color: var(--c0); }
.number.main strong { color: var(--c0); }
.number.main .bar::before { background: var(--c0); }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 14px; }
.charts + .charts, .cards + .charts, h3 + .charts { margin-top: 14px; }
.chart figcaption { font-weight: 600; }
.chart .note { color: var(--soft); font-size: 13px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 8px; font-size: 13px; color: var(--soft); }
.legend b { color: var(--text); font-weight: 600; font-variant-numeric: tabular-nums; }
.legend .key { width: 22px; height: 10px; margin-right: 5px; vertical-align: 0; }
.chart > svg { display: block; width: 100%; height: auto; margin-top: 10px; overflow: visible; }
.chart text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
.chart text.mark { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.chart line, .chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart line.grid { stroke: var(--line); stroke-width: 1; }
.chart line.mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
.chart .ref { stroke: var(--ref); stroke-width: 1.5; stroke-dasharray: 6 4; stroke-linecap: butt; }
.chart .ref1 { stroke-dasharray: 2 3; }
.chart line.c0, .chart polyline.c0 { stroke: var(--c0); } .chart circle.c0, .chart rect.c0 { fill: var(--c0); }
.chart line.c1, .chart polyline.c1 { stroke: var(--c1); } .chart circle.c1, .chart rect.c1 { fill: var(--c1); }
.chart line.c2, .chart polyline.c2 { stroke: var(--c2); } .chart circle.c2, .chart rect.c2 { fill: var(--c2); }
.chart line.c3, .chart polyline.c3 { stroke: var(--c3); } .chart circle.c3, .chart rect.c3 { fill: var(--c3); }
.chart line.c4, .chart polyline.c4 { stroke: var(--c4); } .chart circle.c4, .chart rect.c4 { fill: var(--c4); }
.chart line.c5, .chart polyline.c5 { stroke: var(--c5); } .chart circle.c5, .chart rect.c5 { fill: var(--c5); }
.band { fill: transparent; }
.band:hover { fill: var(--text); fill-opacity: .08; }

img { display: block; width: 100%; height: auto; border-radius: 5px; outline: 1px solid var(--line); }
.pixelated { image-rendering: pixelated; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 14px; }
.pairs .thumbs { grid-template-columns: repeat(4, 1fr); margin-bottom: 10px; }
.thumbs figcaption { color: var(--soft); font-size: 12px; text-align: center; margin-top: 3px; }
.caption { overflow-wrap: anywhere; }
.caption.wrong { color: var(--soft); font-size: 13.5px; margin-top: 4px; }
.readings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); gap: 14px; }
.reading { display: grid; grid-template-columns: 100px minmax(0, 1fr); gap: 14px; align-items: start; }
.thumbs { display: grid; gap: 10px; align-content: start; }
.score { color: var(--soft); font-size: 13px; margin: 4px 0 12px; }
.reading .caption { font-size: 16.5px; line-height: 1.9; }
.box { border: 1px solid var(--ref); border-radius: 5px; padding: 1px 5px; white-space: nowrap; background: var(--tint); }
.box.right { border-color: var(--right); background: var(--right-tint); }
.box.wrong { border-color: var(--wrong); background: var(--wrong-tint); }
.box .mark { margin-left: 4px; }
.mark.right { color: var(--right); }
.mark.wrong { color: var(--wrong); }
.words { display: grid; grid-template-columns: repeat(auto-fit, minmax(137px, 1fr)); gap: 10px; }
.word { border: 1px solid var(--line); border-radius: 8px; padding: 8px; font-size: 13px; min-width: 0; }
.word h4 { display: flex; justify-content: space-between; font-size: 14px; margin-bottom: 5px; overflow-wrap: anywhere; }
.word li {
  display: flex; justify-content: space-between; gap: 4px; padding: 0 4px; margin-bottom: 2px; border-radius: 3px;
  background: linear-gradient(to right, var(--tint) var(--length), transparent var(--length));
  font-variant-numeric: tabular-nums;
}
.word li span { white-space: nowrap; }
.word li span:first-child { overflow: hidden; text-overflow: ellipsis; }
.word li.right { --tint: var(--right-tint); font-weight: 600; }
.word .label { border-top: 1px solid var(--line); margin-top: 6px; padding: 4px 4px 0; }
.word .label + ol { color: var(--soft); font-size: 12px; }
.word .label + ol li { background: none; margin: 0; font-weight: 400; }

.examples, .queries { display: grid; gap: 14px; margin-top: 10px; }
.examples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.example { display: flex; flex-wrap: wrap; gap: 14px; align-items: start; }
.example > .thumbs { width: 104px; }
.example > .thumbs.n2 { width: 180px; grid-template-columns: 1fr 1fr; }
.example > .thumbs.n4 { width: 100%; grid-template-columns: repeat(4, 1fr); }
.example > div:last-child { flex: 1 1 150px; min-width: 0; }
.example.right, .query.right { border-left: 3px solid var(--right); }
.example.wrong, .query.wrong { border-left: 3px solid var(--wrong); }
.example .caption { font-size: 16px; line-height: 1.4; margin-bottom: 8px; }
p.truth { margin-top: 8px; font-variant-numeric: tabular-nums; }
.choices li {
  display: flex; justify-content: space-between; gap: 8px; padding: 1px 6px; margin-bottom: 3px; border-radius: 3px;
  background: linear-gradient(to right, var(--tint) var(--length), transparent var(--length));
  font-variant-numeric: tabular-nums;
}
.choices li.right { --tint: var(--right-tint); font-weight: 600; }
.queries { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.query .caption { margin-bottom: 10px; }
.hits.pictures { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 8px; }
.hits.pictures .label { text-align: center; margin-top: 3px; }
.hits.pictures li.right img { outline: 3px solid var(--right); }
.hits.texts li { padding: 2px 8px; margin-bottom: 4px; border: 1px solid transparent; border-radius: 5px; font-size: 14px; }
.hits.texts li { list-style: decimal inside; }
.hits.texts li.right { border-color: var(--right); background: var(--right-tint); }
.results { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 3fr); gap: 14px; margin-top: 10px; }
.numbers td { text-align: right; white-space: nowrap; padding-right: 0; }
.numbers th { width: auto; color: var(--text); }
.numbers th small { display: block; color: var(--soft); }
.numbers thead td { color: var(--soft); white-space: normal; font-size: 12.5px; vertical-align: bottom; }
.numbers thead td, .numbers thead th { border-top: 0; }
.notes { color: var(--soft); font-size: 13.5px; margin-top: 12px; }

pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; margin: 0 0 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.configs { display: grid; gap: 10px; }
summary { cursor: pointer; font-weight: 600; }
summary .badge { margin-left: 6px; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; font-size: 14px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 400; color: var(--soft); width: 14em; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.changed th, .changed td { font-weight: 600; color: var(--text); }
@media (max-width: 900px) {
  .results { grid-template-columns: 1fr; }
}
@media (max-width: 560px) {
  .facts .wide { grid-column: auto; }
  .reading { grid-template-columns: 1fr; }
  .reading > .thumbs { grid-template-columns: repeat(2, 104px); }
  .pairs .thumbs { gap: 6px; }
  th { width: 9.5em; }
}
"""
