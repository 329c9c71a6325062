"""Noise images with captions, as a folder and as a table, for tests of fingerprints."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from helpers.tiny_rows import CAPTIONS
from helpers.tiny_runs import noise

ROWS = 12


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)


def write_data(folder: Path) -> None:
    """Write the folders train and val of captioned images, and rows.jsonl about train."""
    for part, first_seed in (("train", 0), ("val", 100)):
        for number in range(ROWS):
            write_image(folder / part / f"{number:02}.png", first_seed + number)
            (folder / part / f"{number:02}.txt").write_text(CAPTIONS[number % 5])
    write_table(folder, range(ROWS))


def write_table(folder: Path, numbers: Sequence[int], turn: int = 0) -> None:
    """Write rows.jsonl about some images of train; turn: number of the first caption."""
    lines = []
    for number in numbers:
        caption = f"{CAPTIONS[(number + turn) % 5]} {number}"
        lines.append(json.dumps({"image": f"train/{number:02}.png", "caption": caption}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def redraw(folder: Path) -> None:
    """Replace all images of a folder; their sizes stay."""
    for number, path in enumerate(folder.glob("*.png")):
        write_image(path, 700 + number)
