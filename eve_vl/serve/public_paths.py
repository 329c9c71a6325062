"""An index as clients see it: names without the server's folders, images by number."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eve_vl.search.index import Hit, Index
from eve_vl.serve.limits import RequestRefusedError
from eve_vl.utils.errors import nearest

WORD = r"[^\s/:;,'\"()]+"
PATH = re.compile(rf"(?<![\w.~/])~?/(?:{WORD}(?: {WORD})*/)*(?={WORD})")  # all of a path but its last name


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which none occurs twice: photos, photos-2."""
    found: list[str] = []
    for name in names:
        number, other = 1, name
        while other in found:
            number += 1
            other = f"{name}-{number}"
        found.append(other)
    return found


def without_paths(text: str, known: Mapping[str, str]) -> str:
    """Return a message in which known paths have their names, and of others the last part alone is left.

    known: absolute paths, or such as a person gave them; those of a single part, such as a or ., say nothing of a server.
    """
    for path in sorted(known, key=len, reverse=True):
        if os.sep in path.strip(os.sep) or os.path.isabs(path):  # noqa: PTH117
            text = re.sub(rf"(?<![\w.~/-]){re.escape(path)}(?![\w.-])", lambda _, name=known[path]: name, text)
    return PATH.sub("", text)


class PublicIndex:
    """An index whose images are called by the name of their source's folder and what comes after it."""

    def __init__(self, index: Index):
        self.index = index
        self._roots: tuple[int | None, dict[str, str]] = (None, {})

    @property
    def roots(self) -> dict[str, str]:
        """The folders of sources by their names; sources may come and go while a server runs."""
        version = self.index.version
        if self._roots[0] != version:
            roots = self.index.folders()
            names = distinct(Path(root).name or "images" for root in roots)
            self._roots = version, dict(zip(names, roots, strict=True))
        return self._roots[1]

    @property
    def known(self) -> dict[str, str]:
        """The folders that were there when somebody asked last, which may be had where nothing may wait for a disk."""
        return self._roots[1]

    def name(self, name: str, roots: Mapping[str, str]) -> str:
        """Return what to call an image."""
        for label, root in roots.items():
            if name.startswith(os.path.join(root, "")):  # noqa: PTH118
                return f"{label}/{name[len(root) :].lstrip(os.sep)}"
        return name.rpartition(os.sep)[2]

    def folder(self, given: str) -> str:
        """Return the path of a folder that a client names, as `name` does. Raises RefusedError."""
        roots, (label, *parts) = self.roots, given.strip("/").split("/")
        if label not in roots:
            raise RequestRefusedError(400, f"folder: no folder {nearest(label, roots)}")
        if {"..", "."} & {*parts}:
            raise RequestRefusedError(400, "folder: name one of the index, without . and ..")
        return os.path.join(roots[label], *parts)  # noqa: PTH118

    def hits(self, hits: list[Hit], captions: bool) -> list[dict[str, Any]]:
        """Return what was found as JSON values."""
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
                # with its content, for numbers of images that are gone are given to others
                "image": f"/v1/images/{hit.id}/{digests.get(hit.id, 'gone')}",
            }
            for hit in hits
        ]
