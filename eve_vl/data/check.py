"""Read a source from end to end before a run depends on it: what is broken, what is odd, what is in it."""

import dataclasses
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from eve_vl.data.records import ImagePixels, Source
from eve_vl.data.transforms import MAX_PIXELS, decode, decode_bytes, read_image
from eve_vl.errors import BadSampleError

CHUNK = 64  # rows per message from a worker
ROWS_PER_WORKER = 5000  # fewer are read sooner than a worker has started


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that training would skip, and why."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Smallest, median and largest of some counts."""

    min: int
    median: float
    max: int

    def __str__(self) -> str:
        return f"{self.min} / {self.median:g} / {self.max}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check_source` found. Spreads are None if not one row could be used."""

    rows: int
    images_ok: int
    broken: tuple[BrokenRow, ...]
    width: Spread | None
    height: Spread | None
    """In pixels, after turning upright."""
    formats: dict[str, int]
    conversions: dict[str, int]
    """How many pictures had to be converted, by kind of conversion."""
    captions: int
    caption_words: Spread | None
    captions_per_image: Spread | None
    duplicate_images: int
    """Rows whose picture is, byte for byte, that of an earlier row."""
    duplicate_captions: int

    @property
    def exit_code(self) -> int:
        """0 if every row can be used, else 1."""
        return 1 if self.broken else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)

    def render(self, console: Console, *, max_broken: int | None = None) -> None:
        """Print the lines for people."""
        console.print("\n".join(self.lines(max_broken)), highlight=False, markup=False, soft_wrap=True)

    def lines(self, max_broken: int | None = None) -> list[str]:
        """Return lines for people; at most `max_broken` broken rows are listed, None for all."""
        table = [
            ("rows", f"{self.rows}"),
            ("usable", f"{self.images_ok}"),
            ("broken", f"{len(self.broken)}"),
            ("width in pixels", f"{self.width or '-'}   (min / median / max)"),
            ("height in pixels", f"{self.height or '-'}"),
            ("formats", _counts(self.formats)),
            ("converted", _counts(self.conversions)),
            ("captions", f"{self.captions}"),
            ("captions per image", f"{self.captions_per_image or '-'}"),
            ("words per caption", f"{self.caption_words or '-'}"),
            ("repeated images", f"{self.duplicate_images}"),
            ("repeated captions", f"{self.duplicate_captions}"),
        ]
        lines = [f"{name:<20}{value}" for name, value in table]
        lines += [f"broken: {row.where}: {row.reason}" for row in self.broken[:max_broken]]
        if max_broken is not None and len(self.broken) > max_broken:
            lines.append(f"… and {len(self.broken) - max_broken} more broken rows")
        return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """What is kept of a usable row."""

    width: int
    height: int
    format: str
    conversions: tuple[str, ...]
    image_hash: int
    caption_words: tuple[int, ...]
    caption_hashes: tuple[int, ...]


class _Rows(Dataset[_Row | BrokenRow]):
    """Map style, for loader workers."""

    def __init__(self, source: Source, min_size: int, max_pixels: int):
        self.source, self.min_size, self.max_pixels = source, min_size, max_pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Row | BrokenRow:
        try:
            return self._check(index)
        except BadSampleError as error:
            return BrokenRow(where=error.where, reason=error.reason)

    def _check(self, index: int) -> _Row:
        row = self.source[index]
        if isinstance(row.image, ImagePixels):
            data = row.image.pixels.tobytes()
            pixels = decode(row.image, row.where, min_size=self.min_size, max_pixels=self.max_pixels)
            name, conversions = "pixels", ()
        else:
            data = read_image(row.image, row.where)
            picture = decode_bytes(data, row.where, min_size=self.min_size, max_pixels=self.max_pixels)
            pixels, name, conversions = picture.pixels, picture.format, picture.conversions
        return _Row(
            width=pixels.shape[2],
            height=pixels.shape[1],
            format=name,
            conversions=conversions,
            image_hash=_hash(data),
            caption_words=tuple(len(caption.split()) for caption in row.captions),
            caption_hashes=tuple(_hash(caption.encode()) for caption in row.captions),
        )


@dataclass(kw_only=True, slots=True)
class _Tally:
    broken: list[BrokenRow] = field(default_factory=list)
    widths: array = field(default_factory=lambda: array("q"))
    heights: array = field(default_factory=lambda: array("q"))
    words: array = field(default_factory=lambda: array("q"))
    captions_per_image: array = field(default_factory=lambda: array("q"))
    formats: Counter[str] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)
    image_hashes: set[int] = field(default_factory=set)
    caption_hashes: set[int] = field(default_factory=set)

    def add(self, row: _Row | BrokenRow) -> None:
        if isinstance(row, BrokenRow):
            self.broken.append(row)
            return
        self.widths.append(row.width)
        self.heights.append(row.height)
        self.words.extend(row.caption_words)
        self.captions_per_image.append(len(row.caption_words))
        self.formats[row.format] += 1
        self.conversions.update(row.conversions)
        self.image_hashes.add(row.image_hash)
        self.caption_hashes.update(row.caption_hashes)

    def report(self) -> Report:
        return Report(
            rows=len(self.widths) + len(self.broken),
            images_ok=len(self.widths),
            broken=tuple(self.broken),
            width=_spread(self.widths),
            height=_spread(self.heights),
            formats=dict(self.formats.most_common()),
            conversions=dict(self.conversions.most_common()),
            captions=len(self.words),
            caption_words=_spread(self.words),
            captions_per_image=_spread(self.captions_per_image),
            duplicate_images=len(self.widths) - len(self.image_hashes),
            duplicate_captions=len(self.words) - len(self.caption_hashes),
        )


def check_source(
    source: Source,
    *,
    min_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    num_workers: int | None = None,
    console: Console | None = None,
) -> Report:
    """Read every row once, decode its picture, and report.

    `min_size` and `max_pixels` are those of `decode`. `num_workers` None starts as many processes as pay. A progress
    bar is shown if `console` is a terminal. Rows keep their order in `Report.broken`.
    """
    if num_workers is None:
        num_workers = min(os.cpu_count() or 1, len(source) // ROWS_PER_WORKER)
    chunks = DataLoader(
        _Rows(source, min_size, max_pixels),
        batch_size=CHUNK,
        num_workers=num_workers,
        collate_fn=list,  # rows as they are, not tensors
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_shown = console is not None and console.is_terminal
    tally = _Tally()
    with Progress(*columns, console=console, disable=not is_shown, transient=True) as progress:
        bar = progress.add_task("reading", total=len(source))
        for chunk in chunks:
            for row in chunk:
                tally.add(row)
            progress.update(bar, advance=len(chunk))
    return tally.report()


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _spread(values: Sequence[int]) -> Spread | None:
    if not values:
        return None
    return Spread(min=min(values), median=float(np.median(values)), max=max(values))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"
