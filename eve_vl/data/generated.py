"""Data that code generates, such as `scenes:train`: generators by name, the base of their sources.

A generator is an entry point of the group `eve_vl.generators`. Rows that a system adds to a
generator are entry points of the group `eve_vl.generated_rows`, called GENERATOR.KIND.
"""

from collections.abc import Callable, Mapping
from typing import Any

from eve_vl.config.plugins import installed, load_installed
from eve_vl.utils.frozen import Frozen


class GeneratedSource:
    """Base class of generated sources; two with equal settings are equal."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The closed list of answers, for questions."""
        return ()

    def true_captions(self, index: int) -> list[str] | None:
        """Return every caption that is true of a row's image, its own included.

        None: only its own are known.
        """
        return None

    def distractors(self, index: int) -> list[str]:
        """Return hard false captions of a row's image, if there are any."""
        return []


class Generator(Frozen):
    """Built-in data that code makes."""

    rows: Mapping[str, type[Any]]
    """The sources by kind of row."""
    layouts: Mapping[str, Callable[[Any], None]]
    """How `eve data write` writes them to a folder, by layout."""
    class_prompts: Callable[[], Mapping[str, tuple[str, ...]]] | None = None
    """Prompts of each class, for `eve evaluate zero_shot`; None: there are none."""
    disclaimer: str = ""
    """What every page about a run on this data says; "": nothing."""
    marker: str = ""
    """File that `eve data write` adds, by which pages recognise data with a disclaimer."""


def is_generated(source: object) -> bool:
    """Return whether the rows of a source, or of a subset of one, are generated."""
    return isinstance(getattr(source, "dataset", source), GeneratedSource)


def find_generator(name: str) -> Generator:
    """Return the generator of this name, one of `generator_names()`."""
    return load_installed("generators", name)


def generated_rows(name: str) -> dict[str, type[Any]]:
    """Return the sources of a generator by kind of row, with those that systems add."""
    rows = dict(find_generator(name).rows)
    for entry in installed("generated_rows"):
        generator, _, kind = entry.partition(".")
        if generator == name:
            rows[kind] = load_installed("generated_rows", entry)
    return rows
