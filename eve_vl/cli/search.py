"""Verbs that find images and serve runs: try, index, search, serve."""

import contextlib
import dataclasses
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from eve_vl.builtin.icons import unpack_icons
from eve_vl.builtin.names import bundled_names, folder_of, is_hub_name
from eve_vl.cli.common import (
    DeviceArgs,
    JsonArgs,
    SourceArgs,
    check_writable,
    print_line,
    write_json,
)
from eve_vl.config import DataConfig
from eve_vl.serve.limits import Limits
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import cache_folder, expand_user
from eve_vl.utils.frozen import Frozen

ICON_RUN = "builtin:drawings"  # the run of `eve try`
THUMBNAIL_SIDE = 192  # pixels
MOST_MEASURED = 500  # own images that own captions search at most


class TryArgs(Frozen):
    """Flags of `eve try`."""

    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards to search as well."""
    out: Path = field(default_factory=lambda: cache_folder("try"))
    """Folder for the icons and their index. The index holds the sources of the last call only."""
    port: int | None = None
    """Port of the page, 0: any free one; default: 8000, or the next free port."""
    browser: bool = True
    """Open the page in the browser."""


class IndexArgs(SourceArgs, DeviceArgs):
    """Flags of `eve index`."""

    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards; default: update all sources of the index."""
    run: Path | None = None
    """Run folder, or one of its checkpoints, that computes the features; default: the run that made the index."""
    out: Path = Path("index")
    """Folder of the index; an existing index is updated."""
    drop: tuple[str, ...] = ()
    """Sources to forget."""
    batch_size: int = 64
    """Images or captions per batch."""


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
    """Number of candidates that the matching head re-ranks, 0 for none; default: as validation chose for the run."""
    folder: Path | None = None
    """Only images in this folder."""
    where: tuple[str, ...] = ()
    """Only images of table rows with these values, COLUMN=VALUE each; one row must have all of them."""
    run: Path | None = None
    """The run, if it was moved since it made the index."""
    html: Path | None = None
    """Also write a page of the results to this file."""


class ServeArgs(DeviceArgs, Limits):
    """Flags of `eve serve`."""

    runs: Positional[tuple[Path, ...]] = ()
    """Run folders or checkpoints; default: the run that built the index."""
    index: Path | None = None
    """Index to search in."""
    host: str = "127.0.0.1"
    """Address to listen on; an address that other machines can reach needs a token."""
    port: int | None = None
    """Port to listen on, 0: any free one; default: 8000, or the next free port."""
    token: str | None = None
    """Clients send it as `Authorization: Bearer TOKEN`; EVE_TOKEN in the environment is not visible in `ps`."""
    page: bool = True
    """Serve a web page next to the JSON."""
    browser: bool = True
    """Open the page in the browser, if there is a screen."""


def run_try(args: TryArgs) -> None:
    """Search the package's icons and your own images on a page: eve try [FOLDER …]."""
    print_line(
        "indexing the icons of the package" + " and your images" * bool(args.sources)
    )  # torch takes seconds
    check_server(ServeArgs(port=args.port))
    from eve_vl.eve import Eve
    from eve_vl.search.index import Index
    from eve_vl.search.index_files import DATABASE
    from eve_vl.search.run_fingerprint import run_fingerprint
    from eve_vl.search.schema import FORMAT
    from eve_vl.search.sources import source_name

    out, eve = expand_user(args.out), Eve.load(ICON_RUN)
    icons = unpack_icons(out / "icons")
    # a later version of the package may ship other weights
    folder = out / f"index-{run_fingerprint(eve.run)['weights'][:8]}-{FORMAT}"
    sources = [source_name(source) for source in (icons, *args.sources)]
    known = Index.open(folder, eve).sources() if (folder / DATABASE).is_file() else ()
    index = eve.index(sources, folder, drop=[source for source in known if source not in sources])
    _print_changes(folder, index)
    if args.sources:
        _print_recalls(eve.run, args.sources)
        print_line(
            f"note: {ICON_RUN} was trained on drawings only; for photos, index them with CLIP (docs/inference.md)"
        )
    print_line(f'without the page: eve search {folder} "arrow left" --html found.html')
    others = [name for name in bundled_names() if name != ICON_RUN]
    run_serve(
        ServeArgs(
            runs=tuple(map(Path, (ICON_RUN, *others))),
            index=folder,
            port=args.port,
            browser=args.browser,
        )
    )


