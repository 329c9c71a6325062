"""Build image–text pairs of icons: drawings of 62 sets, named by their designers.

    python examples/icons/build.py icons

Needs npm for the drawings (SVG, 100 MB download) and `pip install resvg-py -e '.[parquet]'`. Takes
minutes on two cores. Each file is written atomically. README.md describes the result.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from eve_vl.utils.console import print_line, progress

sys.path.insert(0, str(Path(__file__).parents[1]))
from iconify import (
    Render,
    Row,
    arguments,
    checksum,
    in_processes,
    positive,
    read_json,
    square,
    svg_of,
    to_png,
    write_parquet,
)

PACKAGES: Final = ("@iconify/json@2.2.535",)  # a fixed version builds the same set everywhere
TRAIN: Final = """
    basil bi boxicons clarity covid f7 fa7-solid flat-color-icons fluent fluent-color fluent-mdl2
    game-icons gis glyphs griddy-icons healthicons heroicons hugeicons icon-park icon-park-outline
    iconamoon iconoir ix keyline-icons line-md majesticons maki map mdi medical-icon meteocons
    mingcute mynaui octicon pepicons-pop pinhead proicons reicon ri si solar streamline
    streamline-flex streamline-freehand-color streamline-kameleon-color streamline-plump-color
    streamline-sharp streamline-sharp-color streamline-ultimate streamline-ultimate-color tabler
    tdesign teenyicons temaki uil uim uis whh wi
"""
SPLITS: Final = {  # sets of each split; small ones first, so errors appear early
    "val": "lets-icons",
    "test_sets": "lucide streamline-flex-color",
    "train": TRAIN,
}
MOST: Final = 2600  # limit per set, so large sets do not dominate
MOST_WORDS: Final = 8
ONLY: Final = {"fluent": re.compile(r"-24-(filled|regular)$")}  # one size of many
COLORS: Final = {False: 16, True: 64}  # palette size by whether the set is coloured (small files)

Draw = Callable[[str], bytes | None]
Each = Callable[[Draw, Iterable[str]], Iterable[bytes | None]]  # like the built-in map


def caption_of(name: str) -> str:
    """Return the words of an icon's name that serve as its caption.

    Numbers (sizes, variants) and Streamline's style mark `remix` are removed. Names with too little
    text and lists of tags give an empty caption.
    """
    words = [word for word in name.split("-") if word != "remix" and not word.isdigit()]
    caption = " ".join(words)
    if len(words) > MOST_WORDS or not re.search("[a-z]{3}", caption):
        return ""
    return caption


@dataclass(frozen=True)
class IconSet:
    """Drawings of a set: SVG by caption, in order of choice."""

    name: str
    license: str
    colors: int
    drawings: Mapping[str, str]

    @classmethod
    def read(cls, packages: Path, name: str) -> "IconSet":
        """Read a set. Raises UserError.

        If icons share a caption, only the first by checksum is taken.
        """
        icons = read_json(packages / "@iconify" / "json" / "json" / f"{name}.json", PACKAGES)
        drawings: dict[str, str] = {}
        for icon in sorted(icons["icons"], key=checksum):
            if icons["icons"][icon].get("hidden"):  # no longer in the set
                continue
            if name in ONLY and not ONLY[name].search(icon):
                continue
            caption = caption_of(icon)
            if caption and caption not in drawings:
                drawings[caption] = svg_of(icons, icon, is_square=False)
        info = icons["info"]
        return cls(name, info["license"]["spdx"], COLORS[info["palette"]], drawings)

    def __len__(self) -> int:
        return min(len(self.drawings), MOST)

    def rows(self, draw: Callable[..., bytes | None], map_rows: Each) -> Iterator[Row]:
        """Render the first MOST drawings that are not empty."""
        captions = list(self.drawings)
        draw_in_colors = partial(draw, colors=self.colors)
        num_rows = 0
        while captions and num_rows < MOST:
            num_missing = MOST - num_rows
            batch = captions[:num_missing]
            captions = captions[num_missing:]
            images = map_rows(draw_in_colors, [self.drawings[caption] for caption in batch])
            for caption, image in zip(batch, images, strict=True):
                if image:
                    num_rows += 1
                    yield {
                        "image": image,
                        "caption": caption,
                        "set": self.name,
                        "license": self.license,
                    }


def draw_png(svg: str, colors: int, render: Render, size: int) -> bytes | None:
    """Return a drawing as square PNG, None if it is empty."""
    image = square(svg, render, size)
    if image is None:
        return None
    return to_png(image, colors)


def build(
    packages: Path, out: Path, render: Render, size: int = 64, map_rows: Each = map
) -> Counter[tuple[str, str]]:
    """Write one Parquet file per split; return row counts by split and licence."""
    draw = partial(draw_png, render=render, size=size)
    counts: Counter[tuple[str, str]] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    for split, names in SPLITS.items():
        sets = [IconSet.read(packages, name) for name in names.split()]
        rows = (row for icons in sets for row in icons.rows(draw, map_rows))
        rows = progress(rows, f"rendering {split}", total=sum(map(len, sets)))
        ordered = sorted(rows, key=lambda row: checksum(row["set"] + row["caption"]))
        write_parquet(ordered, out / f"{split}.parquet")
        counts.update((split, row["license"]) for row in ordered)
    return counts


def main() -> None:
    """Fetch, build and print the number of rows."""
    parser = arguments(__doc__, "icons", size=64)
    parser.add_argument(
        "--processes", type=positive, default=2, help="processes that render (default: %(default)s)"
    )
    args = parser.parse_args()

    def build_icons(packages: Path, render: Render, map_rows: Each) -> Counter[tuple[str, str]]:
        return build(packages, args.out, render, args.size, map_rows)

    counts = in_processes(args, PACKAGES, build_icons)
    for split in SPLITS:
        num_icons = 0
        licenses = []
        for (icon_split, spdx), count in sorted(counts.items()):
            if icon_split == split:
                num_icons += count
                licenses.append(f"{count:,} {spdx}")
        print_line(f"{args.out / split}.parquet: {num_icons:,} icons ({', '.join(licenses)})")


if __name__ == "__main__":
    main()
