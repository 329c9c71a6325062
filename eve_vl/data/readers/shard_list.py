"""What is known of all tar shards of a source without opening them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eve_vl.data.readers.tar_index import (
    STATS,
    cached_array_path,
    find_index,
    save_array,
    shard_stamp,
)
from eve_vl.data.remote_path import RemotePath
from eve_vl.data.shard_stamps import FileStamp
from eve_vl.utils import file_io
from eve_vl.utils.console import pluralize, print_once, progress
from eve_vl.utils.launcher import process_place

MANY = 64  # shards, of which a file of their numbers of rows is kept, too
THREADS = 32  # for requests that fsspec does not bundle
UNKNOWN = -1
Result = TypeVar("Result")


@dataclass
class ShardList:
    """Stamps, numbers of rows and left-out members of S shards."""

    stamps_S2: np.ndarray
    """Size and version of each shard, int64."""
    num_rows_S: np.ndarray
    """Rows of each shard, int64."""
    has_note_S: np.ndarray
    """Whether members are left out, bool."""

    def stamp(self, number: int) -> FileStamp:
        """Return the stamp of a shard."""
        return FileStamp(*self.stamps_S2[number].tolist())

    def to_array(self) -> np.ndarray:
        """Return the content of its file, int64 (S, 4)."""
        columns = (self.stamps_S2, self.num_rows_S[:, None], self.has_note_S[:, None])
        return np.concatenate([column.astype(np.int64) for column in columns], axis=1)

    @classmethod
    def from_array(cls, array: np.ndarray) -> "ShardList":
        """Undo `to_array`."""
        return cls(array[:, :2], array[:, 2], array[:, 3].astype(bool))


def list_shards(paths: Sequence[Path], is_lazy: bool) -> ShardList:
    """Return what is known of shards without opening them.

    is_lazy: take the number of rows from img2dataset's file next to a shard, if there is one. Of
    MANY shards the result is kept.
    """
    if isinstance(paths[0], RemotePath):
        stamps = _in_threads(shard_stamp, paths, "sizes")
    else:
        stamps = [shard_stamp(path) for path in paths]
    stamps_S2 = np.array(stamps, dtype=np.int64).reshape(-1, 2)

    list_path = shard_list_path(paths, is_lazy)
    if len(paths) >= MANY:
        with suppress(OSError, ValueError):
            saved = ShardList.from_array(np.load(list_path))
            if np.array_equal(saved.stamps_S2, stamps_S2):
                return saved

    shards = ShardList(
        stamps_S2,
        np.full(len(paths), UNKNOWN, dtype=np.int64),
        np.zeros(len(paths), dtype=bool),
    )
    if is_lazy:
        shards.num_rows_S[:] = _in_threads(_stated_rows, paths, "numbers of rows")
    _index_unknown(paths, shards)
    if len(paths) >= MANY:
        save_array(list_path, shards.to_array())
    return shards


def shard_list_path(paths: Sequence[Path], is_lazy: bool) -> Path:
    """Return the file of the list of some shards."""
    name = "\n".join(str(path) for path in paths)
    return cached_array_path(f"{name}lazy" if is_lazy else name)


def _index_unknown(paths: Sequence[Path], shards: ShardList) -> None:
    """Index the shards whose number of rows is unknown.

    The processes of a run share the work: each begins elsewhere, and finds the indexes that another
    process has made.
    """
    place = process_place()
    first = len(paths) * place.rank // place.world_size
    numbers = [*range(first, len(paths)), *range(first)]
    unknown = [number for number in numbers if shards.num_rows_S[number] < 0]
    for number in progress(unknown, "indexing shards", len(unknown)):
        index = find_index(paths[number], shards.stamp(number))
        shards.num_rows_S[number] = len(index.keys)
        shards.has_note_S[number] = bool(index.note)


def _stated_rows(path: Path) -> int:
    """Return the number of rows that img2dataset states for a shard, or UNKNOWN."""
    with suppress(OSError, ValueError):
        stats = file_io.read_json(path.with_name(path.stem + STATS), dict)
        if file_io.has_fields(stats, successes=int):
            return stats["successes"]
    return UNKNOWN


def _in_threads(read: Callable[[Any], Result], paths: Sequence[Path], facts: str) -> list[Result]:
    """Return what a function reads about each shard; facts: what messages call it."""
    print_once(f"reading the {facts} of {pluralize(len(paths), 'shard')} in {paths[0].parent}")
    with ThreadPoolExecutor(THREADS) as pool:
        return list(progress(pool.map(read, paths), facts, len(paths)))
