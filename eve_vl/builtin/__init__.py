"""What the package brings: runs, named builtin:NAME wherever a run may be named, and a set of icons to search in.

    icons/          a run folder as any other, in float16; its README.md tells what it can do and how it was made
    lucide.zip      1,778 icons that it has never seen, with their names
    lucide.LICENSE

examples/icons/ship.py writes them. They are read only: nothing is written beside them.
"""

import zipfile
from pathlib import Path

from eve_vl.utils.atomic_io import reporting_write_errors
from eve_vl.utils.errors import UserError, nearest

PREFIX = "builtin:"
FOLDER = Path(__file__).resolve().parent
ICONS = FOLDER / "lucide.zip"
PAIRS = "pairs.jsonl"


def names() -> list[str]:
    """Return what the runs of the package are called."""
    return [f"{PREFIX}{path.parent.name}" for path in sorted(FOLDER.glob("*/best"))]


def is_named(run: str | Path) -> bool:
    """Whether a run is named as one that the package brings."""
    return str(run).startswith(PREFIX)


def located(run: str | Path) -> Path:
    """Return the folder of a run of the package; any other path as it is. Raises UserError for one that it does not bring."""
    if not is_named(run):
        return Path(run)
    if str(run) not in names():
        raise UserError(f"no run {nearest(str(run), names())}")
    return FOLDER / str(run).removeprefix(PREFIX)


def name_of(folder: Path) -> str:
    """Return what names a run, or a checkpoint of one, on this machine for as long as it is there: where its folder is, unless
    it is the package's own, which moves with every installation."""
    folder = folder.absolute()
    if not folder.is_relative_to(FOLDER):
        return str(folder)
    return PREFIX + folder.relative_to(FOLDER).parts[0]


def refuse(path: Path) -> None:
    """Raise UserError if a file or folder to write is the package's own."""
    if is_named(path) or path.resolve().is_relative_to(FOLDER):
        raise UserError(f"{path}: is part of the package, into which nothing is written; name another place with --out")


def unpack_icons(folder: Path) -> Path:
    """Put the icons of the package into a folder unless they are there, and return the table of them. Raises UserError."""
    with zipfile.ZipFile(ICONS) as icons, reporting_write_errors(folder):
        for one in icons.infolist():  # what a crash has cut is written again
            path = folder / one.filename
            if not path.is_file() or path.stat().st_size != one.file_size:
                icons.extract(one, folder)
    return folder / PAIRS
