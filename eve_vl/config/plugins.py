"""Code from outside the package: files that the user names, and entry points of installed packages.

A file is run only if the user names it, as FILE.py:RECIPE, with --code or in the environment variable EVE_CODE. What a run's
config.json says it was made with is shown, and never run.
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

from eve_vl.config.base import Kind, kinds_of
from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.safe_io import expand_user

VARIABLE = "EVE_CODE"
OURS = __name__.partition(".")[0]


def load_file(path: str | Path) -> ModuleType:
    """Import a file of the user's under its own name and from its own folder, as `python FILE.py` would: its neighbours can be
    imported too, and loader workers find it again however they are started.

    Raises UserError; errors of the code itself keep their traceback, for its author.
    """
    path = expand_user(path).resolve()
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{path}: {'has no name that can be imported' if path.is_file() else 'no such Python file'}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise UserError(f"{path}: there is another module called {path.stem} ({spec and spec.origin}); rename the file")
    return importlib.import_module(path.stem)


@cache
def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """Return the entry points `eve_vl.GROUP` of all installed packages, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=f"{OURS}.{group}")}


@cache
def load_installed(group: str, name: str) -> Any:
    """Return what an entry point stands for; None if there is none or, after a warning, if it is broken."""
    if (entry := installed(group).get(name)) is None:
        return None
    try:
        return entry.load()
    except (Exception, SystemExit) as error:  # whatever a package does when imported, the others still work
        warn(printable(f"warning: {package_of(entry)}: {entry.group} {name} cannot be loaded ({error!r})"))
        return None


def package_of(entry: metadata.EntryPoint) -> str:
    """Return name and version of the package that an entry point is from."""
    return f"package {entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def load_named() -> None:
    """Import the files that EVE_CODE names. Raises UserError."""
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load_file(path)


def find_kind(base: type[Kind], group: str, name: str) -> type[Kind] | None:
    """Return the kind of a section, or of another class, by its name: of this package, of files that were named, or of an
    installed package, whose entry point it is. Raises UserError if a file of EVE_CODE cannot be found."""
    if name not in kinds_of(base):
        load_named()
    if name not in kinds_of(base):
        load_installed(group, name)
    return kinds_of(base).get(name)


def origins(*codes: Any) -> dict[str, str]:
    """Return where classes and functions from outside come from: packages with their versions, files with their checksums."""
    found = {}
    for module in (sys.modules[code.__module__] for code in codes):
        name, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
        if packages := metadata.packages_distributions().get(name) if name != OURS and file else None:
            found[packages[0]] = metadata.version(packages[0])
        elif name != OURS and file:
            found[file] = f"sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]}"
    return found
