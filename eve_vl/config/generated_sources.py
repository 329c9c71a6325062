"""Names of generated data, such as `scenes:val`: a generator and one of its splits."""

from collections.abc import Iterable
from pathlib import Path

from eve_vl.config.plugins import installed
from eve_vl.utils.errors import UserError


def generator_names() -> list[str]:
    """Return the names that sources of generated data start with (see data/generated.py)."""
    return list(installed("generators"))


def generated(source: str) -> tuple[str, str] | None:
    """Return the generator and split of a source such as `scenes:val`, None for a path.

    The default split is train. Raises UserError if the name is also that of a path.
    """
    name, colon, split = source.partition(":")
    if name not in generator_names():
        return None
    if not colon and Path(name).exists():
        raise UserError(
            f"{name}: is both a path and built-in data; "
            f"write ./{name} for the path, {name}:train for the data"
        )
    return name, split or "train"


def generators_of(sources: Iterable[str]) -> list[str]:
    """Return the distinct generators of sources, in their order."""
    names: list[str] = []
    for source in sources:
        generator_and_split = generated(source)
        if generator_and_split and generator_and_split[0] not in names:
            names.append(generator_and_split[0])
    return names
