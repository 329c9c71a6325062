"""Runs and icons that the package ships.

A run is named builtin:NAME in each place that takes a run folder, and a published model hf:ORG/NAME.

    drawings/       a run folder with float16 weights; its README.md says how it was made and what it reaches
    scenes*/        three more, for masked signals, questions and statements
    lucide.zip      1,778 icons that drawings/ was not trained on, with their names
    lucide.LICENSE

examples/drawings/ship.py and examples/scenes/ship.py write them. Nothing else writes into this folder.
"""

import importlib
import zipfile
from pathlib import Path

from eve_vl.utils.errors import UserError, did_you_mean, nearest
from eve_vl.utils.file_io import reporting_write_errors

PREFIX, HUB = "builtin:", "hf:"
FOLDER = Path(__file__).resolve().parent
ICONS = FOLDER / "lucide.zip"
PAIRS = "pairs.jsonl"


def names() -> list[str]:
    """Return the names of the package's runs."""
    return [f"{PREFIX}{path.parent.name}" for path in sorted(FOLDER.glob("*/best"))]


def is_named(run: str | Path) -> bool:
    """Return whether a name is of the form builtin:NAME or hf:ORG/NAME."""
    return str(run).startswith((PREFIX, HUB))


def located(run: str | Path) -> Path:
    """Return the folder of a builtin:NAME or hf:ORG/NAME, any other path unchanged.

    Raises UserError for an unknown NAME.
    """
    if not is_named(run):
        return Path(run)
    if str(run).startswith(HUB):
        return importlib.import_module("eve_vl.interop.clip").from_hub(
            str(run)
        )  # only now: it needs nearly everything
    if str(run) not in names():
        raise UserError(f"no run {nearest(str(run), names())}")
    return FOLDER / str(run).removeprefix(PREFIX)


def existing(run: str | Path) -> Path:
    """Return the folder of a run, also one of this package.

    Raises UserError if there is none.
    """
    if not (path := located(run)).exists():
        hint = did_you_mean(str(path), names(), 0.5)
        raise UserError(f"{path}: no such run folder" + f"; {hint}" * bool(hint))
    return path


def name_of(folder: Path) -> str:
    """Return the lasting name of a run or checkpoint.

    It is the absolute path, or builtin:NAME for the package's own.

    The package's folder moves with every installation.
    """
    folder = folder.absolute()
    if not folder.is_relative_to(FOLDER):
        return str(folder)
    return PREFIX + folder.relative_to(FOLDER).parts[0]


def refuse(path: Path) -> None:
    """Raise UserError if a file or folder to write belongs to the package."""
    if is_named(path) or path.resolve().is_relative_to(FOLDER):
        what = "is a published model" if str(path).startswith(HUB) else "is part of the package"
        raise UserError(
            f"{path}: {what}, and nothing is written there; choose another folder with --out"
        )


def unpack_icons(folder: Path) -> Path:
    """Unpack the icons into a folder and return their table.

    Complete files stay. Raises UserError.
    """
    with zipfile.ZipFile(ICONS) as icons, reporting_write_errors(folder):
        for one in icons.infolist():  # writes files again that a crash has truncated
            path = folder / one.filename
            if not path.is_file() or path.stat().st_size != one.file_size:
                icons.extract(one, folder)
    return folder / PAIRS
