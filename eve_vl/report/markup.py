"""Small pieces of HTML: escaped text, embedded pictures, numbers as people write them."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MAX_PIXELATED = 160  # pictures smaller than this are shown larger than they are: keep their pixels sharp


def esc(value: object) -> str:
    """Return text that is harmless inside an element or a quoted attribute."""
    return html.escape(str(value))


def section(name: str, title: str, intro: str, body: str) -> str:
    """Return a <section>; `intro` and `body` are HTML."""
    intro = f'<p class="intro">{intro}</p>' if intro else ""
    return f'<section id="{name}"><h2>{title}</h2>{intro}{body}</section>'


def missing(sentence: str) -> str:
    """Return the HTML sentence that stands where something is left out."""
    return f'<p class="missing">{sentence}</p>'


def picture(pixels_HWC: np.ndarray, alt: str) -> str:
    """Return an <img> that carries a uint8 (H, W, 3) picture within itself, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG", optimize=True)
    height, width = pixels_HWC.shape[:2]
    style = ' class="pixelated"' if width < MAX_PIXELATED else ""
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img{style} width="{width}" height="{height}" alt="{esc(alt)}" src="data:image/png;base64,{data}">'


def percent(share: float) -> str:
    """Return 0.4401 as 44.0 %."""
    return f"{100 * share:.1f} %"


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
    """Return a difference of two shares in percentage points, with its sign: 0.5 as +50.0."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def scientific(value: float) -> str:
    """Return 0.0005 as 5×10⁻⁴."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
