"""Build image–text pairs of emoji: three styles of drawing, and the names and tags of what they show.

    python examples/emoji/build.py emoji

Needs npm, which fetches the drawings (SVG), and `pip install resvg-py`, which renders them. README.md beside this file
tells what comes out.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from eve_vl.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from iconify import Render, arguments, fetch, read_json, resvg, svg_of

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


def concept_of(hexcode: str) -> str:
    """Return code points joined by `-`, without the mark that asks for a coloured image."""
    return hexcode.upper().replace("-FE0F", "")


def captions_by_concept(packages: Path) -> dict[str, list[str]]:
    """Return the label, and the label with its tags if it has any, of every concept of the set, in Unicode's order."""
    captions: dict[str, list[str]] = {}
    for entry in read_json(packages / "emojibase-data" / "en" / "data.json", PACKAGES):
        concept = concept_of(entry["hexcode"])
        if entry.get("group") in (None, COMPONENT, FLAGS) or KEYCAP in concept:  # no group: letters, the halves of flags
            continue
        label, tags = entry["label"], entry.get("tags", [])
        captions[concept] = [label, f"{label}: {', '.join(tags)}"] if tags else [label]
    return captions


def drawings(packages: Path, vendor: str) -> dict[str, str]:
    """Return the SVG, with a square view, of every concept that a vendor has drawn."""
    folder = packages / "@iconify-json" / vendor
    icons = read_json(folder / "icons.json", PACKAGES)
    names = read_json(folder / "chars.json", PACKAGES)
    return {
        concept_of(hexcode): svg_of(icons, name, is_square=True)
        for hexcode, name in names.items()
        if name in icons["icons"]  # the rest are turned or mirrored copies of others
    }


def split_of(concept: str) -> str:
    """Return the split of a concept. It depends on nothing else, so it stays where it is when new emoji appear."""
    share = int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) / 2**32
    if share < TEST_SHARE:
        return "test_concepts"
    return "val" if share < TEST_SHARE + VAL_SHARE else "train"


def build(packages: Path, out: Path, render: Render, size: int = 160) -> Counter[tuple[str, str]]:
    """Write the images and one JSONL file per split; return the number of rows by split and vendor."""
    captions = captions_by_concept(packages)
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    counts: Counter[tuple[str, str]] = Counter()
    for vendor in VENDORS:
        (out / "images" / vendor).mkdir(parents=True, exist_ok=True)
        spdx = read_json(packages / "@iconify-json" / vendor / "info.json", PACKAGES)["license"]["spdx"]
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
    args = arguments(__doc__, "emoji", size=160).parse_args()
    try:
        render = resvg()
        counts = build(args.packages or fetch(args.cache, PACKAGES), args.out, render, args.size)
    except UserError as error:
        sys.exit(f"error: {error}")
    for split in SPLITS:
        print(f"{args.out / split}.jsonl: {', '.join(f'{counts[split, vendor]} {vendor}' for vendor in VENDORS)}")


if __name__ == "__main__":
    main()
