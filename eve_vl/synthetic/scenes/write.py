"""Built-in scenes as files: to look at, to ask about and to search in, as one would in images of one's own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from eve_vl.data.records import Unencoded
from eve_vl.synthetic.base import new_folder
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions, SceneStatements
from eve_vl.utils.errors import UserError, nearest


def write(layout: str, folder: Path, *, image_size: int, num_rows: int = 200, seed: int = 0) -> None:
    """Write rows of scenes:test in a layout (one of LAYOUTS), images of `image_size` pixels a side. Raises UserError."""
    if layout not in LAYOUTS:
        raise UserError(f"no layout {nearest(layout, LAYOUTS)}")
    if num_rows < 1:
        raise UserError(f"rows is {num_rows}, expected at least 1")
    LAYOUTS[layout](new_folder(folder), {"split": "test", "image_size": image_size, "num_rows": num_rows, "seed": seed})


def _captions(folder: Path, rows: Mapping[str, object]) -> None:
    for index, row in enumerate(ScenePairs(**rows)):  # pyright: ignore[reportArgumentType]
        name = _image(folder, f"{index:05d}", row.image)
        (folder / name).with_suffix(".txt").write_text("".join(f"{caption}\n" for caption in row.captions), encoding="utf-8")


def _questions(folder: Path, rows: Mapping[str, object]) -> None:
    lines = [
        {"image": _image(folder, f"{index:05d}", row.image), "question": row.question, "answer": row.answers[0]}
        for index, row in enumerate(SceneQuestions(**rows))  # pyright: ignore[reportArgumentType]
    ]
    _table(folder / "questions.jsonl", lines)


def _statements(folder: Path, rows: Mapping[str, object]) -> None:
    lines = []
    for index, row in enumerate(SceneStatements(**rows)):  # pyright: ignore[reportArgumentType]
        images = [_image(folder, f"{index:05d}-{side}", getattr(row, side)) for side in ("left", "right")]
        lines.append({"images": images, "statement": row.statement, "label": row.label})
    _table(folder / "statements.jsonl", lines)


def _image(folder: Path, name: str, image: object) -> str:
    assert isinstance(image, Unencoded)
    Image.fromarray(image.pixels).save(folder / f"{name}.png")
    return f"{name}.png"


def _table(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


LAYOUTS: Mapping[str, Callable[[Path, Mapping[str, object]], None]] = {
    "captions": _captions,
    "questions": _questions,
    "statements": _statements,
}
