"""The icons that `eve try` searches."""

import zipfile
from pathlib import Path

from eve_vl.builtin.names import FOLDER
from eve_vl.utils.file_io import reporting_write_errors

ICONS = FOLDER / "lucide.zip"
PAIRS = "pairs.jsonl"


def unpack_icons(folder: Path) -> Path:
    """Unpack the icons into a folder and return the path of their table.

    Complete files stay, and files that a crash has truncated are written again. Raises UserError.
    """
    with zipfile.ZipFile(ICONS) as archive, reporting_write_errors(folder):
        for entry in archive.infolist():
            path = folder / entry.filename
            if not path.is_file() or path.stat().st_size != entry.file_size:
                archive.extract(entry, folder)
    return folder / PAIRS
