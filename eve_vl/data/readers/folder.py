"""A folder of pictures, at any depth, each with its captions in a text file beside it: `cat.jpg`, `cat.txt`."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eve_vl.data.readers import common
from eve_vl.data.records import ImageFile, ImageText
from eve_vl.errors import BadSampleError, UserError


class FolderSource:
    """Pictures of a folder in alphabetical order; each non-empty line of the text file is a caption."""

    def __init__(self, folder: Path):
        """List `folder`; raises UserError if it has no pictures, or no picture has a text file."""
        self._folder = folder
        found = list(_walk(folder))
        if not found:
            raise UserError(f"{folder}: no pictures in this folder ({_others(folder)})")
        self._names = common.PackedStrings.pack(name for name, _ in found)
        self._has_text = np.array([has_text for _, has_text in found])
        if not self._has_text.any():
            example = Path(found[0][0])
            raise UserError(
                f"{folder}: {len(found)} pictures but no captions: expected {example.with_suffix('.txt')} beside "
                f"{example} ({_others(folder)})"
            )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int, /) -> ImageText:
        index = range(len(self))[index]
        where = self._names[index]
        image = self._folder / where
        text = image.with_suffix(".txt")
        if not self._has_text[index]:
            raise BadSampleError(where, f"no captions: {text.name} is missing")
        try:
            data = text.read_bytes()
        except OSError as error:
            raise BadSampleError(where, f"cannot read {text.name}: {error.strerror or error}") from None
        lines = common.decode_text(data, where).splitlines()
        return ImageText(image=ImageFile(path=image), captions=common.to_captions(lines, where), where=where)


def _walk(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield each picture's path below `folder`, and whether a text file lies beside it. Hidden names are left out."""
    seen = set()  # links to folders are followed, so a loop must be noticed
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in seen  # noqa: PTH118
        )
        texts = {name for name in files if name.endswith(".txt")}
        for name in sorted(files):
            path = Path(root, name)
            if path.suffix.lower() in common.IMAGE_SUFFIXES and not name.startswith("."):
                yield str(path.relative_to(folder)), path.with_suffix(".txt").name in texts


def _others(folder: Path) -> str:
    """Say what else a folder holds that could be opened, as a hint."""
    names = sorted(path.name for path in folder.iterdir())
    tables = [name for name in names if name.endswith((".jsonl", ".json", ".csv", ".tsv"))]
    if tables:
        return f"to use the table in it, name it: {folder / tables[0]}"
    return f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "it is empty"
