"""One JSON document: the list of objects of ALBEF, X-VLM and BLIP, or the caption file of COCO."""

import json
from collections.abc import Iterator
from pathlib import Path

from eve_vl.data.readers import common
from eve_vl.data.records import ImageText
from eve_vl.errors import UserError


class JsonSource:
    """Rows of a JSON list `[{"image": …, "caption": text or list}, …]`, or images of a COCO caption file."""

    def __init__(self, path: Path, *, image_root: Path, image_column: str | None, text_column: str | None):
        """Read the whole of `path`; raises UserError if it is neither form or lacks the columns."""
        self._path = path
        self._root = image_root
        document = _load(path)
        if isinstance(document, list):
            pairs = _list_pairs(path, document, image_column, text_column)
        else:
            for name, value in (("image-column", image_column), ("text-column", text_column)):
                if value is not None:
                    raise UserError(f"{path}: a COCO caption file has fixed columns; leave out --data.{name}")
            pairs = _coco_pairs(path, document)
        self._rows = common.pack_pairs(pairs)
        common.require_usable(path, self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> ImageText:
        index = range(len(self))[index]
        where = common.where_row(self._path, index)
        return common.unpack_row(self._rows[index], self._root, where)


def _load(path: Path) -> list[object] | dict[str, object]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if isinstance(document, list):
        if any(isinstance(row, dict) for row in document):
            return document
        found = f"a list of {type(document[0]).__name__}" if document else "an empty list"
    elif isinstance(document, dict):
        if isinstance(document.get("images"), list) and isinstance(document.get("annotations"), list):
            return document
        found = f"an object with fields {', '.join(list(document)[:10]) or '(none)'}"
    else:
        found = type(document).__name__
    raise UserError(f"{path}: holds {found}, expected a list of objects with an image path and a caption")


def _list_pairs(path: Path, rows: list[object], image: str | None, caption: str | None) -> Iterator[common.Pair]:
    """Yield (image, captions) per row, or the reason why the row has none."""
    fields = next(list(row) for row in rows if isinstance(row, dict))
    image, caption = common.pick_columns(path, fields, image, caption)
    for row in rows:
        if not isinstance(row, dict):
            yield f"JSON {type(row).__name__}, expected an object"
        elif missing := [name for name in (image, caption) if name not in row]:
            yield f"no field '{missing[0]}' (fields: {', '.join(row) or 'none'})"
        else:
            yield row[image], row[caption]


def _coco_pairs(path: Path, document: dict[str, object]) -> Iterator[common.Pair]:
    """Yield (file name, all its captions) per image that has any, in the file's order."""
    images, annotations = document["images"], document["annotations"]
    assert isinstance(images, list)
    assert isinstance(annotations, list)
    captions: dict[object, list[object]] = {}
    try:
        for annotation in annotations:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        pairs = [(image["file_name"], captions[image["id"]]) for image in images if image["id"] in captions]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not a COCO caption file (images need id and file_name, annotations image_id and "
            f"caption): {type(error).__name__} {error}"
        ) from None
    if not pairs:
        raise UserError(f"{path}: none of its {len(images)} images has a caption among its annotations")
    yield from pairs
