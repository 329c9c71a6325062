"""HTML from templates, which escape all values except the output of templates (`Markup`).

The shared templates stand in `templates/`; a template of a single task stands in its folder.
"""

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from eve_vl.pages.number_formats import interval, number, percent, points
from eve_vl.utils.console import pluralize

TEMPLATE_FOLDER = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Section:
    """A part of a page: anchor, heading and content."""

    name: str
    title: str
    body: Markup


def draw(template: str | Path, macro: str, **values: Any) -> Markup:
    """Return the output of a template's macro.

    template: name of a shared template, or the path of another.
    """
    module = TEMPLATES.get_template(str(template)).module
    return getattr(module, macro)(**values).strip()


def document(template: str, sections: Sequence[Section], **values: Any) -> str:
    """Return a complete page, without line breaks between elements."""
    page = TEMPLATES.get_template(template).render(sections=sections, **values)
    return re.sub(r">\s*\n\s*<", "><", page)


def png(pixels_HWC: np.ndarray) -> str:
    """Return a uint8 (H, W, 3) image as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def read_template(name: str) -> str | None:
    """Return the source of a shared template, or of the template at an absolute path."""
    path = TEMPLATE_FOLDER / name
    if not path.is_file():
        return None
    return path.read_text(encoding="utf-8")


TEMPLATES = Environment(
    loader=FunctionLoader(read_template),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
for text_filter in (png, pluralize, interval, percent, number, points):
    TEMPLATES.filters[text_filter.__name__] = text_filter
TEMPLATES.globals.update(percent=percent, number=number, isfinite=math.isfinite, source_note="")
