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
h1, h2, h3, h4, p, ul, ol, dl, dd, figure { margin: 0; padding: 0; } ul, ol { list-style: none; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 23px; line-height: 1.2; letter-spacing: -.01em; }
h3 { font-size: 16px; margin-top: 22px; }
section { margin-top: 52px; scroll-margin-top: 48px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em; }
.kicker, .intro, .missing, .badge, .label, .facts dt, .facts small, .notes, .score, nav a { color: var(--soft); }
.number code, .number p, .note, .legend, .thumbs figcaption, .caption.wrong, .numbers thead td, th { color: var(--soft); }
.label, .badge, .facts dt, .thumbs figcaption, .word .label + ol { font-size: 12px; }
.kicker, .note, .legend, .score { font-size: 13px; }
.notes, .caption.wrong, .number p { font-size: 13.5px; }
.facts dd, .legend b, .number strong, p.truth, .choices, td { font-variant-numeric: tabular-nums; }
.kicker { letter-spacing: .04em; } .intro { max-width: 78ch; margin: 6px 0 18px; }
.verdict { margin: 2px 0 10px; }
.missing { border-left: 3px solid var(--line); padding: 4px 0 4px 12px; margin-top: 10px; max-width: 78ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px; min-width: 0; }
.badge { display: inline-block; padding: 0 9px; border-radius: 99px; background: var(--tint); font-weight: 400; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px 24px; margin-top: 18px; }
.legend b { color: var(--text); } .facts dd, .caption, td { overflow-wrap: anywhere; }
.facts .wide { grid-column: span 2; }
nav {
  position: sticky; top: 0; z-index: 1; display: flex; gap: 20px; margin-top: 22px; padding: 9px 0; overflow-x: auto;
  background: var(--page); border-bottom: 1px solid var(--line); font-size: 14px;
}
nav a { text-decoration: none; white-space: nowrap; }
nav a:hover, nav a:focus-visible { color: var(--text); text-decoration: underline; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 12px; }
.number code, .numbers thead td { font-size: 12.5px; }
.number strong { display: block; font-size: 29px; line-height: 1.3; font-weight: 600; }
.number p { line-height: 1.45; }
.number .bar { display: block; height: 5px; border-radius: 3px; margin: 5px 0 10px; background: var(--tint); overflow: hidden; }
.number .bar::before { content: ""; display: block; height: 100%; width: var(--length); background: var(--ref); }
.number.main { border-color: var(--c0); } .number.main strong { color: var(--c0); }
.number.main .bar::before { background: var(--c0); }

