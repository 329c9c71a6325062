"""The verb index: an index of images, made or updated."""

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from eve_vl.cli.flags import DeviceArgs, SourceArgs
from eve_vl.cli.indexed_run import load_encoder
from eve_vl.utils.console import pluralize, print_line
from eve_vl.utils.errors import UserError

if TYPE_CHECKING:
    from eve_vl.search.index import Index


class IndexArgs(SourceArgs, DeviceArgs):
    """Flags of `eve index`."""

    sources: Positional[tuple[str, ...]] = ()
    """Folders of images, tables or shards; default: update all sources of the index."""
    run: Path | None = None
    """Run folder, or one of its checkpoints, that computes the features; default: the run that made
    the index."""
    out: Path = Path("index")
    """Folder of the index; an existing index is updated."""
    drop: tuple[str, ...] = ()
    """Sources to forget."""
    batch_size: int = 64
    """Images or captions per batch."""


def run_index(args: IndexArgs) -> None:
    """Make or update an index of images: eve index SOURCE … --run RUN --out INDEX."""
    if not args.sources and args.reading() != IndexArgs().reading():
        raise UserError("--format, --image-root and the columns say how to read sources; name some")
    eve = load_encoder(args.out, args.run, args.device)
    index = eve.index(
        args.sources, args.out, drop=args.drop, batch_size=args.batch_size, **args.reading()
    )
    print_changes(args.out, index)
    if not eve.task.is_comparable:
        print_line(
            "note: this run finds only images by an image; "
            "to search by text, fine-tune it with a retrieval recipe"
        )


def print_changes(folder: Path, index: "Index") -> None:
    """Print the content of an index and the changes of its update."""
    changes = index.changes
    for name, reason in changes.broken.items():
        print_line(f"skipped: {name}: {reason}")
    for name, reason in changes.bad_captions.items():
        print_line(f"without captions: {name}: {reason}")

    updates = []
    for kind in ("new", "changed", "gone"):
        number = getattr(changes, kind)
        if number:
            updates.append(f"{number:,} {kind}")
    counts = index.counts()
    images = pluralize(counts["images"], "image")
    captions = pluralize(counts["captions"], "caption")
    same = pluralize(counts["images"] - counts["distinct"], "exact duplicate")
    near = pluralize(counts["near"], "near-duplicate")
    summary = ", ".join(updates) or "nothing new"
    print_line(f"{folder}: {images} ({summary}), {captions}; {same}, {near}")
    if changes.broken:
        print_line(f"note: {pluralize(len(changes.broken), 'image')} could not be used")
