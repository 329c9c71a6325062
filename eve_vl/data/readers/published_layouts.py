"""Layouts of published datasets that related systems and packages recognise.

A system registers an object of `PublishedLayouts` as an entry point of the group `eve_vl.layouts`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eve_vl.config.plugins import installed, load_installed
from eve_vl.data.table import Table

GROUP = "layouts"


@dataclass(frozen=True)
class PublishedLayouts:
    """Two functions that recognise datasets; each returns None for data that it does not know."""

    table_of_path: Callable[[Path, str | None], Table | None]
    """Opens a local path and its split. Raises UserError, e.g. for a missing split."""

    table_of_json_list: Callable[[Path, list[object]], Table | None]
    """Opens the rows of a JSON list that was read from a path."""


def registered_layouts() -> list[PublishedLayouts]:
    """Return the layouts of all related systems and installed packages."""
    layouts = [load_installed(GROUP, name) for name in installed(GROUP)]
    return [layout for layout in layouts if layout is not None]


def table_of_path(path: Path, split: str | None) -> Table | None:
    """Return the table of the first registered layout that recognises a path, else None."""
    for layouts in registered_layouts():
        table = layouts.table_of_path(path, split)
        if table is not None:
            return table
    return None


def table_of_json_list(path: Path, rows: list[object]) -> Table | None:
    """Return the table of the first registered layout that recognises a JSON list, else None."""
    for layouts in registered_layouts():
        table = layouts.table_of_json_list(path, rows)
        if table is not None:
            return table
    return None