def _print_recalls(run: Any, specs: Sequence[str]) -> None:
    """Print how often captions of sources find their images, if there are some."""
    from eve_vl.data.opening import open_sources
    from eve_vl.evaluation.evaluate import evaluated

    sources: list[Any] = []
    for spec in specs:
        with contextlib.suppress(UserError):  # without captions
            sources += open_sources([spec], DataConfig(), run.config.input.image_size)
    found = (
        evaluated(run, MOST_MEASURED, sources, ablations=False, skip_invalid=True).numbers
        if sources
        else {}
    )
    if found.get("num_images", 0) > 10:
        first, ten = (found.get(f"{name}_merged", found[name]) for name in ("ir1", "ir10"))
        kept = f"{first:.1%} (chance {found['ir1_chance']:.1%}) find their image first among {found['num_images']:,} of yours"
        print_line(f"your captions: {kept}, {ten:.1%} in the first 10")


def run_index(args: IndexArgs) -> None:
    """Make or update an index of images: eve index SOURCE … --run RUN --out INDEX."""
    if not args.sources and args.reading() != IndexArgs().reading():
        raise UserError("--format, --image-root and the columns say how to read sources; name some")
    eve = load_encoder(args.out, args.run, args.device)
    index = eve.index(
        args.sources, args.out, drop=args.drop, batch_size=args.batch_size, **args.reading()
    )
    _print_changes(args.out, index)
    if not eve.task.is_comparable:
        print_line(
            "note: this run finds only images by an image; to search by text, fine-tune it with a retrieval recipe"
        )


def _print_changes(folder: Path, index: Any) -> None:
    """Print the content of an `Index` and the changes of its update."""
    changes, counts = index.changes, index.counts()
    for problem, names in {
        "skipped": changes.broken,
        "without captions": changes.bad_captions,
    }.items():
        for name, reason in names.items():
            print_line(f"{problem}: {name}: {reason}")
    done = ", ".join(
        f"{number:,} {what}"
        for what in ("new", "changed", "gone")
        if (number := getattr(changes, what))
    )
    images, captions = (pluralize(counts[name], name[:-1]) for name in ("images", "captions"))
    same = pluralize(counts["images"] - counts["distinct"], "exact duplicate")
    near = pluralize(counts["near"], "near-duplicate")
    print_line(f"{folder}: {images} ({done or 'nothing new'}), {captions}; {same}, {near}")
    if changes.broken:
        print_line(f"note: {pluralize(len(changes.broken), 'image')} could not be used")


def run_search(args: SearchArgs) -> None:
    """Find images or captions by text or image: eve search INDEX "TEXT" --image FILE."""
    check_writable(args.html)
    where = {
        name: value
        for name, equals, value in (text.partition("=") for text in args.where)
        if name and equals
    }
    if len(where) < len(args.where):
        raise UserError(
            f"--where: {' '.join(args.where)!r} was given, expected COLUMN=VALUE, each column once"
        )
    encoder = load_encoder(
        args.index, args.run, args.device
    )  # first: it refuses a missing index at once
    from eve_vl.search.index import Index

    index = Index.open(args.index, encoder)
    names = ("image", "by", "min_score", "top", "rerank", "folder")
    hits = index.search(
        args.query,
        captions=args.caption,
        where=where,
        **{name: getattr(args, name) for name in names},
    )
    print_line(*[f"note: {hits.note}"] * bool(hits.note))
    if hits.nothing_fits:
        print_line(
            f"nothing here fits{args.query and f' {args.query!r}'}" + "; the nearest:" * bool(hits)
        )
    for hit in hits:
        score, others = (
            hit.score if hit.match is None else hit.match,
            hit.images[:1] if args.caption else hit.captions,
        )
        shown = "      –" if score is None else f"{score:7.3f}"
        print_line(f"{shown}  {hit.name}  {'; '.join(others)}  ({hit.why})")
    write_json(
        args.json,
        {
            "nothing_fits": hits.nothing_fits,
            "note": hits.note,
            "hits": [dataclasses.asdict(hit) for hit in hits],
        },
    )
    if args.html is not None:
        title = [args.query, args.image and f"like {args.image}"]
        print_line(f"page: {_write_page(args.html, ' '.join(filter(None, title)), index, hits)}")


