"""Build image–text pairs of emoji: drawings in three styles, with names and tags.

    python examples/emoji/build.py emoji

Needs npm for the drawings (SVG) and `pip install resvg-py` for rendering. README.md describes the
result.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import write_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from iconify import (
    SPLITS,
    Render,
    arguments,
    concept_of,
    emoji_names,
    fetch,
    read_json,
    resvg,
    split_of,
    svg_of,
)

VENDORS: Final = ("noto", "twemoji", "fluent-emoji-flat")
PACKAGES: Final = (  # fixed versions build the same set everywhere
    "@iconify-json/noto@1.2.9",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojibase-data@17.0.0",
)


def captions_by_concept(packages: Path) -> dict[str, list[str]]:
    """Return the captions of every concept in Unicode order.

    Captions are the label, and the label with its tags.
    """
    captions = {}
    for concept, (label, tags) in emoji_names(packages, PACKAGES).items():
        captions[concept] = [label]
        if tags:
            captions[concept].append(f"{label}: {', '.join(tags)}")
    return captions


def drawings(packages: Path, vendor: str) -> dict[str, str]:
    """Return a vendor's SVG drawings by concept, each in a square view."""
    folder = packages / "@iconify-json" / vendor
    icons = read_json(folder / "icons.json", PACKAGES)
    names = read_json(folder / "chars.json", PACKAGES)
    svgs = {}
    for hexcode, name in names.items():
        if name in icons["icons"]:  # others are rotated or mirrored copies
            svgs[concept_of(hexcode)] = svg_of(icons, name, is_square=True)
    return svgs


def build(packages: Path, out: Path, render: Render, size: int = 160) -> Counter[tuple[str, str]]:
    """Write images and a JSONL file per split; return row counts by split and vendor."""
    captions = captions_by_concept(packages)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts: Counter[tuple[str, str]] = Counter()
    for vendor in VENDORS:
        (out / "images" / vendor).mkdir(parents=True, exist_ok=True)
        info = read_json(packages / "@iconify-json" / vendor / "info.json", PACKAGES)
        svgs = drawings(packages, vendor)
        concepts = sorted(svgs.keys() & captions.keys())
        uses = Counter(svgs[concept] for concept in concepts)
        for concept in concepts:
            if uses[svgs[concept]] > 1:  # one drawing for several emoji has contradicting captions
                continue
            image = f"images/{vendor}/{concept.lower()}.png"
            render(svgs[concept], size).save(out / image)
            row = {
                "image": image,
                "captions": captions[concept],
                "vendor": vendor,
                "concept": concept,
                "license": info["license"]["spdx"],
            }
            split = split_of(concept)
            lines[split].append(json.dumps(row, ensure_ascii=False) + "\n")
            counts[split, vendor] += 1
    for split in SPLITS:
        write_file(out / f"{split}.jsonl", "".join(lines[split]))
    return counts


def main() -> None:
    """Fetch, build and print the number of rows."""
    args = arguments(__doc__, "emoji", size=160).parse_args()
    try:
        render = resvg()
        counts = build(args.packages or fetch(args.cache, PACKAGES), args.out, render, args.size)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    for split in SPLITS:
        counts_of_vendors = [f"{counts[split, vendor]} {vendor}" for vendor in VENDORS]
        print_line(f"{args.out / split}.jsonl: {', '.join(counts_of_vendors)}")


if __name__ == "__main__":
    main()
