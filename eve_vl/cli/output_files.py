"""Files that verbs write: checked before long work, written at its end."""

import json
import os
from pathlib import Path
from typing import Any

from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import reporting_write_errors, write_file


def check_writable(path: Path | None) -> None:
    """Raise UserError if an output file cannot be written; None: there is none."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file to write")
    with reporting_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def write_json(path: Path | None, values: Any) -> None:
    """Write values to a file that passed `check_writable`; nothing for None."""
    if path is not None:
        write_file(path, json.dumps(values, indent=1) + "\n")
