"""What pages about runs on generated data must say about it."""

from collections.abc import Iterable
from contextlib import suppress

from eve_vl.config import HELD_OUT
from eve_vl.config.generated_sources import generated, generator_names
from eve_vl.data.field_values import is_file
from eve_vl.data.generated import Generator, find_generator
from eve_vl.data.source_names import parse_spec
from eve_vl.utils.errors import UserError

FOLDERS_BELOW_MARKER = 3
"""Most folders between a marker and a file that a source may name: train/radiology/captions.txt."""


def source_note(sources: Iterable[str]) -> str:
    """Return the disclaimer of pages about some sources, "" if they need none."""
    sources = tuple(sources)
    for name in generator_names():
        generator = find_generator(name)
        if generator.disclaimer and any(_is_from(name, generator, source) for source in sources):
            return generator.disclaimer
    return ""


def _is_from(name: str, generator: Generator, source: str) -> bool:
    """Return whether a source is of a generator: by its name, or by the marker in its folder."""
    split = generated(source)
    if split is not None:
        return split[0] == name
    if source == HELD_OUT:
        return False
    with suppress(UserError):  # the run may come from another machine
        path = parse_spec(source)[0]
        folders = (path, *path.parents[:FOLDERS_BELOW_MARKER])
        return any(is_file(folder / generator.marker) for folder in folders)
    return False
