"""Lasting names of runs: builtin:NAME for a run of the package, hf:ORG/NAME for a published model.

Nothing is downloaded here. `interop.run_names` does so where the words of a user come in.
"""

import difflib
from pathlib import Path

from eve_vl.utils.errors import UserError, did_you_mean, nearest

PREFIX = "builtin:"
HUB_PREFIX = "hf:"
FOLDER = Path(__file__).resolve().parent


def bundled_names() -> list[str]:
    """Return the names of the package's runs."""
    return [f"{PREFIX}{path.parent.name}" for path in sorted(FOLDER.glob("*/best"))]


def is_name(run: str | Path) -> bool:
    """Return whether a run is given by a name, builtin:NAME or hf:ORG/NAME, and not by a path."""
    return str(run).startswith((PREFIX, HUB_PREFIX))


def is_hub_name(run: str | Path) -> bool:
    """Return whether a run is given as hf:ORG/NAME."""
    return str(run).startswith(HUB_PREFIX)


def folder_of(run: str | Path) -> Path:
    """Return the folder of a builtin:NAME, and any other path unchanged.

    Raises UserError for an unknown NAME.
    """
    if not str(run).startswith(PREFIX):
        return Path(run)
    if str(run) not in bundled_names():
        raise UserError(f"no run {nearest(str(run), bundled_names())}")
    return FOLDER / str(run).removeprefix(PREFIX)


def existing_folder(run: str | Path) -> Path:
    """Return the folder of a path or a builtin:NAME. Raises UserError if there is none."""
    path = folder_of(run)
    if path.exists():
        return path
    message = f"{path}: no such run folder"
    hint = _similar_folder(path) or did_you_mean(str(path), bundled_names(), 0.5)
    if hint:
        message += f"; {hint}"
    raise UserError(message)


def _similar_folder(path: Path) -> str:
    """Return `did you mean 'x'?` for a folder of a similar name next to a path, or nothing."""
    folders = {}
    for folder in path.parent.glob("[!.]*/"):
        folders[folder.name] = str(folder)
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f"did you mean {folders[near[0]]!r}?" if near else ""


def name_of(folder: Path) -> str:
    """Return the lasting name of a run or checkpoint: builtin:NAME, or its absolute path.

    The package's folder moves with every installation, so its path would not last.
    """
    folder = folder.absolute()
    if not folder.is_relative_to(FOLDER):
        return str(folder)
    return PREFIX + folder.relative_to(FOLDER).parts[0]


def refuse_to_write(path: Path) -> None:
    """Raise UserError if a file or folder to write belongs to the package or is a published
    model."""
    if is_hub_name(path):
        owner = "is a published model"
    elif is_name(path) or path.resolve().is_relative_to(FOLDER):
        owner = "is part of the package"
    else:
        return
    raise UserError(
        f"{path}: {owner}, and nothing is written there; choose another folder with --out"
    )
