"""Code that registers more kinds, recipes, readers and converters.

Code comes from files that the user names, from entry points of installed packages, and from the
entry_points.txt in the folders of EVE's tasks and of related systems. A file runs only if the user
names it: as FILE.py:RECIPE, with --code or in the environment variable EVE_CODE. Code that a run's
config.json mentions is shown and never run.
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
PACKAGE_NAME = __name__.partition(".")[0]
PACKAGE_FOLDER = Path(__file__).parents[1]


def load_file(path: str | Path) -> ModuleType:
    """Import a user's file under its own name, as `python FILE.py` does.

    The file can import files next to it, and loader workers find it by any start method. Raises
    UserError; errors of the code itself keep their traceback for its author.
    """
    path = expand_user(path).resolve()
    if not path.is_file():
        raise UserError(f"{path}: no such Python file")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{path}: has no name that can be imported")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(path.stem)
    origin = spec.origin if spec else None
    if origin is None or Path(origin).resolve() != path:
        raise UserError(
            f"{path}: there is another module called {path.stem} ({origin}); rename the file"
        )
    return importlib.import_module(path.stem)


def load_named() -> None:
    """Import the files that EVE_CODE names. Raises UserError."""
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        if path:
            load_file(path)


@cache
def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points `eve_vl.GROUP` by name: those of installed packages, then those of
    this package's folders."""
    full_group = f"{PACKAGE_NAME}.{group}"
    entries = {entry.name: entry for entry in metadata.entry_points(group=full_group)}
    for file in sorted(PACKAGE_FOLDER.rglob("entry_points.txt")):
        folder = metadata.Distribution.at(file.parent)
        for entry in folder.entry_points.select(group=full_group):
            entries[entry.name] = entry
    return entries


@cache
def load_installed(group: str, name: str) -> Any:
    """Return the object of an entry point; None without one or, after a warning, if it cannot be
    loaded."""
    entry = installed(group).get(name)
    if entry is None:
        return None
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # a broken package must not break the others
        warn(f"warning: {package_of(entry)}: {entry.group} {name} cannot be loaded ({error!r})")
        return None


def package_of(entry: metadata.EntryPoint) -> str:
    """Return the name and version of an entry point's package."""
    if entry.dist is None:
        return entry.value
    return f"package {entry.dist.name} {entry.dist.version}"


def origins(*codes: Any) -> dict[str, str]:
    """Return where external classes and functions come from: packages with versions, files with
    checksums."""
    versions: dict[str, str] = {}
    for code in codes:
        module = sys.modules[code.__module__]
        top_level_name = module.__name__.partition(".")[0]
        file = getattr(module, "__file__", None)
        if top_level_name == PACKAGE_NAME or not file:
            continue
        packages = metadata.packages_distributions().get(top_level_name)
        if packages:
            versions[packages[0]] = metadata.version(packages[0])
        else:
            versions[file] = f"sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"
    return versions
