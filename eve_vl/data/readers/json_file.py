"""Fast reading of large JSON files."""

import gc
from pathlib import Path
from typing import Any

from eve_vl.utils.file_io import read_json


def load_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises UserError."""
    gc.disable()  # it would scan all objects of a document repeatedly: half of the reading time
    try:
        return read_json(path, object)
    finally:
        gc.enable()
