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

PACKAGES: Final = (  # fixed versions build the same set everywhere
    "@iconify/json@2.2.535",
    "emojibase-data@17.0.0",
)
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
    " bx bxs fa-regular fa-solid fa6-regular heroicons-outline heroicons-solid"
    " material-symbols-light pepicons"
)
NAMES_ONLY: Final = ("meteor-icons",)  # a quarter of its drawings equal lucide's
EMOJI: Final = (
    "noto",
    "twemoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    # without code points, so after those that have the same names
    "noto-v1",
    "emojione",
    "emojione-monotone",
)
MOST: Final = 600  # limit per rendered set, so large sets do not dominate
STYLES_PER_NAME: Final = 2  # drawings with one name in a set
MOST_SYNONYMS: Final = 4
MOST_TAGS: Final = 5
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


def usual(words: list[str], num_sets: Counter[str]) -> bool:
    """Return whether words can be a caption.

    A caption has few words and some letters, and does not start with a brand. Each word occurs in
    several sets.

    num_sets: the number of sets in which a word occurs.
    """
    if not 0 < len(words) <= MOST_WORDS or words[0] in BRANDS:
        return False
    if not re.search("[a-z]{3}", " ".join(words)):
        return False
    return all(num_sets[word] >= LEAST_SETS for word in words)


def vocabulary(sets: Mapping[str, Any]) -> Counter[str]:
    """Return the number of sets in which a word occurs."""
    num_sets: Counter[str] = Counter()
    for icons in sets.values():
        words: set[str] = set()
        for name in icons["icons"]:
            words.update(name.split("-"))
        num_sets.update(words)
    return num_sets


def plain_names(icons: Mapping[str, Any]) -> set[str]:
    """Return the names of a set without style marks."""
    names = Names(icons)
    return {" ".join(names.words(icon)) for icon in icons["icons"]}


def synonyms(sets: Mapping[str, Any], num_sets: Counter[str]) -> dict[str, set[str]]:
    """Return the synonyms of names: aliases that sets list, in both directions."""
    style_marks = STYLES | {"baseline", "outline"}
    synonyms_by_name: dict[str, set[str]] = defaultdict(set)
    for icons in sets.values():
        names = Names(icons)
        for alias, entry in icons.get("aliases", {}).items():
            if set(entry) != {"parent"}:  # a rotated or mirrored copy
                continue
            words = names.words(alias)
            parent_words = names.words(entry["parent"])
            if words == parent_words or style_marks.intersection(words + parent_words):
                continue
            if usual(words, num_sets) and usual(parent_words, num_sets):
                name = " ".join(words)
                parent = " ".join(parent_words)
                synonyms_by_name[name].add(parent)
                synonyms_by_name[parent].add(name)
    return synonyms_by_name


def topic_of(title: str) -> str:
    """Return the topic that a category's title begins with (FoodDrinks → food).

    Returns an empty string for other titles.
    """
    first_word = re.search("[A-Z]?[a-z]+", title)
    if first_word is None or first_word[0].lower() not in TOPICS:
        return ""
    return first_word[0].lower()


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
        names = Names(icons)
        topics = topics_of(icons, names)
        uses: Counter[str] = Counter()
        drawings = []
        for icon, content in contents:
            words = names.words(icon)
            name = " ".join(words)
            if not usual(words, self.sets) or uses[name] == STYLES_PER_NAME:
                continue
            uses[name] += 1
            is_thing = " ".join(words[:-1]) in self.names
            name_synonyms = sorted(self.synonyms.get(name, ()), key=checksum)[:MOST_SYNONYMS]
            drawing = Drawing(
                content=content,
                captions=partial(captions_of, words, is_thing, name_synonyms, topics.get(name, "")),
                name=name,
                set=icons["prefix"],
                license=icons["info"]["license"]["spdx"],
                is_colored=icons["info"]["palette"],
            )
            drawings.append(drawing)
        return drawings


def topics_of(icons: Mapping[str, Any], names: Names) -> dict[str, str]:
    """Return the topic of each name in a set's categories, an empty string for other titles."""
    topics = {}
    for title, icons_of_category in (icons.get("categories") or {}).items():
        for icon in icons_of_category:
            topics[" ".join(names.words(icon))] = topic_of(title)
    return topics


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
    icon_by_concept = {}
    for concept, icon in concepts_of_icons(icons, concepts):
        if concept in labels and icon in icons["icons"]:
            icon_by_concept[concept] = icon
    uses = Counter(icons["icons"][icon]["body"] for icon in icon_by_concept.values())

    drawings = []
    for concept, icon in sorted(icon_by_concept.items()):
        label, tags = labels[concept]
        words = re.sub(r"[^\w\s-]", "", label.lower()).split()
        if uses[icons["icons"][icon]["body"]] > 1 or len(words) > MOST_WORDS:
            continue
        emoji_name = " ".join(words)
        plain_tags = [tag for tag in tags if re.fullmatch("[a-z -]{3,}", tag)]
        emoji_synonyms = [*plain_tags[:MOST_TAGS], f"{emoji_name} emoji"]
        drawing = Drawing(
            content=svg_of(icons, icon, is_square=True),
            captions=partial(captions_of, words, False, emoji_synonyms, ""),
            name=emoji_name,
            set=name,
            license=icons["info"]["license"]["spdx"],
            is_colored=icons["info"]["palette"],
            concept=concept,
        )
        drawings.append(drawing)
    return drawings


