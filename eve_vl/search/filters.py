"""Which images, or captions, a search is among: those in a folder, and those of rows with some values.

Letters: N slots.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eve_vl.config import generated
from eve_vl.search.database import NO_CAPTION, Database, index_errors
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import expand_user

MOST_MASKS = 8  # that are kept, of the searches that come last; of a million images each takes a megabyte
Condition = tuple[str, list[Any]]
"""SQL of a row of `image` or, for captions, of `caption` joined to it, and the values of its question marks."""


def condition(folder: str | Path | None, where: Mapping[str, str], captions: bool = False) -> Condition:
    """Return which images lie in a folder and have a row with these values, or which captions; all, if neither is given."""
    tests, values = ["TRUE"], []
    if folder is not None:
        prefix = os.path.join(absolute(folder), "")  # noqa: PTH118
        tests.append("substr(name, 1, ?) = ?")
        values += [len(prefix), prefix]
    if where:
        says = " AND ".join(["EXISTS (SELECT 1 FROM json_each(caption.columns) WHERE key = ? AND value = ?)"] * len(where))
        tests.append(says if captions else f"EXISTS (SELECT 1 FROM caption WHERE caption.image = image.id AND {says})")
        values += [part for pair in where.items() for part in pair]
    return " AND ".join(tests), values


class FilterCache:
    """Which slots of an index are searched, looked up once for as long as nobody changes it."""

    def __init__(self, store: Database):
        self.store = store
        self._mask = functools.lru_cache(maxsize=MOST_MASKS)(self._looked_up)

    def wanted(self, version: int, chosen: Condition, captions: bool = False) -> np.ndarray:
        """Return which slots fulfil a condition, bool (N,). version: of the index."""
        tests, values = chosen
        if not values:
            query = f"SELECT slot FROM {'text' if captions else 'feature'}"
        elif captions:
            captioned = f"FROM caption JOIN image ON image.id = image WHERE caption.slot != {NO_CAPTION} AND {tests}"
            query = f"SELECT caption.slot {captioned}"
        else:
            query = f"SELECT slot FROM image WHERE slot IS NOT NULL AND {tests}"
        return self._mask(version, query, tuple(values))

    def folders(self, most: int) -> list[str]:
        """Return some folders that images lie in."""
        folder = "rtrim(name, replace(name, '/', ''))"  # up to the last slash
        query = f"SELECT DISTINCT rtrim({folder}, '/') FROM image WHERE slot IS NOT NULL AND {folder} != '' LIMIT ?"
        with index_errors(self.store.folder):
            return [path for (path,) in self.store.db.execute(query, [most])]

    def _looked_up(self, _: int, query: str, values: tuple[Any, ...]) -> np.ndarray:
        with index_errors(self.store.folder):
            slots = np.fromiter((slot for (slot,) in self.store.db.execute(query, values)), dtype=np.int64)
        is_wanted = np.zeros(slots.max(initial=-1) + 1, dtype=bool)
        is_wanted[slots] = True
        return is_wanted


def absolute(spec: str | Path) -> str:
    """Return the name of a source, or of a folder, that means the same from anywhere. Raises UserError for generated data."""
    path = os.path.abspath(expand_user(spec))  # noqa: PTH100 (Path.absolute keeps `..`)
    if ":" in str(spec) and generated(str(spec)) is not None and not os.path.exists(path):  # noqa: PTH110 (of any text)
        instead = "name folders of images, tables or shards (eve data write scenes captions FOLDER writes some)"
        raise UserError(f"{spec}: is generated data, which has no files to index; {instead}")
    return path
