"""Images as files in a folder, with captions in text files next to them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eve_vl.data.field_values import MAX_TEXT_BYTES, Fields
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.packed_strings import PackedStrings
from eve_vl.data.readers.formats import IMAGE_SUFFIXES, TABLE_SUFFIXES
from eve_vl.data.table import Table
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import decode_text, read_bytes


class FolderImage(NamedTuple):
    """An image below a folder."""

    name: str
    """Its path relative to the folder."""
    has_text: bool
    """Whether a text file of the same name lies next to it."""


class FolderTable(Table):
    """Images of a folder at any depth, in alphabetical order.

    Each non-empty line of the text file next to an image (`cat.jpg`, `cat.txt`) is a caption. The
    first folder on the path to an image is its class (`red/1.png`).
    """

    layout = "a folder of images"
    fixed = ("image_root", *Table.fixed)

    def __init__(self, folder: Path):
        """List `folder`. Raises UserError if it has no images."""
        self.path = folder
        images = list(_walk(folder))
        if not images:
            raise UserError(f"{folder}: no images in this folder ({self._other_content()})")
        self._names = PackedStrings.pack(image.name for image in images)
        self._has_text = np.array([image.has_text for image in images])
        self.listing = (self._names.blob, self._names.ends, self._has_text)

        self.names = ["image"]
        if self._has_text.any():
            self.names.append("captions")
        num_in_subfolders = sum("/" in image.name for image in images)
        if num_in_subfolders > len(images) / 2:
            self.names.append("class")

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        """Name a row by the path of its image."""
        return self._names[index]

    def hint(self) -> str:
        """Return where captions and classes would be."""
        example = Path(self._names[0])
        captions = f"captions would be in {example.with_suffix('.txt')} next to {example}"
        return f": {captions}, classes the names of folders ({self._other_content()})"

    def _other_content(self) -> str:
        """Return a hint at other content of the folder that could be opened."""
        tables = tables_in(self.path)
        if tables:
            return f"to use the table in it, name it: {tables[0]}"
        names = sorted(path.name for path in self.path.iterdir())
        if not names:
            return "it is empty"
        examples = ", ".join(names[:5])
        return f"it holds {examples}, …" if len(names) > 5 else f"it holds {examples}"

    def folder(self, index: int) -> Path:
        """Return the folder itself."""
        return self.path

    def image(self, index: int) -> ImageFile:
        """Return the image of a row."""
        return ImageFile(path=self.path / self._names[index])

    def fields(self, index: int) -> Fields:
        """Return path, captions and class of an image, as far as they are used.

        Optional captions that cannot be read are returned as the ValueError. Raises ValueError.
        """
        name = self._names[index]
        fields: dict[str, object] = {"image": name}

        folder, slash, _ = name.partition("/")
        if slash:
            fields["class"] = folder
        elif self._is_required("class"):
            raise ValueError("is in no folder that names its class")

        has_captions = "captions" in self.used_columns and self._has_text[index]
        if has_captions or self._is_required("captions"):
            fields["captions"] = self._captions(index)
        return fields

    def _is_required(self, column: str) -> bool:
        return column in self.used_columns and column not in self.optional_columns

    def _captions(self, index: int) -> list[str] | ValueError:
        """Return the lines of an image's text file."""
        path = self.image(index).path.with_suffix(".txt")
        if not self._has_text[index]:
            raise ValueError(f"no captions: {path.name} is missing")
        try:
            text = decode_text(read_bytes(path, MAX_TEXT_BYTES))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            problem = ValueError(f"{path.name}: {reason}")
            if "captions" in self.optional_columns:
                return problem
            raise problem from None
        # str.splitlines would also split at U+2028 within a caption
        return text.replace("\r", "\n").split("\n")


def _walk(folder: Path) -> Iterator[FolderImage]:
    """Yield the images below a folder, without hidden ones.

    Raises UserError for a folder that cannot be read, because its images would count as deleted.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            advice = f"make it readable, or move it out of {folder}"
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {advice}")

    visited = set()  # links to folders are followed, so loops must be detected
    for root, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        visited.add(os.path.realpath(root))
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".")
            and name != "lost+found"
            and os.path.realpath(os.path.join(root, name)) not in visited  # noqa: PTH118
        ]
        prefix = "" if Path(root) == folder else f"{Path(root).relative_to(folder)}/"
        text_names = {name for name in files if name.endswith(".txt")}
        for name in sorted(files):  # as strings: a million Path objects take half a minute
            stem, _, suffix = name.rpartition(".")
            if f".{suffix.lower()}" in IMAGE_SUFFIXES and not name.startswith("."):
                yield FolderImage(prefix + name, f"{stem}.txt" in text_names)


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
    )
