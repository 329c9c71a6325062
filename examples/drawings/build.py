"""Build drawings of icons and emoji with captions as people type them.

    python examples/drawings/build.py drawings --icons icons

The drawings of the sets in examples/icons come from its files, all others are rendered. Needs npm
for the drawings (SVG, 100 MB download) and `pip install resvg-py -e '.[parquet]'`. Takes minutes on
two cores. README.md describes the result.
"""

import hashlib
import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from captions import (
    BRANDS,
    INKS,
    MOST_WORDS,
    STYLES,
    TOPICS,
    Names,
    captions_of,
    color_of,
    words_of,
)
from iconify import (
    Render,
    Row,
    arguments,
    checksum,
    concept_of,
    emoji_names,
    in_processes,
    positive,
    pyarrow_parquet,
    read_json,
    split_of,
    square,
    svg_of,
    to_png,
    write_parquet,
)

PACKAGES: Final = (
    "@iconify/json@2.2.535",
    "emojibase-data@17.0.0",
)  # fixed versions build the same set everywhere
LICENSES: Final = words_of(
    "Apache-2.0 BSD-3-Clause CC-BY-3.0 CC-BY-4.0 CC0-1.0 ISC MIT MPL-2.0 OFL-1.1 Unlicense"
)
CATEGORIES: Final = ("Emoji", "Logos", "Programming")  # left out; emoji have captions of their own
VAL: Final = "lets-icons"
LEFT_OUT: Final = words_of(
    # test sets and sets derived from them
    "lucide lucide-lab feather vadivam streamline-flex-color"
    # brands, flags, spinners, symbols of one trade
    " academicons bpmn cif circle-flags fa-brands fa6-brands fad flag flagpack geo svg-spinners"
    # names are glued words or begin with a category
    " formkit streamline-block streamline-pixel whh"
    # emoji without code points
    " dinkie-icons fluent-emoji"
    # older versions of sets that are taken
    " bx bxs fa-regular fa-solid fa6-regular heroicons-outline heroicons-solid material-symbols-light pepicons"
)
NAMES_ONLY: Final = ("meteor-icons",)  # a quarter of its drawings equal lucide's
EMOJI: Final = (
    *("noto", "twemoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"),
    *(
        "noto-v1",
        "emojione",
        "emojione-monotone",
    ),  # without code points, so after those that have the same names
)
MOST: Final = 600  # limit per rendered set, so large sets do not dominate
STYLES_PER_NAME: Final = 2  # drawings with one name in a set
MOST_SYNONYMS, MOST_TAGS = 4, 5
COLORS: Final = {False: 16, True: 64}  # palette size by whether the set is coloured (small files)
LEAST_SETS: Final = 2  # sets in which each word of a name occurs: no brands, no glued words

Read = Callable[[str], Any]
Synonyms = Mapping[str, set[str]]


@dataclass(frozen=True)
class Drawing:
    """A drawing as SVG or, already rendered, as PNG, and what to say about it."""

    content: str | bytes
    captions: Callable[[str], list[str]]  # by colour
    name: str
    set: str
    license: str
    is_colored: bool
    concept: str = ""  # of emoji

    @property
    def key(self) -> str:
        """Text whose checksum decides order, ink and choice."""
        content = self.content.encode() if isinstance(self.content, str) else self.content
        return f"{self.set} {self.name} {hashlib.sha1(content).hexdigest()}"


def usual(words: list[str], known: Counter[str]) -> bool:
    """Return whether words can be a caption.

    A caption has few words and some letters, and does not start with a brand. Each word occurs in
    several sets.
    """
    is_short = 0 < len(words) <= MOST_WORDS and words[0] not in BRANDS
    return (
        is_short
        and bool(re.search("[a-z]{3}", " ".join(words)))
        and all(known[word] >= LEAST_SETS for word in words)
    )


def vocabulary(sets: Mapping[str, Any]) -> Counter[str]:
    """Return the number of sets in which a word occurs."""
    return Counter(
        word
        for icons in sets.values()
        for word in {word for name in icons["icons"] for word in name.split("-")}
    )


def plain_names(icons: Mapping[str, Any]) -> set[str]:
    """Return the names of a set without style marks."""
    names = Names(icons)
    return {" ".join(names.words(icon)) for icon in icons["icons"]}


