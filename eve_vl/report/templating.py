"""Parts shared by all pages: templates, embedded images, number formats.

Python selects and measures; the templates define how it looks. They escape all values except other templates' output
(`Markup`).
"""

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.utils.console import pluralize

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page: anchor, heading and content."""

    name: str
    title: str
    body: Markup


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One output that a model proposes: a token, an answer, a class."""

    text: str
    probability: float
    is_right: bool


def draw(template: str, macro: str, **values: Any) -> Markup:
    """Return the output of a template's macro."""
    return getattr(TEMPLATES.get_template(template).module, macro)(**values).strip()


def document(template: str, sections: Sequence[Section], **values: Any) -> str:
    """Return a complete page, without line breaks between elements."""
    page = TEMPLATES.get_template(template).render(sections=sections, **values)
    return re.sub(r">\s*\n\s*<", "><", page)


def png(pixels_HWC: np.ndarray) -> str:
    """Return a uint8 (H, W, 3) image as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def interval(value: float, show: Callable[[float], str]) -> str:
    """Return a MeasuredValue's 95 % interval and n as text, else "". show: format."""
    return f"{show(value.low)} to {show(value.high)}, n {value.n:,}" if isinstance(value, MeasuredValue) else ""


def percent(share: float) -> str:
    """Return a share as percentage: 0.4401 → 44.0 %; NaN → –."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """Return a number with three significant digits: 0.0839, 5.58×10⁻⁵, 480k."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return scientific(value)
    if abs(value) >= 10_000:
        size, unit = next((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= size)
        return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points: 0.5 → +50.0; NaN → –."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.1f}".replace("-", "−")


def scientific(value: float) -> str:
    """Return a number in powers of ten: 0.0005 → 5×10⁻⁴."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}×10{str(int(exponent)).translate(SUPERSCRIPT)}"


TEMPLATES = Environment(
    loader=PackageLoader("eve_vl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {each.__name__: each for each in (png, pluralize, interval, percent, number, points, scientific)}
TEMPLATES.globals |= {each.__name__: each for each in (percent, number, scientific, math.isfinite)} | {
    "nan": math.nan,
    "source_note": "",
}
