"""Captioned images of plain colours, and a run that was trained on them."""

import json
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from eve_vl.cli.main import main

COLORS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
}


def write_color_rows(
    folder: Path,
    count: int,
    broken: Collection[int] = (),
    word: str = "number",
) -> Path:
    """Write images and a table of them; those in `broken` cannot be decoded."""
    folder.mkdir()
    lines = []
    for number in range(count):
        path = folder / f"{number}.png"
        color = list(COLORS)[number % 3]
        Image.new("RGB", (40, 30 + number), COLORS[color]).save(path)
        if number in broken:
            path.write_bytes(b"no image")
        row = {"image": path.name, "caption": f"{color} all over, {word} {number}"}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def train_on_color_rows(folder: Path) -> Path:
    """Train a run on the 120 rows of folder/pairs, a tenth of them held out; return its folder."""
    flags = {
        "out": folder / "run",
        "data.train": write_color_rows(folder / "pairs", 120),
        "data.val": "held-out",
        "data.val-fraction": 0.1,
        "data.num-workers": 0,
        "train.steps": 2,
        "train.dtype": "float32",
    }
    words = ["pretrain", "tiny"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    main(words)
    return folder / "run"