def synonyms(sets: Mapping[str, Any], known: Counter[str]) -> dict[str, set[str]]:
    """Return other names of a name: aliases that sets list, in both directions."""
    found: dict[str, set[str]] = defaultdict(set)
    for icons in sets.values():
        names = Names(icons)
        for alias, entry in icons.get("aliases", {}).items():
            one, other = names.words(alias), names.words(entry["parent"])
            is_style = STYLES.union(("baseline", "outline")).intersection(one + other)
            if (
                set(entry) == {"parent"}
                and not is_style
                and one != other
                and usual(one, known)
                and usual(other, known)
            ):
                found[" ".join(one)].add(" ".join(other))
                found[" ".join(other)].add(" ".join(one))
    return found


def topic_of(title: str) -> str:
    """Return the topic that a category's title begins with (FoodDrinks → food).

    Returns an empty string for other titles.
    """
    first = re.findall("[A-Z]?[a-z]+", title)[:1]
    return first[0].lower() if first and first[0].lower() in TOPICS else ""


@dataclass(frozen=True)
class Captions:
    """What is known of all names."""

    sets: Counter[str]
    """Number of sets in which a word occurs."""
    names: Container[str]
    """Usual names, without style marks."""
    synonyms: Synonyms

    def drawings(
        self, icons: Mapping[str, Any], contents: Iterable[tuple[str, str | bytes]]
    ) -> list[Drawing]:
        """Return the drawings of a set, the first STYLES_PER_NAME of each name.

        contents: name and SVG or PNG.
        """
        names, info, uses, found = Names(icons), icons["info"], Counter[str](), list[Drawing]()
        titles = icons.get("categories") or {}
        topics = {
            " ".join(names.words(icon)): topic_of(title)
            for title, each in titles.items()
            for icon in each
        }
        for icon, content in contents:
            words = names.words(icon)
            own = " ".join(words)
            if usual(words, self.sets) and uses[own] < STYLES_PER_NAME:
                uses[own] += 1
                same = tuple(sorted(self.synonyms.get(own, ()), key=checksum)[:MOST_SYNONYMS])
                captions = partial(
                    captions_of,
                    words,
                    " ".join(words[:-1]) in self.names,
                    same,
                    topics.get(own, ""),
                )
                found.append(
                    Drawing(
                        content,
                        captions,
                        own,
                        icons["prefix"],
                        info["license"]["spdx"],
                        info["palette"],
                    )
                )
        return found


