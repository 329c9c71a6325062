"""The page about a search: what was found, in order, with thumbnails."""

from pathlib import Path

import numpy as np

from eve_vl.report.page import write_page
from eve_vl.report.templating import Section, document, draw
from eve_vl.search.index import Hit, Index
from eve_vl.utils.errors import UserError

SIDE = 192  # pixels of a thumbnail, at most


def write_results(path: Path, title: str, index: Index, hits: list[Hit]) -> Path:
    """Write the page about a search, which was for what `title` says, and return its path. Raises UserError."""
    shown = [(hit, thumbnail(index, hit)) for hit in hits]
    body = draw("search_sections.html", "found", shown=shown)
    section = Section(name="found", title="Found", body=body)
    return write_page(path, document("search.html", [section], title=title, facts=index.database.facts, counts=index.counts()))


def thumbnail(index: Index, hit: Hit) -> np.ndarray | None:
    """Return the image of a hit, of a caption its first, uint8 (H, W, 3), not larger than SIDE; None if it cannot be had."""
    try:
        return index.image(hit.id).at_most(SIDE)
    except UserError:
        return None
