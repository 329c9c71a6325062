"""The verb try: the package's icons and the user's images on the search page."""

import contextlib
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from eve_vl.builtin.icons import unpack_icons
from eve_vl.builtin.names import bundled_names
from eve_vl.cli.index import print_changes
from eve_vl.cli.serve import ServeArgs, check_server, run_serve
from eve_vl.config import DataConfig
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import cache_folder, expand_user
from eve_vl.utils.frozen import Frozen

if TYPE_CHECKING:
    from eve_vl.eve import Eve
    from eve_vl.run.loading import LoadedRun

ICON_RUN = "builtin:drawings"
MOST_MEASURED = 500  # images of the user that captions search at most
LEAST_MEASURED = 11


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


def run_try(args: TryArgs) -> None:
    """Search the package's icons and your own images on a page: eve try [FOLDER …]."""
    line = "indexing the icons of the package"
    if args.sources:
        line += " and your images"
    print_line(line)  # torch takes seconds
    check_server(ServeArgs(port=args.port))
    from eve_vl.eve import Eve

    eve = Eve.load(ICON_RUN)
    folder = _update_index(eve, expand_user(args.out), args.sources)
    if args.sources:
        _print_recalls(eve.run, args.sources)
        print_line(
            f"note: {ICON_RUN} was trained on drawings only; "
            "for photos, index them with CLIP (docs/inference.md)"
        )
    print_line(f'without the page: eve search {folder} "arrow left" --html found.html')

    runs = [Path(ICON_RUN)]
    for name in bundled_names():
        if name != ICON_RUN:
            runs.append(Path(name))
    run_serve(ServeArgs(runs=tuple(runs), index=folder, port=args.port, browser=args.browser))


def _update_index(eve: "Eve", out: Path, user_sources: Sequence[str]) -> Path:
    """Index the icons and the user's sources, drop those of earlier calls, return the folder."""
    from eve_vl.search.index import Index
    from eve_vl.search.index_files import DATABASE
    from eve_vl.search.run_fingerprint import RunFingerprint
    from eve_vl.search.schema import FORMAT
    from eve_vl.search.sources import source_name

    icons = unpack_icons(out / "icons")
    # a later version of the package may ship other weights
    folder = out / f"index-{RunFingerprint.of(eve.run).weights[:8]}-{FORMAT}"
    sources = [source_name(source) for source in (icons, *user_sources)]
    dropped = []
    if (folder / DATABASE).is_file():
        indexed_sources = Index.open(folder, eve).sources()
        dropped = [source for source in indexed_sources if source not in sources]
    index = eve.index(sources, folder, drop=dropped)
    print_changes(folder, index)
    return folder


def _print_recalls(run: "LoadedRun", specs: Sequence[str]) -> None:
    """Print how often captions of sources find their images, if there are some."""
    from eve_vl.data.opening import open_sources
    from eve_vl.evaluation.evaluate import evaluated

    sources = []
    for spec in specs:
        with contextlib.suppress(UserError):  # without captions
            sources += open_sources([spec], DataConfig(), run.config.input.image_size)
    if not sources:
        return
    measured = evaluated(run, MOST_MEASURED, sources, ablations=False, skip_invalid=True)
    numbers = measured.numbers
    num_images = numbers.get("num_images", 0)
    if num_images < LEAST_MEASURED:
        return
    first = numbers.get("ir1_merged", numbers["ir1"])
    first_ten = numbers.get("ir10_merged", numbers["ir10"])
    print_line(
        f"your captions: {first:.1%} (chance {numbers['ir1_chance']:.1%}) find their image first "
        f"among {num_images:,} of yours, {first_ten:.1%} in the first 10"
    )