def svgs_of(icons: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and SVG of a set's icons, ordered by checksum.

    Hidden icons are left out because the set no longer shows them.
    """
    for icon in sorted(icons["icons"], key=checksum):
        if not icons["icons"][icon].get("hidden"):
            yield icon, svg_of(icons, icon, is_square=True)


def emoji_of(
    name: str, icons: Mapping[str, Any], labels: Mapping[str, Any], concepts: Mapping[str, str]
) -> list[Drawing]:
    """Return the drawings of a set of emoji whose concept is known.

    concepts: by name, for sets without code points.
    """
    info, chars = icons["info"], icons.get("chars") or {}
    pairs = ((concept_of(hexcode), icon) for hexcode, icon in chars.items())
    pairs = (
        pairs if chars else ((concepts[icon], icon) for icon in icons["icons"] if icon in concepts)
    )
    found = {
        concept: icon for concept, icon in pairs if concept in labels and icon in icons["icons"]
    }
    uses = Counter(icons["icons"][icon]["body"] for icon in found.values())
    drawings = list[Drawing]()
    for concept, icon in sorted(found.items()):
        label, tags = labels[concept]
        words = re.sub(r"[^\w\s-]", "", label.lower()).split()
        if uses[icons["icons"][icon]["body"]] > 1 or len(words) > MOST_WORDS:
            continue
        own = " ".join(words)
        same = (
            *[tag for tag in tags if re.fullmatch("[a-z -]{3,}", tag)][:MOST_TAGS],
            f"{own} emoji",
        )
        captions, svg = (
            partial(captions_of, words, False, same, ""),
            svg_of(icons, icon, is_square=True),
        )
        drawings.append(
            Drawing(svg, captions, own, name, info["license"]["spdx"], info["palette"], concept)
        )
    return drawings


def row_of(drawing: Drawing, render: Render, size: int) -> Row | None:
    """Return a row, None for an empty drawing.

    A fifth of the black drawings gets an ink, a tenth is called black.
    """
    chance = int(checksum(drawing.key)[:8], 16) / 2**32
    is_inked, color = (
        not drawing.is_colored and chance < 0.2,
        "black" if 0.2 <= chance < 0.3 else "",
    )
    if isinstance(drawing.content, str):
        image = square(drawing.content, render, size)
        if image is None:
            return None
    else:
        image = Image.open(io.BytesIO(drawing.content))
    if drawing.is_colored:
        color = color_of(image)
    if is_inked:
        color = list(INKS)[int(chance * 1e6) % len(INKS)]
        image = ImageOps.colorize(image.convert("L"), INKS[color], "white")
    png = (
        drawing.content
        if isinstance(drawing.content, bytes) and not is_inked
        else to_png(image, COLORS[drawing.is_colored])
    )
    captions = drawing.captions(color)
    return {
        "image": png,
        "captions": captions,
        "set": drawing.set,
        "license": drawing.license,
        "concept": drawing.concept,
    }


def read_drawings(read: Read, rendered: Iterable[Row]) -> dict[str, list[Drawing]]:
    """Return the drawings of icons for each split. rendered: rows of examples/icons."""
    infos = read("@iconify/json/collections.json")
    chosen = [
        name
        for name, info in infos.items()
        if name not in LEFT_OUT
        and info["license"].get("spdx") in LICENSES
        and info.get("category") not in CATEGORIES
    ]
    sets = {
        name: read(f"@iconify/json/json/{name}.json") for name in progress(chosen, "reading sets")
    }
    known = vocabulary(sets)
    uses = Counter(name for icons in sets.values() for name in plain_names(icons))
    names = {name for name, count in uses.items() if count >= LEAST_SETS}
    about = Captions(
        known, names, synonyms({name: icons for name, icons in sets.items() if name != VAL}, known)
    )
    images: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for row in rendered:
        images[row["set"]].append((row["caption"].replace(" ", "-"), row["image"]))
    splits: dict[str, list[Drawing]] = {"emoji": [], "val": [], "icons": []}
    for name, icons in sets.items():
        if name in NAMES_ONLY:
            continue
        own = (
            about.drawings(icons, images[name])
            if name in images
            else about.drawings(icons, svgs_of(icons))[:MOST]
        )
        splits["val" if name == VAL else "icons"] += own
    return splits


def read_emoji(packages: Path) -> Iterator[Drawing]:
    """Yield the drawings of all emoji."""
    labels, concepts = emoji_names(packages, PACKAGES), dict[str, str]()
    for name in EMOJI:
        icons = read_json(packages / "@iconify" / "json" / "json" / f"{name}.json", PACKAGES)
        concepts |= {
            icon: concept_of(hexcode) for hexcode, icon in (icons.get("chars") or {}).items()
        }
        yield from emoji_of(name, icons, labels, concepts)


def read_rendered(folder: Path) -> Iterator[Row]:
    """Yield the rows of examples/icons for training and validation. Raises UserError."""
    parquet = pyarrow_parquet()
    for path in (folder / "train.parquet", folder / "val.parquet"):
        if not path.is_file():
            raise UserError(f"{path}: no such file; build it with examples/icons/build.py")
        yield from parquet.read_table(path).to_pylist()


def build(
    packages: Path, rendered: Path, out: Path, render: Render, size: int = 64, each: Any = map
) -> Counter[tuple[str, str, str]]:
    """Write one Parquet file per split; return row counts by split, set and licence."""
    splits = read_drawings(
        lambda path: read_json(packages / path, PACKAGES), read_rendered(rendered)
    )
    for drawing in read_emoji(packages):
        if (split := split_of(drawing.concept)) != "test_concepts":
            splits["emoji" if split == "train" else split].append(drawing)
    counts: Counter[tuple[str, str, str]] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    for split, drawings in splits.items():
        drawings.sort(key=lambda drawing: checksum(drawing.key))  # mixes the sets
        rows = each(partial(row_of, render=render, size=size), drawings)
        kept = [row for row in progress(rows, f"rendering {split}", total=len(drawings)) if row]
        write_parquet(kept, out / f"{split}.parquet")
        counts.update((split, row["set"], row["license"]) for row in kept)
    return counts


def main() -> None:
    """Fetch, build and print the number of rows by set."""
    parser = arguments(__doc__, "icons", size=64)
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder written by examples/icons/build.py"
    )
    parser.add_argument(
        "--processes", type=positive, default=2, help="processes that render (default: %(default)s)"
    )
    args = parser.parse_args()

    def make(packages, render, each):
        return build(packages, args.icons, args.out, render, args.size, each)

    counts = in_processes(args, PACKAGES, make)
    for (split, name, spdx), count in sorted(counts.items()):
        print_line(f"{split}  {name}  {spdx}  {count:,}")
    for split in ("icons", "emoji", "val"):
        print_line(
            f"{args.out / split}.parquet: {sum(n for key, n in counts.items() if key[0] == split):,} drawings"
        )


if __name__ == "__main__":
    main()
