"""Filters of a search by folder and by columns, and the slots that pass them.

Letters: N slots.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eve_vl.data.source_names import absolute
from eve_vl.search.database import Database
from eve_vl.search.index_files import index_errors
from eve_vl.search.schema import NO_CAPTION
from eve_vl.search.search_options import SearchOptions

HAS_VALUE = "EXISTS (SELECT 1 FROM json_each(caption.columns) WHERE key = ? AND value = ?)"


class Filter(NamedTuple):
    """Filter of a search, as SQL."""

    condition: str
    """Test of a row of `image`; for captions of `caption` joined to it."""
    values: tuple[Any, ...]
    """Values of its question marks."""
    slots: str
    """SQL of the slots that pass."""


CAPTIONED = Filter(
    condition="TRUE",
    values=(),
    slots="SELECT image.slot FROM caption JOIN image ON id = image"
    f" WHERE caption.slot != {NO_CAPTION} AND image.slot IS NOT NULL",
)
"""Images with a caption."""


def search_filter(options: SearchOptions) -> Filter:
    """Return the filter for a folder and for values of columns; neither: all pass."""
    conditions = ["TRUE"]
    values: list[Any] = []
    if options.folder is not None:
        prefix = os.path.join(absolute(Path(options.folder)), "")  # noqa: PTH118
        conditions.append("substr(name, 1, ?) = ?")
        values += [len(prefix), prefix]
    if options.where:
        has_values = " AND ".join([HAS_VALUE] * len(options.where))
        if not options.captions:
            rows = "SELECT 1 FROM caption WHERE caption.image = image.id"
            has_values = f"EXISTS ({rows} AND {has_values})"
        conditions.append(has_values)
        for column, value in options.where.items():
            values += [column, value]
    condition = " AND ".join(conditions)

    if not values:
        slots = f"SELECT slot FROM {'text' if options.captions else 'feature'}"
    elif options.captions:
        slots = "SELECT caption.slot FROM caption JOIN image ON image.id = image"
        slots += f" WHERE caption.slot != {NO_CAPTION} AND {condition}"
    else:
        slots = f"SELECT slot FROM image WHERE slot IS NOT NULL AND {condition}"
    return Filter(condition, tuple(values), slots)


def slots_that_pass(database: Database, search_filter: Filter) -> np.ndarray:
    """Return which slots pass a filter, bool (N,). Raises DamagedError."""
    with index_errors(database.folder):
        rows = database.db.execute(search_filter.slots, search_filter.values)
        slots = np.fromiter((slot for (slot,) in rows), dtype=np.int64)
    passes_N = np.zeros(slots.max(initial=-1) + 1, dtype=bool)
    passes_N[slots] = True
    return passes_N
