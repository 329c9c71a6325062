"""Kinds of sections, checks of their values, and registered code with more kinds.

Code is registered as files that the user names, entry points of installed packages and of related systems. A file runs only if
the user names it, as FILE.py:RECIPE, with --code or in the environment variable EVE_CODE. Code that a run's config.json
mentions is shown and never run. A related system registers itself by an entry_points.txt in its folder.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user

VARIABLE = "EVE_CODE"


OURS = __name__.partition(".")[0]


PACKAGE = Path(__file__).parents[1]


def load_file(path: str | Path) -> ModuleType:
    """Import a user's file under its own name, as `python FILE.py` does.

    The module is found in the file's own folder.

    It can import files next to it, and loader workers find it by any start method. Raises UserError; errors of the code itself
    keep their traceback for its author.
    """
    path = expand_user(path).resolve()
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(
            f"{path}: {'has no name that can be imported' if path.is_file() else 'no such Python file'}"
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise UserError(
            f"{path}: there is another module called {path.stem} ({spec and spec.origin}); rename the file"
        )
    return importlib.import_module(path.stem)


@cache
def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points `eve_vl.GROUP` by name.

    They come from all installed packages and from the related systems.
    """
    systems = [
        metadata.Distribution.at(file.parent) for file in sorted(PACKAGE.rglob("entry_points.txt"))
    ]
    ours = [
        entry for system in systems for entry in system.entry_points.select(group=f"{OURS}.{group}")
    ]
    return {entry.name: entry for entry in (*metadata.entry_points(group=f"{OURS}.{group}"), *ours)}


@cache
def load_installed(group: str, name: str) -> Any:
    """Return the object of an entry point.

    None without one or, after a warning, if it cannot be loaded.
    """
    if (entry := installed(group).get(name)) is None:
        return None
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a broken package must not break the others
        warn(f"warning: {package_of(entry)}: {entry.group} {name} cannot be loaded ({error!r})")
        return None


def package_of(entry: metadata.EntryPoint) -> str:
    """Return the name and version of an entry point's package."""
    return f"package {entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def load_named() -> None:
    """Import the files that EVE_CODE names. Raises UserError."""
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load_file(path)


def origins(*codes: Any) -> dict[str, str]:
    """Return the origins of external classes and functions.

    Packages come with versions, files with checksums.
    """
    found = {}
    for module in (sys.modules[code.__module__] for code in codes):
        name, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
        if (
            packages := metadata.packages_distributions().get(name)
            if name != OURS and file
            else None
        ):
            found[packages[0]] = metadata.version(packages[0])
        elif name != OURS and file:
            found[file] = f"sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"
    return found