def _write_page(path: Path, title: str, index: Any, hits: Sequence[Any]) -> Path:
    """Write the page of a search's hits in an `Index`; return its path.

    Raises UserError.
    """
    from eve_vl.pages.drawing import Section, document, draw
    from eve_vl.report.page import write_page

    def thumbnail(hit: Any) -> Any:
        with contextlib.suppress(UserError):  # its file is gone
            return index.image(hit.id).whole(THUMBNAIL_SIDE)

    section = Section(
        "found",
        "Hits",
        draw("search_sections.html", "found", shown=[(hit, thumbnail(hit)) for hit in hits]),
    )
    return write_page(
        path,
        document(
            "search.html", [section], title=title, facts=index.database.facts, counts=index.counts()
        ),
    )


def run_serve(args: ServeArgs) -> None:
    """Search images and try runs on a page, or over HTTP: eve serve RUN … --index INDEX."""
    token = check_server(args)
    from eve_vl.serve.server import serve

    runs, index = load_served(args.runs, args.index, args.device)
    serve(
        runs,
        index,
        args,
        host=args.host,
        port=args.port,
        token=token,
        with_page=args.page,
        opened=open_browser if args.page and args.browser else lambda _: None,
    )


def check_server(args: ServeArgs) -> str | None:
    """Return the token.

    Raises UserError, before long work, if a library, the index, the token or the port is missing.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'eve-vl[serve]'") from None
    if args.index is not None:
        from eve_vl.search.database import Database

        Database.open(expand_user(args.index), verified=False)
    from eve_vl.serve.admission import is_loopback
    from eve_vl.serve.server import listening

    token = os.environ.get("EVE_TOKEN") if args.token is None else args.token
    if token == "":
        name = "EVE_TOKEN" if args.token is None else "--token"
        raise UserError(
            f"{name}: is empty, which would let everybody in; give a token, or leave it out on this machine only"
        )
    if token is None and not is_loopback(args.host):
        raise UserError(
            f"--host {args.host}: other machines can reach it; give a --token, or EVE_TOKEN in the environment"
        )
    if token is not None and not (
        token.isascii() and token.isprintable() and token == token.strip()
    ):
        raise UserError(
            "--token: a header cannot carry it; use ASCII letters without spaces at the ends"
        )
    listening(args.host, args.port).close()
    return token


def open_browser(address: str) -> None:
    """Open a page in the browser if there is a screen, without waiting for it."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def load_served(paths: tuple[Path, ...], folder: Path | None, device: str) -> tuple[list[Any], Any]:
    """Return the runs, and the index of one of them if one is named. Raises UserError."""
    from eve_vl.eve import Eve
    from eve_vl.search.database import Database
    from eve_vl.search.index import Index
    from eve_vl.search.index_files import DATABASE

    for path in paths:
        if (expand_user(path) / DATABASE).is_file():
            raise UserError(f"{path}: is an index, not a run folder; name it with --index")
    if folder is None:
        if not paths:
            raise UserError("name run folders to serve, or an --index")
        return [Eve.load(path, device) for path in paths], None
    store = Database.open(expand_user(folder))  # before runs are loaded, which is slow
    runs = [Eve.load(path, device) for path in paths] or [load_encoder(folder, None, device)]
    own = [eve for eve in runs if store.is_of(eve.run)]
    store.require_run((own or runs)[0].run)
    return runs, Index(store, own[0])


def load_encoder(folder: Path, run: Path | None, device: str) -> Any:
    """Return an `Eve` of a run, by default of the index's own. Raises UserError."""
    from eve_vl.search.database import Database

    if run is None:
        folder = expand_user(folder)
        run = Path(
            Database.open(folder, verified=False).facts["run"]
        )  # who searches opens it again
        if not is_hub_name(run) and not folder_of(run).exists():
            fix = "name its new folder: --run RUN, or eve serve RUN --index INDEX"
            raise UserError(f"{run}: no such run, which made {folder}; {fix}")
    from eve_vl.eve import Eve

    return Eve.load(run, device)
