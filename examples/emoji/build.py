"""Build image–text pairs of emoji: three styles of drawing, and the names and tags of what they show.

    python examples/emoji/build.py emoji

Needs npm, which fetches the drawings (SVG), and `pip install resvg-py`, which renders them. README.md beside this file
tells what comes out.
"""

import argparse
import hashlib
import importlib
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import Image

from eve_vl.errors import UserError

VENDORS: Final = ("noto", "twemoji", "fluent-emoji-flat")
PACKAGES: Final = (  # with versions, so that everybody builds the same set
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojibase-data@17.0.0",
)
SPLITS: Final = ("train", "val", "test_concepts")
VAL_SHARE, TEST_SHARE = 0.04, 0.11  # of the concepts
COMPONENT, FLAGS = 2, 9  # groups of emojibase: skin tones and hair on their own, flags
KEYCAP: Final = "20E3"

Render = Callable[[str, int], Image.Image]  # SVG, side in pixels → picture


def fetch(folder: Path) -> Path:
    """Return the folder of the packages below `folder`; npm installs them there if they are missing."""
    packages = folder / "node_modules"
    if all((packages / name.rpartition("@")[0]).is_dir() for name in PACKAGES):
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed: install Node.js, or give a node_modules folder with --packages")
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([npm, "install", "--prefix", folder, *PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"npm install failed: {' '.join(lines[0].split())} (all of it: npm install {' '.join(PACKAGES)})")
    return packages


def resvg() -> Render:
    """Return the real renderer: on white, by resvg."""
    try:
        svg_to_bytes = importlib.import_module("resvg_py").svg_to_bytes
    except ImportError:
        raise UserError("resvg-py, which renders the drawings, is not installed: pip install resvg-py") from None

    def render(svg: str, size: int) -> Image.Image:
        png = svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGB")

    return render


def read_json(path: Path) -> Any:
    """Return what a file of the packages holds. Raises UserError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; --packages must be a node_modules folder with {', '.join(PACKAGES)}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def concept_of(hexcode: str) -> str:
    """Return code points joined by `-`, without the mark that asks for a coloured picture."""
    return hexcode.upper().replace("-FE0F", "")


def captions_by_concept(packages: Path) -> dict[str, list[str]]:
    """Return the label, and the label with its tags if it has any, of every concept of the set, in Unicode's order."""
    captions: dict[str, list[str]] = {}
    for entry in read_json(packages / "emojibase-data" / "en" / "data.json"):
        concept = concept_of(entry["hexcode"])
        if entry.get("group") in (None, COMPONENT, FLAGS) or KEYCAP in concept:  # no group: letters, the halves of flags
            continue
        label, tags = entry["label"], entry.get("tags", [])
        captions[concept] = [label, f"{label}: {', '.join(tags)}"] if tags else [label]
    return captions


def drawings(packages: Path, vendor: str) -> dict[str, str]:
    """Return the SVG, with a square view, of every concept that a vendor has drawn."""
    folder = packages / "@iconify-json" / vendor
    icons = read_json(folder / "icons.json")
    found = {}
    for hexcode, name in read_json(folder / "chars.json").items():
        icon = icons | icons["icons"].get(name, {})  # what an icon doesn't say itself holds for the whole set
        if "body" in icon:  # the rest are turned or mirrored copies of others
            width, height = icon.get("width", 16), icon.get("height", 16)
            side = max(width, height)
            left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
            view = f"{left:g} {top:g} {side:g} {side:g}"
            found[concept_of(hexcode)] = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{icon["body"]}</svg>'
    return found


def split_of(concept: str) -> str:
    """Return the split of a concept. It depends on nothing else, so it stays where it is when new emoji appear."""
    share = int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) / 2**32
    if share < TEST_SHARE:
        return "test_concepts"
    return "val" if share < TEST_SHARE + VAL_SHARE else "train"


def build(packages: Path, out: Path, render: Render, size: int = 160) -> Counter[tuple[str, str]]:
    """Write the pictures and one JSONL file per split; return the number of rows by split and vendor."""
    captions = captions_by_concept(packages)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts: Counter[tuple[str, str]] = Counter()
    for vendor in VENDORS:
        (out / "images" / vendor).mkdir(parents=True, exist_ok=True)
        spdx = read_json(packages / "@iconify-json" / vendor / "info.json")["license"]["spdx"]
        svgs = {concept: svg for concept, svg in drawings(packages, vendor).items() if concept in captions}
        uses = Counter(svgs.values())
        for concept in sorted(svgs):
            if uses[svgs[concept]] > 1:  # one family for all families: its captions would contradict each other
                continue
            image = f"images/{vendor}/{concept.lower()}.png"
            render(svgs[concept], size).save(out / image)
            row = {"image": image, "captions": captions[concept], "vendor": vendor, "concept": concept, "license": spdx}
            lines[split_of(concept)].append(json.dumps(row, ensure_ascii=False) + "\n")
            counts[split_of(concept), vendor] += 1
    for split in SPLITS:
        (out / f"{split}.jsonl").write_text("".join(lines[split]), "utf-8")
    return counts


def main() -> None:
    """Fetch, build, and say how many rows there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to build the set in")
    parser.add_argument("--packages", type=Path, help="node_modules folder with the packages; otherwise npm fetches them")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "eve-vl" / "emoji", help="where npm puts them")
    parser.add_argument("--size", type=int, default=160, help="side of the pictures in pixels")
    args = parser.parse_args()
    try:
        render = resvg()
        counts = build(args.packages or fetch(args.cache), args.out, render, args.size)
    except UserError as error:
        sys.exit(f"error: {error}")
    for split in SPLITS:
        print(f"{args.out / split}.jsonl: {', '.join(f'{counts[split, vendor]} {vendor}' for vendor in VENDORS)}")


if __name__ == "__main__":
    main()
