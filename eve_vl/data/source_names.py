"""Names of sources: paths, splits and patterns, and missing files.

Imports no torch, which takes seconds.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from eve_vl.config import HELD_OUT, HELD_OUT_TEST
from eve_vl.config.generated_sources import generated
from eve_vl.data.remote_path import RemotePath
from eve_vl.utils.console import print_once
from eve_vl.utils.errors import UserError, did_you_mean
from eve_vl.utils.file_io import expand_user

AnyPath = str | os.PathLike[str]


def parse_spec(spec: AnyPath) -> tuple[Path, str | None]:
    """Return the absolute path and the split of a source's name.

    It is `PATH`, `KARPATHY.json#SPLIT` or `FOLDER#SPLIT`. An existing path is never split.
    """
    text = os.fspath(spec).removeprefix("file://")
    if re.match(r"[a-z][a-z0-9+]*://", text):
        return RemotePath(text), None

    whole_path = absolute(Path(text))
    name, _, split = text.rpartition("#")
    # opening reports long names and a lack of access, so these must not raise: no pathlib
    if name and "/" not in split and not os.path.exists(whole_path):  # noqa: PTH110
        path = absolute(Path(name))
        if name.endswith(".json") or (split and os.path.isdir(path)):  # noqa: PTH112
            return path, split
    return whole_path, None


def absolute_spec(spec: str) -> str:
    """Return a source's name with absolute paths.

    `#split` and brace patterns stay.
    """
    path, split = parse_spec(spec)
    return str(path) if split is None else f"{path}#{split}"


def absolute(path: Path) -> Path:
    """Return a path in a form that is comparable with others.

    Links are only followed to remove `..`.
    """
    whole_path = expand_user(path).absolute()
    if ".." not in whole_path.parts:
        return whole_path
    if whole_path.name == "..":
        return whole_path.resolve()
    return whole_path.parent.resolve() / whole_path.name


def expand(path: Path) -> list[Path]:
    """Return the existing paths of a path or pattern such as `name-{0000..0099}.tar`."""
    pattern = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(path))
    if path.exists() and not (pattern and isinstance(path, RemotePath)):
        return [path]
    if pattern is None:
        raise UserError(explain_missing(path))

    before, first, last, after = pattern.groups()
    paths = []
    for number in range(int(first), int(last) + 1):
        paths.append(type(path)(f"{before}{number:0{len(first)}}{after}"))
    if not paths:
        raise UserError(f"{path}: the range from {first} to {last} is empty")
    missing = [file for file in paths if not file.exists()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its {len(paths)} files are missing; "
            f"{explain_missing(missing[0])}"
        )
    return paths


def explain_missing(path: Path) -> str:
    """Return the message of a missing path: its existing part, the nearest name."""
    folder = next(parent for parent in path.parents if parent.exists())
    child = folder / path.relative_to(folder).parts[0]
    message = f"no such file or folder: {path}"
    if child != path:
        message += f" ({folder} exists, {child.name} in it does not)"

    if path.name.startswith("builtin:"):
        hint = f"{path.name} is a run, not data"
    else:
        names = []
        if folder.is_dir() and os.access(folder, os.R_OK):
            names = [entry.name for entry in folder.iterdir()]
        hint = did_you_mean(child.name, names)
    if hint:
        message += f" ({hint})"
    return message


def refuse_missing(specs: Iterable[str]) -> None:
    """Raise UserError for a source whose files do not exist, without opening any.

    Remote ones are printed: the imports and requests that come next take seconds.
    """
    for spec in specs:
        if spec not in (HELD_OUT, HELD_OUT_TEST) and not generated(spec):
            path, _ = parse_spec(spec)
            expand(path)
            if isinstance(path, RemotePath):
                print_once(f"opening {path}")
