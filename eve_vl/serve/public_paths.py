"""Names that clients see: no folders of the server, images of the index by number."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eve_vl.search.index import Hit, Index
from eve_vl.serve import RequestRefusedError
from eve_vl.utils.errors import nearest

WORD = r"[^\s/:;,'\"()]+"
PATH = re.compile(rf"(?<![\w.~/])~?/(?:{WORD}(?: {WORD})*/)*(?={WORD})")  # a path without its last name


def distinct(names: Iterable[str]) -> list[str]:
    """Return names with repeated ones numbered: photos, photos-2."""
    found: list[str] = []
    for name in names:
        number, other = 1, name
        while other in found:
            number += 1
            other = f"{name}-{number}"
        found.append(other)
    return found


def without_paths(text: str, known: Mapping[str, str]) -> str:
    """Replace known paths in a message by their names, and other paths by their last part.

    known: names by path, as absolute paths or as a person typed them. Paths of a single part are kept.
    """
    for path in sorted(known, key=len, reverse=True):
        if os.sep in path.strip(os.sep) or os.path.isabs(path):  # noqa: PTH117
            text = re.sub(rf"(?<![\w.~/-]){re.escape(path)}(?![\w.-])", lambda _, name=known[path]: name, text)
    return PATH.sub("", text)


class PublicIndex:
    """An index whose images are named by their source's folder and the path below it."""

    def __init__(self, index: Index):
        self.index = index
        self._roots: tuple[int | None, dict[str, str]] = (None, {})

    @property
    def roots(self) -> dict[str, str]:
        """Folders of the sources by name; sources may change while the server runs."""
        version = self.index.version
        if self._roots[0] != version:
            roots = self.index.folders()
            names = distinct(Path(root).name or "images" for root in roots)
            self._roots = version, dict(zip(names, roots, strict=True))
        return self._roots[1]

    @property
    def known(self) -> dict[str, str]:
        """Folders as of the last use of `roots`, without a read from disk."""
        return self._roots[1]

    def name(self, name: str, roots: Mapping[str, str]) -> str:
        """Return the public name of an image."""
        for label, root in roots.items():
            if name.startswith(os.path.join(root, "")):  # noqa: PTH118
                return f"{label}/{name[len(root) :].lstrip(os.sep)}"
        return name.rpartition(os.sep)[2]

    def folder(self, given: str) -> str:
        """Return the path of a folder by its public name. Raises RequestRefusedError."""
        roots, (label, *parts) = self.roots, given.strip("/").split("/")
        if label not in roots:
            raise RequestRefusedError(400, f"folder: no folder {nearest(label, roots)}")
        if {"..", "."} & {*parts}:
            raise RequestRefusedError(400, f"folder: {given!r} has . or .. in it; name a folder of the index")
        return os.path.join(roots[label], *parts)  # noqa: PTH118

    def hits(self, hits: list[Hit], captions: bool) -> list[dict[str, Any]]:
        """Return hits as JSON values."""
        roots, digests = self.roots, self.index.digests([hit.id for hit in hits])
        return [
            {
                "id": hit.id,
                "name": hit.name if captions else self.name(hit.name, roots),
                "score": hit.score,
                "match": hit.match,
                "captions": list(hit.captions),
                "images": [self.name(name, roots) for name in hit.images],
                "near": None if hit.near is None else self.name(hit.near, roots),
                # with its content, because numbers of deleted images are used again
                "image": f"/v1/images/{hit.id}/{digests.get(hit.id, 'gone')}",
            }
            for hit in hits
        ]
