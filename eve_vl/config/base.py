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
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from eve_vl.utils.console import warn
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user
from eve_vl.utils.frozen import Frozen

# Types of fields with the interval of their values. Sizes end somewhere: larger ones in a file are damage, and building them
# would take for ever.
Count = Annotated[int, "[1, inf)"]
CountOrZero = Annotated[int, "[0, inf)"]
Width = Annotated[int, "[1, 65536]"]
Depth = Annotated[int, "[1, 1000]"]
Positive = Annotated[float, "(0, inf)"]
Weight = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1)"]
InnerShare = Annotated[float, "(0, 1)"]


class Values(Frozen):
    """A section of a config."""

    unused: ClassVar[Sequence[tuple[str, object, str]]] = ()
    """Field such as task.mim_weight, value, names of the fields without effect then; a subclass lists its own rules only."""

    def validate(self) -> list[str]:
        """Return the problems of these values, one sentence each.

        Problems of several values together are reported if each lies in its range.
        """
        found = []
        for name, hint in _hints(type(self)).items():
            value, allowed = getattr(self, name, None), typing.get_args(hint)
            if typing.get_origin(hint) is Literal and value not in allowed:
                found.append(f"{name} {value!r} is not one of {', '.join(allowed)}")
            elif (
                typing.get_origin(hint) is Annotated
                and isinstance(allowed[1], str)
                and not _is_in(allowed[1], value)
            ):
                found.append(f"{name} {value} is not in {allowed[1]}")
        return found or [sentence for sentence, holds in self.conflicts().items() if holds]

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.

        Each value lies in its range when this is asked.
        """
        return {}

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        found: dict[str, str] = {}
        for field, value, names in (
            rule for kind in reversed(type(self).__mro__) for rule in vars(kind).get("unused", ())
        ):
            if getattr(self, field.partition(".")[2]) == value:
                found = dict.fromkeys(names.split(), f"as {field} is {value}") | found
        return found


class Section(Values):
    """A section of one of several kinds.

    A subclass with a `name` is a kind, known once it is defined.
    """

    name: ClassVar[str]
    """Name of this kind in config.json."""


Kind = TypeVar("Kind")


@cache  # each `replace` of a config validates it
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a section's fields, with their intervals."""
    return typing.get_type_hints(kind, include_extras=True)


def _is_in(interval: str, value: Any) -> bool:
    """Return whether a value lies in an interval such as `[0, 1)`.

    Of a tuple, each item must. NaN lies in none.
    """
    if isinstance(value, tuple):
        return all(_is_in(interval, item) for item in value)
    low, high = map(float, interval[1:-1].split(","))
    return (low < value or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )


def subclasses(base: type[Kind]) -> Iterator[type[Kind]]:
    """Yield all subclasses and theirs, in the order of definition."""
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


def kinds_of(base: type[Kind]) -> dict[str, type[Kind]]:
    """Return all kinds of a section or of another class, by name."""
    return {vars(kind)["name"]: kind for kind in subclasses(base) if "name" in vars(kind)}


def class_for(base: type[Kind], section: type[Section]) -> type[Kind] | None:
    """Return the subclass of a section, or of the nearest one that it refines.

    None without one.
    """
    own = {vars(kind)["section"]: kind for kind in subclasses(base) if "section" in vars(kind)}
    return next((own[above] for above in section.__mro__ if above in own), None)


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

    They come from all installed packages, from the rooms of this one and from the related systems.
    """
    files = [*PACKAGE.glob("*/entry_points.txt"), *PACKAGE.glob("systems/*/entry_points.txt")]
    folders = [metadata.Distribution.at(file.parent) for file in sorted(files)]
    ours = [
        entry for folder in folders for entry in folder.entry_points.select(group=f"{OURS}.{group}")
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


def define(room: str, name: str) -> None:
    """Import the module that defines a room's part for a kind, if there is one.

    It is ROOM.NAME, or for a kind of a related system or a package the module with the room's name next to the kind's section,
    else its module `tasks`.
    """
    modules = [
        sys.modules[kind.__module__]
        for kind in subclasses(Section)
        if vars(kind).get("name") == name
    ]
    files = (room.rpartition(".")[2], "tasks")
    own = [
        f"{module.__package__}.{file}" for module in modules if module.__package__ for file in files
    ]
    for module in (f"{room}.{name}", *own):
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
            return


def all_kinds(base: type[Kind], group: str) -> dict[str, type[Kind]]:
    """Return all kinds of a section or another class by name.

    Those of entry points are included.
    """
    for name in installed(group):
        load_installed(group, name)
    return kinds_of(base)


def find_kind(base: type[Kind], group: str, name: str) -> type[Kind] | None:
    """Return a kind of a section or another class by its name.

    None if nothing defines it.

    Looks in this package, then in the files of EVE_CODE, then in entry points. Raises UserError for a missing file.
    """
    if name not in kinds_of(base):
        load_named()
    if name not in kinds_of(base):
        load_installed(group, name)
    return kinds_of(base).get(name)


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
