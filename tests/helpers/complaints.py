"""Refused commands, and pairs to damage."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_pairs(folder: Path, count: int = 8, size: tuple[int, int] = (40, 40)) -> Path:
    """Write images of noise with captions, and return their JSONL file."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"noise number {number}"}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def complaint(done) -> str:
    """Return the one line of a failed command."""
    assert done.returncode not in (0, 1), (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("eve: ")
    return lines[0]