.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 14px; }
.charts + .charts, .cards + .charts, h3 + .charts { margin-top: 14px; }
.chart figcaption, .legend b, .right > span, summary { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 8px; }
.legend .key { width: 22px; height: 10px; margin-right: 5px; vertical-align: 0; }
.chart > svg { display: block; width: 100%; height: auto; margin-top: 10px; overflow: visible; }
.chart text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
.chart text.mark { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.chart line, .chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart line.grid { stroke: var(--line); stroke-width: 1; }
.chart line.mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
.chart .ref { stroke: var(--ref); stroke-width: 1.5; stroke-dasharray: 6 4; stroke-linecap: butt; }
.chart .ref1 { stroke-dasharray: 2 3; }
.c0 { --color: var(--c0); } .c1 { --color: var(--c1); } .c2 { --color: var(--c2); }
.c3 { --color: var(--c3); } .c4 { --color: var(--c4); } .c5 { --color: var(--c5); } .ref { --color: var(--ref); }
.chart line[class^=c], .chart polyline { stroke: var(--color); } .chart circle, .chart rect[class^=c] { fill: var(--color); }
.band { fill: transparent; } .band:hover { fill: var(--text); fill-opacity: .08; }

img { display: block; width: 100%; height: auto; border-radius: 5px; outline: 1px solid var(--line); }
.pixelated { image-rendering: pixelated; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 14px; }
.pairs .thumbs { grid-template-columns: repeat(4, 1fr); margin-bottom: 10px; }
.thumbs figcaption, .hits .label { text-align: center; margin-top: 3px; } .caption.wrong { margin-top: 4px; }
.readings { columns: 2 500px; column-gap: 14px; }
.reading { display: grid; grid-template-columns: 100px minmax(0, 1fr); gap: 14px; align-items: start; }
.reading { break-inside: avoid; margin-bottom: 14px; }
.thumbs { display: grid; gap: 10px; align-content: start; }
.score { margin: 4px 0 12px; } .reading .caption { font-size: 16.5px; line-height: 1.9; }
.right { --verdict: var(--right); --verdict-tint: var(--right-tint); }
.wrong { --verdict: var(--wrong); --verdict-tint: var(--wrong-tint); }
.mark { color: var(--verdict); }
.box { border: 1px solid var(--verdict, var(--ref)); background: var(--verdict-tint, var(--tint)); }
.box { border-radius: 5px; padding: 1px 5px; white-space: nowrap; } .box .mark { margin-left: 4px; }
.words { display: grid; grid-template-columns: repeat(auto-fit, minmax(137px, 1fr)); gap: 10px; }
.word { border: 1px solid var(--line); border-radius: 8px; padding: 8px; font-size: 13px; min-width: 0; }
.word h4 { display: flex; justify-content: space-between; font-size: 14px; margin-bottom: 5px; overflow-wrap: anywhere; }
.choices li { padding: 1px 6px; margin-bottom: 3px; border-radius: 3px; }
.choices li { background: linear-gradient(to right, var(--tint) var(--length), transparent var(--length)); }
.choices li, .word li { display: flex; justify-content: space-between; gap: 4px; }
.choices li.right { --tint: var(--right-tint); }
.word li { padding: 0 4px; white-space: nowrap; } .word li span:first-child { overflow: hidden; text-overflow: ellipsis; }
.word .label { border-top: 1px solid var(--line); margin-top: 6px; padding: 4px 4px 0; }
.word .label + ol { color: var(--soft); } .word .label + ol span { font-weight: 400; }

.examples, .queries { display: grid; gap: 14px; margin-top: 10px; }
.examples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.example { display: flex; flex-wrap: wrap; gap: 14px; align-items: start; }
.example > .thumbs { width: 104px; }
.example > .thumbs.n2 { width: 180px; grid-template-columns: 1fr 1fr; }
.example > .thumbs.n4 { width: 100%; grid-template-columns: repeat(4, 1fr); }
.example > div:last-child { flex: 1 1 150px; min-width: 0; }
.example, .query { border-left: 3px solid var(--verdict, var(--line)); }
.example .caption, .query .caption { font-size: 16px; line-height: 1.4; margin-bottom: 8px; }
p.truth { margin-top: 8px; }
.queries { grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); }
.hits.pictures { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 8px; }
.hits.pictures li.right img { outline: 3px solid var(--right); }
.hits.texts li { padding: 2px 8px; margin-bottom: 4px; border: 1px solid transparent; border-radius: 5px; }
.hits.texts { list-style: decimal inside; } .hits.texts li.right { border-color: var(--right); background: var(--right-tint); }
.results { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 3fr); gap: 14px; margin-top: 10px; }
.numbers td { text-align: right; white-space: nowrap; padding-right: 0; }
.numbers th { width: auto; color: var(--text); } .numbers th small { display: block; color: var(--soft); }
.numbers thead td { white-space: normal; vertical-align: bottom; } .numbers thead * { border-top: 0; }
.notes { margin-top: 12px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; margin: 0 0 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.configs { display: grid; gap: 10px; } summary { cursor: pointer; } summary .badge { margin-left: 6px; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; font-size: 14px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 400; width: 14em; }
.changed th, .changed td { font-weight: 600; color: var(--text); }
@media (max-width: 900px) { .results { grid-template-columns: 1fr; } }
@media (max-width: 560px) {
  .facts .wide { grid-column: auto; }
  .reading { grid-template-columns: 1fr; }
  .reading > .thumbs { grid-template-columns: repeat(2, 104px); }
  .pairs .thumbs { gap: 6px; }
  th { width: 9.5em; }
}
"""
