"""Pieces of HTML that all pages share: escaped text, sections, cards, embedded pictures, numbers as people write them."""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from eve_vl.report.style import STYLE

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LONG = 64  # letters of a fact that takes two columns
MAX_PIXELATED = 160  # pictures smaller than this are shown larger than they are: keep their pixels sharp


def esc(value: object) -> str:
    """Return text that is harmless inside an element or a quoted attribute."""
    return html.escape(str(value))


def section(name: str, title: str, intro: str, body: str) -> str:
    """Return a <section>; `intro` and `body` are HTML."""
    intro = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{name}"><h2>{title}</h2>{intro}{body}</section>'


def navigation(sections: Sequence[str]) -> str:
    """Return links to sections."""
    heads = (re.match(r'<section id="(.*?)"><h2>(.*?)</h2>', each) for each in sections)
    links = (f'<a href="#{head[1]}">{head[2]}</a>' for head in heads if head)
    return f"<nav>{''.join(links)}</nav>"


def header(kicker: str, title: str, facts: Mapping[str, str], notes: Iterable[str] = ()) -> str:
    """Return the top of a page. title, notes: plain text; the others: HTML, facts by their names."""
    wide = {name: ' class="wide"' if len(value) > LONG else "" for name, value in facts.items()}
    rows = "".join(f"<div{wide[name]}><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    listed = "".join(f"<li>{esc(note)}</li>" for note in notes)
    listed = f'<ul class="notes">{listed}</ul>' if listed else ""
    return f'<header><p class="kicker">{kicker}</p><h1>{esc(title)}</h1><dl class="facts">{rows}</dl>{listed}</header>'


def document(title: str, head: str, sections: Sequence[str]) -> str:
    """Return a whole HTML file. title: plain text; head: the top of the page."""
    body = "\n".join([head, navigation(sections), *sections])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EVE · {esc(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One number: `length`, 0 to 1, draws its bar; `is_main` sets off the model's own."""

    name: str
    value: str
    length: float
    sentence: str
    is_main: bool = False


def share_card(name: str, share: float, sentence: str, *, is_main: bool = False) -> Card:
    """Return the card of a share in [0, 1]."""
    return Card(name=name, value=percent(share), length=share, sentence=sentence, is_main=is_main)


def card_group(title: str, verdict: str, cards: Sequence[Card]) -> str:
    """Return cards under a heading and a sentence that says what they mean."""
    items = "".join(
        f'<li class="card number{" main" if card.is_main else ""}"><code>{card.name}</code><strong>{card.value}</strong>'
        f'<span class="bar" style="--length:{100 * card.length:.1f}%"></span><p>{card.sentence}</p></li>'
        for card in cards
    )
    verdict = f'<p class="verdict">{verdict}</p>' if verdict else ""
    return f'<h3>{title}</h3>{verdict}<ul class="cards">{items}</ul>'


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One thing that a model proposes: a token, an answer, a class."""

    text: str
    probability: float
    is_right: bool


def choices_list(choices: Sequence[Choice]) -> str:
    """Return what a model proposes with bars as long as the probabilities."""
    rows = "".join(
        f'<li class="{right(each.is_right)}" style="--length:{100 * each.probability:.1f}%">'
        f"<span>{esc(each.text)}</span><span>{percent(each.probability)}</span></li>"
        for each in choices
    )
    return f'<ol class="choices">{rows}</ol>'


def right(is_right: bool) -> str:
    """Return the class of what is right or wrong."""
    return "right" if is_right else "wrong"


def mark(is_right: bool | None) -> str:
    """Return ✓ or ✗; nothing where it is not known."""
    if is_right is None:
        return ""
    return f'<span class="mark {right(is_right)}" role="img" aria-label="{right(is_right)}">{"✓" if is_right else "✗"}</span>'


def missing(sentence: str) -> str:
    """Return an HTML sentence that stands where something is left out, or warns."""
    return f'<p class="missing">{sentence}</p>'


def picture(pixels_HWC: np.ndarray, alt: str) -> str:
    """Return an <img> that carries a uint8 (H, W, 3) picture within itself, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG", optimize=True)
    height, width = pixels_HWC.shape[:2]
    style = ' class="pixelated"' if width < MAX_PIXELATED else ""
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img{style} width="{width}" height="{height}" alt="{esc(alt)}" src="data:image/png;base64,{data}">'


def thumbs(alt: str, pictures: Mapping[str, np.ndarray]) -> str:
    """Return pictures in a row, each over its name; `alt`, plain text, makes their alternative texts unique on a page."""
    figures = "".join(
        f"<figure>{picture(pixels, f'{alt}: {name}')}<figcaption>{esc(name)}</figcaption></figure>"
        for name, pixels in pictures.items()
    )
    return f'<div class="thumbs n{len(pictures)}">{figures}</div>'


def counted(count: float, one: str, many: str) -> str:
    """Return a number with its noun: 1 match, 3 matches, 1.5 matches."""
    return f"{count:,} {one if count == 1 else many}" if count == int(count) else f"{number(count)} {many}"


def percent(share: float) -> str:
    """Return 0.4401 as 44.0 %; not a number as –."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """Return a number to three significant digits, very small ones as 5.58×10⁻⁵, large ones as 480k."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return scientific(value)
    if abs(value) >= 10_000:
        for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points, with its sign: 0.5 as +50.0; not a number as –."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def scientific(value: float) -> str:
    """Return 0.0005 as 5×10⁻⁴."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
