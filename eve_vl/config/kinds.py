"""Kinds of a section or of another class, by name or by section."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import TypeVar

from eve_vl.config.plugins import installed, load_installed, load_named
from eve_vl.config.sections import Section

Kind = TypeVar("Kind")


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


def load_part(section: type[Section], part: str) -> None:
    """Import a part of the kind of a section, and of those that it refines, if they have it.

    A kind is a package with its section; a part, such as `evaluation`, is a file of that package. A kind in a single file needs
    no import: its parts are known with the section.
    """
    for base in section.__mro__:
        package = sys.modules[base.__module__].__package__
        if not package or "name" not in vars(base):
            continue
        module = f"{package}.{part}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)


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
