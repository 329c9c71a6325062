"""Images and tables to index, and a plain reader of an index."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.search.index_files import DATABASE
from helpers.source_files import write_jsonl
from helpers.tiny_runs import TEXTS, noise

NUM_OLD = 8
NUM_PHOTOS = 20


def write_photos(folder: Path) -> Path:
    """Write twenty images in two folders, the first four with captions; return the folder."""
    for number in range(NUM_PHOTOS):
        subfolder = "old" if number < NUM_OLD else "new"
        write_image(folder / subfolder / f"{number:02}.png", number)
    for number, captions in enumerate((*TEXTS, f"{TEXTS[0]}\n{TEXTS[1]}")):
        (folder / "old" / f"{number:02}.txt").write_text(captions)
    return folder


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, 20, 30)).save(path)


def write_images(folder: Path, numbers: Iterable[int]) -> None:
    for number in numbers:
        write_image(folder / f"{number}.png", number)


CAPTIONED = {
    "cat": "a cat",
    "dogs": "two dogs: animals, pets",
    "hot_dog": "a hot dog on a plate",
    "dog_house": "a house for the dog",
    "café": "the Café of the black cat",
    "hotel": "a hot plate",
    "none": "",
}
"""Captions of images, by their names."""


def write_captioned(folder: Path) -> Path:
    """Write images with the captions of CAPTIONED and a table of them; return the table."""
    rows = []
    for number, (name, caption) in enumerate(CAPTIONED.items()):
        write_image(folder / f"{name}.png", number)
        row = {"image": f"{name}.png", "set": "red" if number % 2 else "blue"}
        if caption:
            row["caption"] = caption
        rows.append(row)
    return write_jsonl(folder / "table.jsonl", rows)


def change_database(folder: Path, sql: str, *values: str) -> None:
    """Change the database of an index as another program would."""
    db = sqlite3.connect(folder / DATABASE)
    with db:
        db.execute(sql, values)
    db.close()


@dataclass(frozen=True)
class IndexedImage:
    """What an index holds about an image."""

    features: bytes | str
    """Float16, or the reason why there are none."""
    captions: tuple[str, ...]
    caption_features: tuple[bytes, ...]


def read_index(folder: Path) -> dict[str, IndexedImage]:
    """Return the content of an index by image."""
    db = sqlite3.connect(folder / DATABASE)
    (dim,) = db.execute("SELECT value FROM fact WHERE name = 'dim'").fetchone()
    size = 2 * int(dim)
    data = {}
    for name in ("images", "captions"):
        path = folder / f"{name}.f16"
        data[name] = path.read_bytes() if path.exists() else b""

    def features(name: str, slot: int) -> bytes:
        return data[name][slot * size : (slot + 1) * size]

    images = {}
    captions_of_image = """
    SELECT DISTINCT text, slot FROM caption JOIN text USING (slot) WHERE image = ? ORDER BY text"""
    rows = db.execute("SELECT id, name, slot, reason FROM image ORDER BY name").fetchall()
    for image, name, slot, reason in rows:
        captions = db.execute(captions_of_image, [image]).fetchall()
        images[name] = IndexedImage(
            features=reason if slot is None else features("images", slot),
            captions=tuple(text for text, _ in captions),
            caption_features=tuple(features("captions", slot) for _, slot in captions),
        )
    db.close()
    return images


def features_of(folder: Path, name: str) -> np.ndarray:
    features = read_index(folder)[name].features
    assert isinstance(features, bytes)
    return np.frombuffer(features, np.float16)


DERIVED = {
    "sources": "SELECT spec, reading FROM source ORDER BY spec",
    "thumbprints": """
    SELECT name, thumbprint, (SELECT min(first.name) FROM image AS first WHERE first.slot = near)
    FROM image JOIN feature USING (slot) ORDER BY name""",
    "rows": """
    SELECT name, text, columns FROM caption JOIN image ON image.id = image
    LEFT JOIN text ON text.slot = caption.slot ORDER BY 1, 2, 3""",
    "words": "SELECT name, w.* FROM image JOIN image_words AS w ON w.rowid = slot ORDER BY name",
    "tokens": """
    SELECT text, term, offset FROM tokens LEFT JOIN text ON slot = doc ORDER BY text, offset""",
}
ORPHANS = {
    "features": """
    SELECT slot FROM feature
    WHERE near IS NULL OR slot NOT IN (SELECT ifnull(slot, -1) FROM image)""",
    "captions": "SELECT slot FROM text WHERE slot NOT IN (SELECT slot FROM caption)",
    "words": "SELECT rowid FROM image_words WHERE rowid NOT IN (SELECT slot FROM feature)",
}


def read_derived(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return the tables that follow from images and captions; none has rows of its own."""
    db = sqlite3.connect(folder / DATABASE)
    db.execute("CREATE VIRTUAL TABLE temp.tokens USING fts5vocab (main, text_words, instance)")
    tables = {name: db.execute(query).fetchall() for name, query in DERIVED.items()}
    for name, query in ORPHANS.items():
        assert db.execute(query).fetchall() == [], name
    db.close()
    return tables


def assert_same_index(folder: Path, expected_folder: Path) -> None:
    """Equal but for the last digits of features, which depend on the batches."""
    images = read_index(folder)
    expected_images = read_index(expected_folder)
    assert images.keys() == expected_images.keys()
    assert read_derived(folder) == read_derived(expected_folder)
    for name, image in images.items():
        expected = expected_images[name]
        assert image.captions == expected.captions
        assert_close(image.features, expected.features)
        assert_close(b"".join(image.caption_features), b"".join(expected.caption_features))


def assert_close(features: bytes | str, expected: bytes | str) -> None:
    if isinstance(expected, str):
        assert features == expected
        return
    assert isinstance(features, bytes)
    np.testing.assert_allclose(
        np.frombuffer(features, np.float16), np.frombuffer(expected, np.float16), atol=2e-3
    )
