"""Images to index, and a plain reader of an index."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eve_vl.search.index_files import DATABASE
from helpers.tiny_runs import TEXTS, noise


def write_photos(folder: Path) -> Path:
    """Write twenty images in two folders, some with captions; return the folder."""
    for number in range(20):
        write_image(folder / ("old" if number < 8 else "new") / f"{number:02}.png", number)
    for number, texts in enumerate((*TEXTS, f"{TEXTS[0]}\n{TEXTS[1]}")):
        (folder / "old" / f"{number:02}.txt").write_text(texts)
    return folder


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, 20, 30)).save(path)


def content(folder: Path) -> dict[str, tuple[bytes | str, tuple[str, ...], tuple[bytes, ...]]]:
    """Return, by image, its features or the reason why there are none, its captions, and their features."""
    db = sqlite3.connect(folder / DATABASE)
    (dim,) = db.execute("SELECT value FROM fact WHERE name = 'dim'").fetchone()
    paths = {name: folder / f"{name}.f16" for name in ("images", "captions")}
    files = {name: path.read_bytes() if path.exists() else b"" for name, path in paths.items()}
    row = lambda name, slot: files[name][slot * 2 * int(dim) : (slot + 1) * 2 * int(dim)]  # noqa: E731
    known = {}
    for image, name, slot, reason in db.execute(
        "SELECT id, name, slot, reason FROM image ORDER BY name"
    ):
        query = "SELECT DISTINCT text, slot FROM caption JOIN text USING (slot) WHERE image = ? ORDER BY text"
        texts = db.execute(query, [image]).fetchall()
        features = reason if slot is None else row("images", slot)
        known[name] = (
            features,
            tuple(text for text, _ in texts),
            tuple(row("captions", slot) for _, slot in texts),
        )
    db.close()
    return known


def rest(folder: Path) -> dict[str, Any]:
    """Return the other content: sources, by image its thumbprint, its first near-duplicate, its rows, and its words."""
    db = sqlite3.connect(folder / DATABASE)
    db.execute("CREATE VIRTUAL TABLE temp.tokens USING fts5vocab (main, text_words, instance)")
    first = "(SELECT min(first.name) FROM image AS first WHERE first.slot = near)"
    looks = f"SELECT name, thumbprint, {first} FROM image JOIN feature USING (slot) ORDER BY name"
    said = "caption JOIN image ON image.id = image LEFT JOIN text ON text.slot = caption.slot"
    rows = f"SELECT name, text, columns FROM {said}"
    asked = {
        "sources": "SELECT spec, reading FROM source ORDER BY spec",
        "looks": looks,
        "rows": f"{rows} ORDER BY 1, 2, 3",
    }
    asked |= {
        "unused": "SELECT slot FROM feature WHERE near IS NULL OR slot NOT IN (SELECT ifnull(slot, -1) FROM image)"
    }
    asked |= {"unsaid": "SELECT slot FROM text WHERE slot NOT IN (SELECT slot FROM caption)"}
    asked |= {
        "words": "SELECT name, w.* FROM image JOIN image_words AS w ON w.rowid = slot ORDER BY name"
    }
    asked |= {
        "tokens": "SELECT text, term, offset FROM tokens LEFT JOIN text ON slot = doc ORDER BY text, offset"
    }
    asked |= {
        "unfound": "SELECT rowid FROM image_words WHERE rowid NOT IN (SELECT slot FROM feature)"
    }
    known = {name: db.execute(query).fetchall() for name, query in asked.items()}
    db.close()
    assert known["unused"] == known["unsaid"] == known["unfound"] == []
    return known


def features_of(folder: Path, name: str) -> np.ndarray:
    data = content(folder)[name][0]
    assert isinstance(data, bytes)
    return np.frombuffer(data, np.float16)
