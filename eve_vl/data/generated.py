"""Generated sources: rows that code makes."""

import importlib
from types import ModuleType

from eve_vl.config.training import GENERATORS

# Generators: sources of rows that code makes. Their module is found by name in config.training.GENERATORS and has
# `ROWS`, the sources by kind of row; it may have `class_prompts`, which returns built-in prompts (evaluation/zero_shot.py).


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


def is_generated(source: object) -> bool:
    """Return whether the rows of a source, or of a subset of one, are generated."""
    return isinstance(getattr(source, "dataset", source), GeneratedSource)


def find_generator(name: str) -> ModuleType:
    """Import the module of a generator."""
    return importlib.import_module(GENERATORS[name])
