"""Kinds of a section or of another class: found by name, or by the section that they belong to."""

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
    """Return all kinds of a section or of another class that are imported, by name."""
    return {vars(kind)["name"]: kind for kind in subclasses(base) if "name" in vars(kind)}


def all_kinds(base: type[Kind], group: str) -> dict[str, type[Kind]]:
    """Return all kinds of a section or of another class, by name, after importing those of entry
    points `eve_vl.GROUP`."""
    for name in installed(group):
        load_installed(group, name)
    return kinds_of(base)


def find_kind(base: type[Kind], group: str, name: str) -> type[Kind] | None:
    """Return a kind of a section or of another class by its name, None if nothing defines it.

    Looks at what is imported, then into the files of EVE_CODE, then at entry points. Raises
    UserError for a missing file.
    """
    if name not in kinds_of(base):
        load_named()
    if name not in kinds_of(base):
        load_installed(group, name)
    return kinds_of(base).get(name)


def class_for(base: type[Kind], section: type[Section]) -> type[Kind] | None:
    """Return the subclass for a section, else for the nearest section that it refines; None without
    one."""
    by_section = {}
    for kind in subclasses(base):
        if "section" in vars(kind):
            by_section[vars(kind)["section"]] = kind
    for refined in section.__mro__:
        if refined in by_section:
            return by_section[refined]
    return None


def load_part(section: type[Section], part: str) -> None:
    """Import a part of the kind of a section, and of those that it refines, if they have it.

    A kind is a package with its section; a part, such as `evaluation`, is a file of that package. A
    kind in a single file needs no import: its parts are known with the section.
    """
    for refined in section.__mro__:
        package = sys.modules[refined.__module__].__package__
        if not package or "name" not in vars(refined):
            continue
        module = f"{package}.{part}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
