"""The verb search: images or captions of an index, found by text or image."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from eve_vl.cli.flags import DeviceArgs, JsonArgs
from eve_vl.cli.indexed_run import load_encoder
from eve_vl.cli.output_files import check_writable, write_json
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError

if TYPE_CHECKING:
    from eve_vl.search.hits import Hit, Hits
    from eve_vl.search.index import Index

THUMBNAIL_SIDE = 192  # pixels


class SearchArgs(JsonArgs, DeviceArgs):
    """Flags of `eve search`."""

    index: Positional[Path]
    """Folder of the index."""
    query: Positional[str] = ""
    """Words to search for; -WORD excludes, 2:WORD counts twice, "quotes" keep words together."""
    image: Path | None = None
    """Image to search for, with or without a text."""
    caption: bool = False
    """Find captions instead of images."""
    by: str = "both"
    """By the `words` of captions, file names and columns, by `vectors`, or by `both`."""
    min_score: float = 0.0
    """Least fit, 0 to 1, of images without the words; 0.97 leaves out those that do not fit."""
    top: int = 20
    """Number of results."""
    rerank: int | None = None
    """Number of candidates that the matching head re-ranks, 0 for none; default: as validation
    chose for the run."""
    folder: Path | None = None
    """Only images in this folder."""
    where: tuple[str, ...] = ()
    """Only images of table rows with these values, COLUMN=VALUE each; one row must have all of
    them."""
    run: Path | None = None
    """The run, if it was moved since it made the index."""
    html: Path | None = None
    """Also write a page of the results to this file."""


def run_search(args: SearchArgs) -> None:
    """Find images or captions by text or image: eve search INDEX "TEXT" --image FILE."""
    check_writable(args.html)
    where = _column_values(args.where)
    # first: it refuses a missing index at once
    encoder = load_encoder(args.index, args.run, args.device)
    from eve_vl.search.index import Index

    index = Index.open(args.index, encoder)
    hits = index.search(
        args.query,
        captions=args.caption,
        where=where,
        image=args.image,
        by=args.by,
        min_score=args.min_score,
        top=args.top,
        rerank=args.rerank,
        folder=args.folder,
    )
    _print_hits(hits, args)
    values = {
        "nothing_fits": hits.nothing_fits,
        "note": hits.note,
        "hits": [dataclasses.asdict(hit) for hit in hits],
    }
    write_json(args.json, values)
    if args.html is not None:
        print_line(f"page: {_write_page(args.html, _title(args), index, hits)}")


def _column_values(conditions: Sequence[str]) -> dict[str, str]:
    """Return the values of --where by column. Raises UserError."""
    values = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if column and equals:
            values[column] = value
    if len(values) < len(conditions):
        raise UserError(
            f"--where: {' '.join(conditions)!r} was given, expected COLUMN=VALUE, each column once"
        )
    return values


def _print_hits(hits: "Hits", args: SearchArgs) -> None:
    if hits.note:
        print_line(f"note: {hits.note}")
    if hits.nothing_fits:
        line = "nothing here fits"
        if args.query:
            line += f" {args.query!r}"
        if hits:
            line += "; the nearest:"
        print_line(line)
    for hit in hits:
        print_line(_hit_line(hit, of_caption=args.caption))


def _hit_line(hit: "Hit", *, of_caption: bool) -> str:
    """Return a hit as a line: its score, its name, its captions or an image of the caption."""
    score = hit.score if hit.match is None else hit.match
    score_text = "      –" if score is None else f"{score:7.3f}"
    texts = hit.images[:1] if of_caption else hit.captions
    return f"{score_text}  {hit.name}  {'; '.join(texts)}  ({hit.why})"


def _title(args: SearchArgs) -> str:
    words = []
    if args.query:
        words.append(args.query)
    if args.image:
        words.append(f"like {args.image}")
    return " ".join(words)


def _write_page(path: Path, title: str, index: "Index", hits: "Hits") -> Path:
    """Write the page of a search's hits; return its path. Raises UserError."""
    from eve_vl.pages.rendering import Section, document, draw
    from eve_vl.report.page import write_page

    thumbnails = []
    for hit in hits:
        thumbnail = None
        with contextlib.suppress(UserError):  # its file is gone
            thumbnail = index.image(hit.id).whole(THUMBNAIL_SIDE)
        thumbnails.append((hit, thumbnail))
    section = Section("found", "Hits", draw("search_sections.html", "hits", hits=thumbnails))
    page = document(
        "search.html",
        [section],
        title=title,
        made_by=index.database.made_by,
        counts=index.counts(),
    )
    return write_page(path, page)
