"""Commands that find images: try, index, search."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl import builtin
from eve_vl.cli.common import SourceArgs, check_writable, load_encoder, print_line, write_json
from eve_vl.cli.serve import AppArgs, check_server, run_app
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.safe_io import expand_user

ICON_RUN = "builtin:icons"  # the run of `eve try`


@dataclass(frozen=True, kw_only=True)
class TryArgs:
    """Flags of `eve try`."""

    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards to search as well."""
    out: Path = Path("~/.cache/eve-vl/try")
    """Folder for the icons and their index; sources of earlier calls leave the index unless named again."""
    port: int = 8000
    """Port of the page; 0 takes any free one."""
    browser: bool = True
    """Open the page in the browser."""


@dataclass(frozen=True, kw_only=True)
class IndexArgs(SourceArgs):
    """Flags of `eve index`."""

    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards; default: update all sources of the index."""
    run: Path | None = None
    """Run folder, or one of its checkpoints, that computes the features; default: the run that made the index."""
    out: Path = Path("index")
    """Folder of the index; an existing index is updated."""
    drop: tuple[str, ...] = ()
    """Sources to forget."""
    device: str = "auto"
    """Where to compute, as torch spells it: cpu, cuda, cuda:1, mps; auto: cuda where there is one."""
    batch_size: int = 64
    """Images or captions per batch."""


@dataclass(frozen=True, kw_only=True)
class SearchArgs:
    """Flags of `eve search`."""

    index: Positional[Path]
    """Folder of the index."""
    query: Positional[str] = ""
    """Text to search for."""
    image: Path | None = None
    """Image to search for, with or without a text."""
    caption: bool = False
    """Find captions instead of images."""
    without: str = ""
    """Text to search away from."""
    top: int = 20
    """Number of results."""
    rerank: int | None = None
    """Number of candidates that the matching head re-ranks, 0 for none; default: as validation chose for the run."""
    folder: Path | None = None
    """Only images in this folder."""
    where: tuple[str, ...] = ()
    """Only images of table rows with these values, COLUMN=VALUE each; one row must have all of them."""
    run: Path | None = None
    """The run, if it was moved since it made the index."""
    device: str = "auto"
    """Where to compute, as torch spells it: cpu, cuda, cuda:1, mps; auto: cuda where there is one."""
    json: Path | None = None
    """Also write the results to this file."""
    html: Path | None = None
    """Also write a page of the results to this file."""


def run_try(args: TryArgs) -> None:
    """Search the icons of the package, and images of your own, on a page in the browser: eve try [FOLDER …]."""
    print_line("indexing the icons of the package" + (" and your images" if args.sources else ""))  # torch takes seconds
    check_server(AppArgs(port=args.port))
    from eve_vl.eve import Eve
    from eve_vl.search.database import DATABASE, FORMAT, run_fingerprint, source_name
    from eve_vl.search.index import Index

    out, eve = expand_user(args.out), Eve.load(ICON_RUN)
    icons = builtin.unpack_icons(out / "icons")
    # a later version of the package may ship other weights
    folder = out / f"index-{run_fingerprint(eve.run)['weights'][:8]}-{FORMAT}"
    sources = [source_name(source) for source in (icons, *args.sources)]
    known = Index.open(folder, eve).sources() if (folder / DATABASE).is_file() else ()
    try:
        index = eve.index(sources, folder, drop=[source for source in known if source not in sources])
    except UserError as error:
        instead = "eve index --format takes it, eve try does not"
        raise UserError(re.sub(r"choose with --data\.format.*", instead, str(error))) from None
    _print_changes(folder, index)
    if args.sources:
        print_line(f"note: {ICON_RUN} was trained on icons only; for photos, train a run of your own")
    print_line(f'without the page: eve search {folder} "arrow left" --html found.html')
    run_app(AppArgs(index=folder, port=args.port, browser=args.browser))


def run_index(args: IndexArgs) -> None:
    """Make or update an index of images to search in: eve index FOLDER|TABLE|TAR … --run RUN --out INDEX."""
    if not args.sources and args.reading() != IndexArgs().reading():
        raise UserError("--format, --image-root and the columns say how to read sources; name some")
    if args.run is None and not expand_user(args.out).exists():
        raise UserError(f"{args.out}: no such index; to make one, name the run that computes it: --run RUN")
    eve = load_encoder(args.out, args.run, args.device)
    index = eve.index(args.sources, args.out, drop=args.drop, batch_size=args.batch_size, **args.reading())
    _print_changes(args.out, index)
    if not eve.task.is_comparable:
        print_line("note: images and texts of this run do not compare; search finds only images by an image")


def _print_changes(folder: Path, index: Any) -> None:
    """Print the content of an `Index` and the changes of its update."""
    changes, counts = index.changes, index.counts()
    for name, reason in changes.broken.items():
        print_line(printable(f"skipped: {name}: {reason}"))
    for name, reason in changes.bad_captions.items():
        print_line(printable(f"without captions: {name}: {reason}"))
    done = ", ".join(f"{number:,} {what}" for what in ("new", "changed", "gone") if (number := getattr(changes, what)))
    images, captions = (pluralize(counts[name], name[:-1]) for name in ("images", "captions"))
    same = (
        f"{pluralize(counts['images'] - counts['distinct'], 'exact duplicate')}, {pluralize(counts['near'], 'near-duplicate')}"
    )
    print_line(f"{folder}: {images} ({done or 'nothing new'}), {captions}; {same}")
    if changes.broken:
        print_line(f"note: {pluralize(len(changes.broken), 'image')} could not be used")


def run_search(args: SearchArgs) -> None:
    """Find images or captions by a text, an image or both: eve search INDEX "a red car" --image FILE --without "TEXT"."""
    check_writable(args.json, args.html)
    pairs = [text.partition("=") for text in args.where]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise UserError(f"--where: {wrong[0]!r} was given, expected COLUMN=VALUE")
    if twice := [name for name, times in Counter(name for name, *_ in pairs).items() if times > 1]:
        raise UserError(f"--where: {twice[0]!r} is named twice, and no row has two values of a column; name it once")
    from eve_vl.search.index import Index

    index = Index.open(args.index, load_encoder(args.index, args.run, args.device))
    options: dict[str, Any] = {"image": args.image, "without": args.without, "captions": args.caption, "top": args.top}
    where = {name: value for name, _, value in pairs}
    hits = index.search(args.query, **options, rerank=args.rerank, folder=args.folder, where=where)
    for hit in hits:
        others = "; ".join(hit.images[:1] if args.caption else hit.captions)
        print_line(
            printable(f"{hit.score if hit.match is None else hit.match:7.3f}  {hit.name}" + f"  {others}" * bool(others))
        )
    write_json(args.json, {"hits": [dataclasses.asdict(hit) for hit in hits]})
    if args.html is not None:
        from eve_vl.report.page import write_results

        title = " ".join(
            filter(None, (args.query, args.image and f"like {args.image}", args.without and f"without {args.without}"))
        )
        print_line(f"page: {write_results(args.html, title, index, hits)}")
