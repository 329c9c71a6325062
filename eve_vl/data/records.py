"""Records, the rows of all kinds, and sources of them.

A `Source` is a random-access sequence of rows. Opening one is cheap: it builds an index and reads
no image. Reading row i touches only row i, so shuffling is exact and a resumed run needs no replay.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from eve_vl.data.image_refs import ImageRef
from eve_vl.data.remote_ranges import fetch
from eve_vl.data.remote_requests import ByteRange
from eve_vl.utils.console import progress
from eve_vl.utils.errors import BadSampleError
from eve_vl.utils.frozen import Frozen

AT_ONCE = 64  # rows whose remote bytes are read in one call
Fact = tuple[str, Any]
"""Something that `eve data check` counts, and its value in one row."""


class Record(Frozen):
    """One row of any kind; each kind is a subclass in data/kinds.

    Generic code uses `images` and `texts`. where: the row's name in messages, e.g.
    `train.jsonl:17`.
    """

    KIND: ClassVar[str]
    """Name of the kind on the command line."""
    TEXT: ClassVar[str] = "text"
    """Name of the field that holds the text or texts."""
    where: str

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The row's images, left to right."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(value for value in values if isinstance(value, ImageRef))

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's texts."""
        value = getattr(self, self.TEXT, None)
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value

    def facts(self) -> list[Fact]:
        """Return what `eve data check` counts besides images and texts."""
        return []


Row_co = TypeVar("Row_co", bound=Record, covariant=True)


class Source(Protocol[Row_co]):
    """A random-access set of rows; unusable rows raise BadSampleError."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row_co: ...


Place = tuple[Any, int]
"""A source and the number of a row there."""
Rows = Iterator[tuple[int, Row_co]]


def fetch_places(places: Iterable[Place], *, images: bool = True) -> None:
    """Read the remote bytes of rows in one call, for the reads that follow.

    images: also those of their images, which are read later than the rows.
    """
    ranges: list[ByteRange] = []
    for place in places:
        source, row = place
        while hasattr(source, "indices"):  # a subset
            row = source.indices[row]
            source = source.dataset
        if hasattr(source, "ranges"):
            ranges += source.ranges(row, images=images)
    fetch(ranges)


def fetched(source: Any, rows: Iterable[int], *, images: bool = False) -> Iterator[int]:
    """Yield numbers of rows, after reading the bytes of AT_ONCE of them in one call."""
    remaining = iter(rows)
    while True:
        chunk = list(itertools.islice(remaining, AT_ONCE))
        if not chunk:
            return
        fetch_places(((source, row) for row in chunk), images=images)
        yield from chunk


def usable_rows(
    source: Source[Row_co], rows: Sequence[int] | None = None, *, images: bool = False
) -> Rows[Row_co]:
    """Yield index and row of all usable rows, or of those at `rows`.

    Unusable rows are left out silently: training and evaluation report them when they reach them.
    images: they will be read.
    """
    if rows is None:
        rows = range(len(source))
    rows_with_progress = progress(rows, "reading rows", len(rows))
    for index in fetched(source, rows_with_progress, images=images):
        with contextlib.suppress(BadSampleError):
            yield index, source[index]
