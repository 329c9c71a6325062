"""Images as files in a folder, with captions in text files next to them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eve_vl.data.image_refs import ImageFile
from eve_vl.data.table import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    TABLE_SUFFIXES,
    Fields,
    PackedStrings,
    Table,
)
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError


class FolderTable(Table):
    """Images of a folder at any depth, in alphabetical order.

    Each non-empty line of the text file next to an image (`cat.jpg`, `cat.txt`) is a caption. The first folder on the
    path to an image is its class (`red/1.png`).
    """

    layout = "a folder of images"
    fixed = ("image_root", *Table.fixed)

    def __init__(self, folder: Path):
        """List `folder`. Raises UserError if it has no images."""
        self.path = folder
        if not (found := list(_walk(folder))):
            raise UserError(f"{folder}: no images in this folder ({self._others()})")
        self._names = PackedStrings.pack(name for name, _ in found)
        self._has_text = np.array([has_text for _, has_text in found])
        self.listing = self._names.blob, self._names.ends, self._has_text
        has_classes = sum("/" in name for name, _ in found) > len(found) / 2
        self.names = ["image", *["captions"] * bool(self._has_text.any()), *["class"] * has_classes]

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        """Name a row by the path of its image."""
        return self._names[index]

    def hint(self) -> str:
        """Return where captions and classes would be."""
        example = Path(self._names[0])
        captions = f"captions would be in {example.with_suffix('.txt')} next to {example}"
        return f": {captions}, classes the names of folders ({self._others()})"

    def _others(self) -> str:
        """Return a hint at other content of the folder that could be opened."""
        if tables := tables_in(self.path):
            return f"to use the table in it, name it: {tables[0]}"
        names = sorted(path.name for path in self.path.iterdir())
        return (
            f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            if names
            else "it is empty"
        )

    def folder(self, index: int) -> Path:
        """Return the folder itself."""
        return self.path

    def image(self, index: int) -> ImageFile:
        """Return the image of a row."""
        return ImageFile(path=self.path / self._names[index])

    def fields(self, index: int) -> Fields:
        """Return path, captions and class of an image, as far as they are wanted.

        Optional captions that cannot be read are returned as the ValueError. Raises ValueError.
        """
        name = self._names[index]
        folder, slash, _ = name.partition("/")
        fields: dict[str, object] = {"image": name, **({"class": folder} if slash else {})}
        if "class" in self.wanted and not slash and "class" not in self.optional:
            raise ValueError("is in no folder that names its class")
        if "captions" in self.wanted and (self._has_text[index] or "captions" not in self.optional):
            text = (self.path / name).with_suffix(".txt")
            if not self._has_text[index]:
                raise ValueError(f"no captions: {text.name} is missing")
            try:
                lines = (
                    file_io.decode_text(file_io.read_bytes(text, MAX_TEXT_BYTES))
                    .replace("\r", "\n")
                    .split("\n")
                )
                fields["captions"] = (
                    lines  # str.splitlines would also split at U+2028 within a caption
                )
            except (OSError, ValueError) as error:
                problem = ValueError(f"{text.name}: {getattr(error, 'strerror', None) or error}")
                if "captions" not in self.optional:
                    raise problem from None
                fields["captions"] = problem
        return fields


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield each image's path below `folder` and whether it has a text file.

    Hidden names are left out. Raises UserError for a folder that cannot be read, because its images would count as
    deleted.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            advice = f"make it readable, or move it out of {folder}"
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {advice}")

    seen = set()  # links to folders are followed, so loops must be detected
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        shown = sorted(
            name for name in folders if not name.startswith(".") and name != "lost+found"
        )
        folders[:] = [
            name
            for name in shown
            if os.path.realpath(os.path.join(root, name)) not in seen  # noqa: PTH118
        ]
        texts = {name for name in files if name.endswith(".txt")}
        below = "" if Path(root) == folder else f"{Path(root).relative_to(folder)}/"
        for name in sorted(files):  # as strings: a million Path objects take half a minute
            stem, _, suffix = name.rpartition(".")
            if f".{suffix.lower()}" in IMAGE_SUFFIXES and not name.startswith("."):
                yield below + name, f"{stem}.txt" in texts


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()
    )
