"""Public names of what lies in folders of the server: clients see no paths."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping

from eve_vl.serve.refusals import RequestRefusedError
from eve_vl.utils.errors import nearest

WORD = r"[^\s/:;,'\"()]+"
# a path without its last name
PATH = re.compile(rf"(?<![\w.~/])~?/(?:{WORD}(?: {WORD})*/)*(?={WORD})")


def distinct(names: Iterable[str]) -> list[str]:
    """Return names with repeated ones numbered: photos, photos-2."""
    numbered: list[str] = []
    for name in names:
        candidate = name
        for number in itertools.count(2):
            if candidate not in numbered:
                break
            candidate = f"{name}-{number}"
        numbered.append(candidate)
    return numbered


def without_paths(text: str, names: Mapping[str, str]) -> str:
    """Replace named paths in a message by their names, and other paths by their last part.

    names: by path, as absolute paths or as a person typed them. Paths of a single part are kept.
    """
    for path in sorted(names, key=len, reverse=True):
        if os.sep in path.strip(os.sep) or os.path.isabs(path):  # noqa: PTH117
            pattern = rf"(?<![\w.~/-]){re.escape(path)}(?![\w.-])"
            text = re.sub(pattern, lambda _, name=names[path]: name, text)
    return PATH.sub("", text)


def public_name(name: str, folders: Mapping[str, str]) -> str:
    """Return the name of an image as its folder's label and the path below it.

    folders: paths by label.
    """
    for label, folder in folders.items():
        if name.startswith(os.path.join(folder, "")):  # noqa: PTH118
            return f"{label}/{name[len(folder) :].lstrip(os.sep)}"
    return name.rpartition(os.sep)[2]


def folder_path(name: str, folders: Mapping[str, str]) -> str:
    """Return the path of a folder by its public name. Raises RequestRefusedError."""
    label, *parts = name.strip("/").split("/")
    if label not in folders:
        raise RequestRefusedError(400, f"folder: no folder {nearest(label, folders)}")
    if ".." in parts or "." in parts:
        message = f"folder: {name!r} has . or .. in it; name a folder of the index"
        raise RequestRefusedError(400, message)
    return os.path.join(folders[label], *parts)  # noqa: PTH118
