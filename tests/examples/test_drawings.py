"""The drawings example builds its set from made-up packages; neither npm nor resvg-py is needed."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from pyarrow import Table, parquet

from eve_vl.builtin.icons import ICONS, PAIRS
from eve_vl.utils.errors import UserError
from helpers.example_builds import load_example

drawings = load_example("drawings")
captions = load_example("drawings", "captions")


def circle(color: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 50, 50), outline=color, width=6)
    return image


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sun-line", ["sun"]),
        ("sun-24-line", ["sun"]),
        ("ceiling-light-fill", ["ceiling", "light"]),
    ],
)
def test_style_marks_of_a_set_are_dropped(name, words):
    icons = []
    for thing in ("sun", "moon", "ceiling-light"):
        icons += [f"{thing}-line", f"{thing}-fill", f"{thing}-24-line"]
    assert captions.Names({"icons": icons}).words(name) == words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chart-line", ["chart", "line"]),  # a thing here
        ("round-table2", ["table"]),
        ("outline", ["outline"]),  # nothing else would be left
    ],
)
def test_words_that_are_no_style_marks_stay(name, words):
    icons = [f"chart-{number}" for number in range(99)]
    names = captions.Names({"icons": [*icons, "chart-line"], "prefixes": {"round": "Round"}})
    assert names.words(name) == words


def test_each_phrase_has_a_right_drawing_among_the_icons_of_eve_try():
    table = Path(__file__).parents[2] / "examples/drawings/phrases.tsv"
    with table.open(encoding="utf-8", newline="") as file:
        phrases = list(csv.DictReader(file, delimiter="\t"))
    assert len({(row["gallery"], row["phrase"]) for row in phrases}) == len(phrases) == 100
    with zipfile.ZipFile(ICONS) as archive:
        shipped = {json.loads(line)["caption"] for line in archive.read(PAIRS).splitlines()}
    for row in phrases:
        assert row["gallery"] == "color" or shipped.intersection(row["accepted"].split("; ")), row


@pytest.mark.parametrize(
    "color", ["red", "orange", "yellow", "green", "blue", "purple", "black", "gray", "pink"]
)
def test_colors_have_their_names(color):
    assert captions.color_of(circle(captions.INKS.get(color, color))) == color


def test_drawings_without_a_main_color_have_none():
    image = Image.new("RGB", (64, 64), "white")
    for column, color in (
        (4, "red"),
        (24, "green"),
        (44, "blue"),
    ):
        image.paste(color, (column, 8, column + 16, 56))
    assert captions.color_of(image) == ""


def test_captions_are_as_people_type_them():
    typed = captions.captions_of(["house", "heart"], True, ["love home"], "buildings", "red")
    assert typed.count("house heart") == 2
    assert {"house heart icon", "a house heart", "house hearts", "heart house"} <= {*typed}
    assert {"house with a heart", "love home", "a red house heart"} <= {*typed}
    assert "house heart buildings" in typed
    assert "no wifi" in captions.captions_of(["wifi", "off"], True, [], "", "")
    assert captions.captions_of(["red", "umbrella"], False, [], "", "blue")[-1] == "umbrella red"


@pytest.mark.parametrize("words", ["an umbrella", "a user", "a unicorn", "a hat"])
def test_articles(words):
    assert captions.article(words.split()[1]) == words


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("fox", "foxes"),
        ("cherry", "cherries"),
        ("key", "keys"),
    ],
)
def test_plurals(singular, plural):
    assert captions.plural(singular) == plural


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def icon_set(prefix: str, colors: dict[str, str], **options: object) -> dict[str, object]:
    info = {"license": {"spdx": "MIT"}, "palette": prefix == "noto"}
    icons = {name: {"body": color} for name, color in colors.items()}
    return {"prefix": prefix, "info": info, "icons": icons, **options}


@pytest.fixture
def packages(tmp_path):
    emoji = {"train": "red", "seen": "blue", "kept": "green"}
    codes = {"1f41c": "train", "1f000": "seen", "1f001": "kept"}
    sets = [
        icon_set(
            "mdi",
            {"bin": "black", "bin-outline": "black", "zzyzx": "black"},
            aliases={"trash": {"parent": "bin"}},
            categories={"FoodDrinks": ["bin"]},
        ),
        icon_set("tabler", {"trash": "black", "bin": "black"}),
        icon_set("lets-icons", {"bin": "black", "trash": "black"}),
    ]
    sets += [icon_set(name, emoji, chars=codes) for name in drawings.EMOJI]
    modules = tmp_path / "node_modules"
    for content in sets:
        write_json(modules / f"@iconify/json/json/{content['prefix']}.json", content)
    collections = {}
    for name in ("lets-icons", "tabler", "mdi", "lucide", "noto", "cbi"):
        category = {"noto": "Emoji", "cbi": "Logos"}.get(name, "UI")
        collections[name] = {"license": {"spdx": "MIT"}, "category": category}
    write_json(modules / "@iconify/json/collections.json", collections)
    entries = [
        {"label": "red ant", "hexcode": "1F41C", "tags": ["dot"], "group": 3},
        {"label": "sky", "hexcode": "1F000", "tags": ["dot"], "group": 3},
        {"label": "grass", "hexcode": "1F001", "tags": ["dot"], "group": 3},
    ]
    write_json(modules / "emojibase-data/en/data.json", entries)

    png = drawings.to_png(circle("black"), 16)
    row = {
        "set": "tabler",
        "caption": "trash",
        "image": png,
        "license": "MIT",
    }
    for split in ("train", "val"):
        parquet.write_table(Table.from_pylist([row]), tmp_path / f"{split}.parquet")
    return tmp_path


def test_the_set_is_built(packages, monkeypatch):
    splits = {"1F41C": "train", "1F000": "val", "1F001": "test_concepts"}
    monkeypatch.setattr(drawings, "split_of", splits.__getitem__)

    def render(svg: str, size: int) -> Image.Image:
        return circle(svg.partition(">")[2].partition("<")[0])

    counts = drawings.build(packages / "node_modules", packages, packages / "out", render)
    icons, emoji, val = (
        parquet.read_table(packages / "out" / f"{split}.parquet").to_pylist()
        for split in ("icons", "emoji", "val")
    )
    assert sum(counts.values()) == len(icons) + len(emoji) + len(val)
    assert {row["set"] for row in icons} == {"mdi", "tabler"}  # neither tests nor logos
    captions_of_icons = [set(row["captions"]) for row in icons]
    assert not any("zzyzx" in texts for texts in captions_of_icons)  # known in one set only
    assert any({"bin", "trash", "bin food"} <= texts for texts in captions_of_icons)
    for row in emoji:
        assert row["concept"] == "1F41C"
        assert {"red ant", "dot", "red ant emoji"} <= {*row["captions"]}
    assert {row["set"] for row in val} == {"lets-icons", *drawings.EMOJI}
    for row in val:
        assert row["set"] != "noto" or "a blue sky" in row["captions"]
    with Image.open(io.BytesIO(emoji[0]["image"])) as image:
        assert image.size == (64, 64)


def test_rendered_icons_must_be_there(tmp_path):
    message = r"train.parquet: no such file; build it with examples/icons/build.py"
    with pytest.raises(UserError, match=message):
        next(drawings.read_rendered(tmp_path))