def concepts_of_icons(
    icons: Mapping[str, Any], concepts: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Return concept and name of a set's icons: by code points, or by `concepts` without them."""
    chars = icons.get("chars")
    if chars:
        return [(concept_of(hexcode), icon) for hexcode, icon in chars.items()]
    return [(concepts[icon], icon) for icon in icons["icons"] if icon in concepts]


def row_of(drawing: Drawing, render: Render, size: int) -> Row | None:
    """Return a row, None for an empty drawing.

    A fifth of the black drawings gets an ink, a tenth is called black.
    """
    chance = int(checksum(drawing.key)[:8], 16) / 2**32
    png = b""
    if isinstance(drawing.content, bytes):
        png = drawing.content
        image = Image.open(io.BytesIO(png))
    else:
        image = square(drawing.content, render, size)
        if image is None:
            return None

    color = ""
    if drawing.is_colored:
        color = color_of(image)
    elif chance < 0.2:
        color = list(INKS)[int(chance * 1e6) % len(INKS)]
        image = ImageOps.colorize(image.convert("L"), INKS[color], "white")
        png = b""  # rendered with another colour
    elif chance < 0.3:
        color = "black"
    return {
        "image": png or to_png(image, COLORS[drawing.is_colored]),
        "captions": drawing.captions(color),
        "set": drawing.set,
        "license": drawing.license,
        "concept": drawing.concept,
    }


def read_drawings(read: Read, rendered: Iterable[Row]) -> dict[str, list[Drawing]]:
    """Return the drawings of icons for each split. rendered: rows of examples/icons."""
    sets = read_sets(read)
    captions = captions_from(sets)
    images: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for row in rendered:
        images[row["set"]].append((row["caption"].replace(" ", "-"), row["image"]))

    splits: dict[str, list[Drawing]] = {"emoji": [], "val": [], "icons": []}
    for name, icons in sets.items():
        if name in NAMES_ONLY:
            continue
        if name in images:
            drawings = captions.drawings(icons, images[name])
        else:
            drawings = captions.drawings(icons, svgs_of(icons))[:MOST]
        split = "val" if name == VAL else "icons"
        splits[split] += drawings
    return splits


def read_sets(read: Read) -> dict[str, Any]:
    """Return the content of all sets of icons that may be used, by name."""
    names = []
    for name, info in read("@iconify/json/collections.json").items():
        is_free = info["license"].get("spdx") in LICENSES
        if is_free and name not in LEFT_OUT and info.get("category") not in CATEGORIES:
            names.append(name)
    return {
        name: read(f"@iconify/json/json/{name}.json") for name in progress(names, "reading sets")
    }


def captions_from(sets: Mapping[str, Any]) -> Captions:
    """Return what is known of the names of all sets."""
    uses: Counter[str] = Counter()
    for icons in sets.values():
        uses.update(plain_names(icons))
    usual_names = {name for name, count in uses.items() if count >= LEAST_SETS}
    num_sets = vocabulary(sets)
    training_sets = {name: icons for name, icons in sets.items() if name != VAL}
    return Captions(num_sets, usual_names, synonyms(training_sets, num_sets))


def read_emoji(packages: Path) -> Iterator[Drawing]:
    """Yield the drawings of all emoji."""
    labels = emoji_names(packages, PACKAGES)
    concepts: dict[str, str] = {}
    for name in EMOJI:
        icons = read_json(packages / "@iconify" / "json" / "json" / f"{name}.json", PACKAGES)
        for hexcode, icon in (icons.get("chars") or {}).items():
            concepts[icon] = concept_of(hexcode)
        yield from emoji_of(name, icons, labels, concepts)


def read_rendered(folder: Path) -> Iterator[Row]:
    """Yield the rows of examples/icons for training and validation. Raises UserError."""
    parquet = pyarrow_parquet()
    for path in (folder / "train.parquet", folder / "val.parquet"):
        if not path.is_file():
            raise UserError(f"{path}: no such file; build it with examples/icons/build.py")
        yield from parquet.read_table(path).to_pylist()


def build(
    packages: Path, rendered: Path, out: Path, render: Render, size: int = 64, map_rows: Any = map
) -> Counter[tuple[str, str, str]]:
    """Write one Parquet file per split; return row counts by split, set and licence."""
    splits = read_drawings(
        lambda path: read_json(packages / path, PACKAGES), read_rendered(rendered)
    )
    for drawing in read_emoji(packages):
        split = split_of(drawing.concept)
        if split == "train":
            splits["emoji"].append(drawing)
        elif split == "val":
            splits["val"].append(drawing)
    counts: Counter[tuple[str, str, str]] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    for split, drawings in splits.items():
        drawings.sort(key=lambda drawing: checksum(drawing.key))  # mixes the sets
        rows = map_rows(partial(row_of, render=render, size=size), drawings)
        rows = progress(rows, f"rendering {split}", total=len(drawings))
        visible_rows = [row for row in rows if row is not None]
        write_parquet(visible_rows, out / f"{split}.parquet")
        counts.update((split, row["set"], row["license"]) for row in visible_rows)
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

    def build_drawings(
        packages: Path, render: Render, map_rows: Any
    ) -> Counter[tuple[str, str, str]]:
        return build(packages, args.icons, args.out, render, args.size, map_rows)

    counts = in_processes(args, PACKAGES, build_drawings)
    num_drawings: Counter[str] = Counter()
    for (split, name, spdx), count in sorted(counts.items()):
        print_line(f"{split}  {name}  {spdx}  {count:,}")
        num_drawings[split] += count
    for split in ("icons", "emoji", "val"):
        print_line(f"{args.out / split}.parquet: {num_drawings[split]:,} drawings")


if __name__ == "__main__":
    main()
