"""A folder of images, at any depth.

Captions lie in a text file next to the image (`cat.jpg`, `cat.txt`), classes are names of folders (`red/1.png`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eve_vl.data import fields as cells
from eve_vl.data.records import ImageFile
from eve_vl.data.table import Table
from eve_vl.utils.console import pluralize
from eve_vl.utils.errors import BadSampleError, UserError
from eve_vl.utils.safe_io import decode_text, read_bytes

IMAGE, CAPTIONS, CLASS = "image", "captions", "class"
NUM_SHOWN = 5


class FolderTable(Table):
    """Images of a folder in alphabetical order.

    Each non-empty line of the text file is a caption. The first folder on the path to an image is its class.
    """

    layout = "a folder of images"
    fixed = ("image_root", *Table.fixed)

    def __init__(self, folder: Path):
        """List `folder`. Raises UserError if it has no images."""
        self.path = folder
        images, alone = list[tuple[str, bool]](), list[str]()
        for name, has_text in _walk(folder):
            if has_text is None:
                alone.append(name)
            else:
                images.append((name, has_text))
        if not images:
            raise UserError(f"{folder}: no images in this folder ({_others(folder)})")
        self._names = cells.PackedStrings.pack(name for name, _ in images)
        self._has_text = np.array([has_text for _, has_text in images])
        if alone and self._has_text.any():
            shown = ", ".join(alone[:NUM_SHOWN]) + ", …" * (len(alone) > NUM_SHOWN)
            self.notes = (f"{pluralize(len(alone), 'text file')} without an image of the same name: {shown}",)
        num_in_folders = sum("/" in name for name, _ in images)
        is_there = {IMAGE: True, CAPTIONS: self._has_text.any(), CLASS: num_in_folders > len(images) / 2}
        self.names = [name for name, is_it in is_there.items() if is_it]

    def __len__(self) -> int:
        return len(self._names)

    def where(self, index: int) -> str:
        """Name a row by the path of its image."""
        return self._names[index]

    def hint(self) -> str:
        """Return where captions and classes would be."""
        example = Path(self._names[0])
        caption = example.with_suffix(".txt")
        return f": captions would be in {caption} next to {example}, classes the names of folders ({_others(self.path)})"

    def folder(self, index: int) -> Path:
        """Return the folder itself."""
        return self.path

    def image(self, index: int) -> ImageFile:
        """Return the image of a row."""
        return ImageFile(path=self.path / self._names[index])

    def fields(self, index: int, where: str) -> cells.Fields:
        """Return path, captions and class of an image, as far as they are wanted. Raises BadSampleError.

        Optional captions that cannot be read are returned as the BadSampleError.
        """
        name = self._names[index]
        fields: dict[str, object] = {IMAGE: name}
        if CAPTIONS in self.wanted and (self._has_text[index] or CAPTIONS not in self.optional):
            text = (self.path / name).with_suffix(".txt")
            if not self._has_text[index]:
                raise BadSampleError(where, f"no captions: {text.name} is missing")
            try:
                with cells.one_row(where):
                    data = read_bytes(text, cells.MAX_TEXT_BYTES)
                with cells.one_row(where, text.name):
                    fields[CAPTIONS] = decode_text(data).splitlines()
            except BadSampleError as error:
                if CAPTIONS not in self.optional:
                    raise
                fields[CAPTIONS] = error
        folder, slash, _ = name.partition("/")
        if CLASS in self.wanted and (slash or CLASS not in self.optional):
            if not slash:
                raise BadSampleError(where, "is in no folder that names its class")
            fields[CLASS] = folder
        return fields


def _walk(folder: Path) -> Iterator[tuple[str, bool | None]]:
    """Yield each image's path below `folder` and whether it has a text file; then text files without an image, with None.

    Hidden names are left out. Raises UserError for a folder that cannot be read, because its images would count as
    deleted.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}); make it readable, or move it out of {folder}"
            )

    seen = set()  # links to folders are followed, so loops must be detected
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name != "lost+found" and os.path.realpath(os.path.join(root, name)) not in seen  # noqa: PTH118
        )
        texts = {name for name in files if name.endswith(".txt") and not name.startswith(".")}
        stems = set[str]()
        below = "" if Path(root) == folder else f"{Path(root).relative_to(folder)}/"
        for name in sorted(files):  # as strings: a million Path objects take half a minute
            stem, _, suffix = name.rpartition(".")
            if f".{suffix.lower()}" in cells.IMAGE_SUFFIXES and not name.startswith("."):
                yield below + name, f"{stem}.txt" in texts
                stems.add(stem)
        for name in sorted(texts - {f"{stem}.txt" for stem in stems}):
            yield below + name, None


def _others(folder: Path) -> str:
    """Return a hint at other content of a folder that could be opened."""
    names = sorted(path.name for path in folder.iterdir())
    tables = [name for name in names if name.endswith((".jsonl", ".json", ".csv", ".tsv"))]
    if tables:
        return f"to use the table in it, name it: {folder / tables[0]}"
    return f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "it is empty"
