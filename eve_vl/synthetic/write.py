"""Generated data as files (`eve data write`): the layouts of a generator write to an
OutputFolder."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.config.generated_sources import generator_names
from eve_vl.data.generated import find_generator
from eve_vl.utils.errors import UserError, nearest
from eve_vl.utils.file_io import atomic_folder

IMAGE_SIZE = 64
TableRow = dict[str, Any]
"""Values by column."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder being written.

    num_rows: of training; other splits have a fifth.
    """

    path: Path
    num_rows: int
    seed: int

    def indices(self, split: str) -> range:
        """Return the row indices of a split."""
        if split == "train":
            return range(self.num_rows)
        return range(max(1, self.num_rows // 5))

    def write_image(self, file: str, pixels: np.ndarray) -> None:
        """Write an image."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)

    def write_text(self, file: str, text: str) -> None:
        """Write a text file."""
        path = self.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_lines(self, file: str, lines: Sequence[str]) -> None:
        """Write a text file of lines."""
        self.write_text(file, "".join(f"{line}\n" for line in lines))

    def write_csv(self, file: str, rows: Sequence[TableRow]) -> None:
        """Write a CSV file with the columns of the first row."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(file, text.getvalue())

    def write_jsonl(self, file: str, rows: Sequence[TableRow]) -> None:
        """Write a JSON line for each row."""
        self.write_lines(file, [json.dumps(row) for row in rows])


def write(generator: str, layout: str, folder: Path, *, num_rows: int = 200, seed: int = 0) -> None:
    """Write rows of a generator in one of its layouts. Raises UserError.

    Scenes: `num_rows` of scenes:test. Phantoms: `num_rows` of training and a fifth of that of
    validation and test; in 5×200, `num_rows` of each class.
    """
    if generator not in generator_names():
        raise UserError(f"no built-in data {nearest(generator, generator_names())}")
    data = find_generator(generator)
    if layout not in data.layouts:
        raise UserError(f"no layout {nearest(layout, data.layouts)}")
    if num_rows < 1:
        raise UserError(f"rows is {num_rows}, expected at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new or an empty folder")

    with atomic_folder(folder) as temporary:  # half of a data set would look like one
        output = OutputFolder(temporary, num_rows, seed)
        data.layouts[layout](output)
        if data.marker:
            output.write_text(data.marker, f"{data.disclaimer}\n")
