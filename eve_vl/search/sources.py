"""Sources of an index: their names, and how to open them again."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eve_vl.config import DataConfig
from eve_vl.config.generated_sources import generated
from eve_vl.data.opening import open_sources
from eve_vl.data.source_names import absolute_spec
from eve_vl.data.table import Table
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import is_text
from eve_vl.utils.frozen import Frozen


class OpenSource(Frozen):
    """An open source, its name, and how to read it."""

    spec: str
    reading: dict[str, Any]
    """Fields of DataConfig."""
    table: Table

    @classmethod
    def open(cls, spec: str, reading: dict[str, Any]) -> "OpenSource":
        """Open a source. Raises UserError."""
        if not is_text(spec):
            raise UserError(f"{spec}: its name is not UTF-8, which an index cannot hold; rename it")
        image_size = 1  # it matters for generated data only
        (table,) = open_sources([spec], DataConfig(**reading), image_size, "findable")
        assert isinstance(table, Table)  # generated rows have no place to find them again
        return cls(spec=spec, reading=reading, table=table)


def open_each(specs: Iterable[str | Path], reading: dict[str, Any]) -> list[OpenSource]:
    """Open sources, each once. Raises UserError.

    reading: fields of DataConfig; None and "auto" count as not given.
    """
    options = {}
    for name, value in reading.items():
        if isinstance(value, Path):
            options[name] = os.path.abspath(value)  # noqa: PTH100 (without resolving links)
        elif value not in (None, "auto"):
            options[name] = value
    names = dict.fromkeys(map(source_name, specs))
    return [OpenSource.open(name, options) for name in names]


def source_name(spec: str | Path) -> str:
    """Return a source's name that holds in any working folder.

    Raises UserError for generated data.
    """
    text = str(spec)
    is_generated = generated(text) is not None and ":" in text
    if is_generated and not os.path.exists(text):  # noqa: PTH110 (any text)
        raise UserError(
            f"{spec}: is generated data, which has no files to index; name folders of images, "
            "tables or shards (eve data write scenes captions FOLDER writes some)"
        )
    return absolute_spec(text)
