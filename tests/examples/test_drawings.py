"""The drawings example builds its set from made-up packages; neither npm nor resvg-py is needed."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from pyarrow import Table, parquet

from eve_vl.builtin.icons import unpack_icons
from eve_vl.utils.errors import UserError
from helpers.example_builds import load_example

drawings = load_example("drawings")
captions = load_example("drawings", "captions")


def picture(color: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 50, 50), outline=color, width=6)
    return image


def test_style_marks_are_dropped_where_a_set_has_them():
    many = {
        "icons": [
            f"{name}-{style}"
            for name in ("sun", "moon", "ceiling-light")
            for style in ("line", "fill", "24-line")
        ]
    }
    names = captions.Names(many)
    assert names.words("sun-line") == ["sun"]
    assert names.words("sun-24-line") == ["sun"]
    assert names.words("ceiling-light-fill") == ["ceiling", "light"]
    few = captions.Names(
        {
            "icons": [f"chart-{number}" for number in range(99)] + ["chart-line"],
            "prefixes": {"round": "Round"},
        }
    )
    assert few.words("chart-line") == ["chart", "line"]  # a thing here
    assert few.words("round-table2") == ["table"]
    assert few.words("outline") == ["outline"]  # nothing else would be left


def test_each_phrase_has_a_right_drawing_among_the_icons_of_eve_try(tmp_path):
    table = Path(__file__).parents[2] / "examples/drawings/phrases.tsv"
    with table.open(encoding="utf-8", newline="") as file:
        phrases = list(csv.DictReader(file, delimiter="\t"))
    assert len({(row["gallery"], row["phrase"]) for row in phrases}) == len(phrases) == 100
    pairs = unpack_icons(tmp_path).read_text(encoding="utf-8").splitlines()
    shipped = {json.loads(row)["caption"] for row in pairs}
    for row in phrases:
        assert row["gallery"] == "color" or shipped.intersection(row["accepted"].split("; ")), row


@pytest.mark.parametrize(
    "color", ["red", "orange", "yellow", "green", "blue", "purple", "black", "gray", "pink"]
)
def test_colors_have_their_names(color):
    assert captions.color_of(picture(captions.INKS.get(color, color))) == color


def test_drawings_without_a_main_color_have_none():
    image = Image.new("RGB", (64, 64), "white")
    for column, color in ((4, "red"), (24, "green"), (44, "blue")):
        image.paste(color, (column, 8, column + 16, 56))
    assert captions.color_of(image) == ""


def test_captions_are_as_people_type_them():
    typed = captions.captions_of(["house", "heart"], True, ["love home"], "buildings", "red")
    assert typed.count("house heart") == 2
    assert {
        "house heart icon",
        "a house heart",
        "house hearts",
        "heart house",
        "house with a heart",
    } <= {*typed}
    assert {"love home", "red house heart", "a red house heart", "house heart buildings"} <= {
        *typed
    }
    assert "no wifi" in captions.captions_of(["wifi", "off"], True, [], "", "")
    assert captions.captions_of(["red", "umbrella"], False, [], "", "blue")[-1] == "umbrella red"
    assert [captions.article(words) for words in ("umbrella", "user", "unicorn", "hat")] == [
        *("an umbrella", "a user", "a unicorn", "a hat")
    ]
    assert [captions.plural(words) for words in ("fox", "cherry", "key", "mail icon")] == [
        "foxes",
        "cherries",
        "keys",
        "mail icons",
    ]


@pytest.fixture
def packages(tmp_path):
    def write(path: str, content: object) -> None:
        file = tmp_path / "node_modules" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    def icons(prefix: str, names: dict[str, str], **options: object) -> None:
        info = {"license": {"spdx": "MIT"}, "palette": prefix == "noto"}
        bodies = {name: {"body": color} for name, color in names.items()}
        write(
            f"@iconify/json/json/{prefix}.json",
            {"prefix": prefix, "info": info, "icons": bodies, **options},
        )

    sets = {
        "lets-icons": "UI",
        "tabler": "UI",
        "mdi": "UI",
        "lucide": "UI",
        "noto": "Emoji",
        "cbi": "Logos",
    }
    write(
        "@iconify/json/collections.json",
        {n: {"license": {"spdx": "MIT"}, "category": c} for n, c in sets.items()},
    )
    named = {"bin": "black", "bin-outline": "black", "zzyzx": "black"}
    icons("mdi", named, aliases={"trash": {"parent": "bin"}}, categories={"FoodDrinks": ["bin"]})
    icons("tabler", {"trash": "black", "bin": "black"})
    icons("lets-icons", {"bin": "black", "trash": "black"})
    for name in drawings.EMOJI:
        icons(
            name,
            {"train": "red", "seen": "blue", "kept": "green"},
            chars={"1f41c": "train", "1f000": "seen", "1f001": "kept"},
        )
    entries = [
        {"label": label, "hexcode": code, "tags": ["dot"], "group": 3}
        for code, label in (("1F41C", "red ant"), ("1F000", "sky"), ("1F001", "grass"))
    ]
    write("emojibase-data/en/data.json", entries)
    rows = [
        {
            "set": "tabler",
            "caption": "trash",
            "image": drawings.to_png(picture("black"), 16),
            "license": "MIT",
        }
    ]
    for split in ("train", "val"):
        parquet.write_table(Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    return tmp_path


def test_the_set_is_built(packages, monkeypatch):
    splits = {"1F41C": "train", "1F000": "val", "1F001": "test_concepts"}
    monkeypatch.setattr(drawings, "split_of", splits.__getitem__)

    def render(svg: str, size: int) -> Image.Image:
        return picture(svg.partition(">")[2].partition("<")[0])

    counts = drawings.build(packages / "node_modules", packages, packages / "out", render)
    rows = {
        split: parquet.read_table(packages / "out" / f"{split}.parquet").to_pylist()
        for split in ("icons", "emoji", "val")
    }
    assert sum(counts.values()) == sum(map(len, rows.values()))
    assert {row["set"] for row in rows["icons"]} == {"mdi", "tabler"}  # neither tests nor logos
    assert all("zzyzx" not in row["captions"] for row in rows["icons"])  # known in one set only
    assert any({"bin", "trash", "bin food"} <= {*row["captions"]} for row in rows["icons"])
    assert {row["concept"] for row in rows["emoji"]} == {"1F41C"}
    assert all({"red ant", "dot", "red ant emoji"} <= {*row["captions"]} for row in rows["emoji"])
    assert {row["set"] for row in rows["val"]} == {"lets-icons", *drawings.EMOJI}
    assert all("a blue sky" in row["captions"] for row in rows["val"] if row["set"] == "noto")
    with Image.open(io.BytesIO(rows["emoji"][0]["image"])) as image:
        assert image.size == (64, 64)


def test_rendered_icons_must_be_there(tmp_path):
    with pytest.raises(
        UserError, match=r"train.parquet: no such file; build it with examples/icons/build.py"
    ):
        next(drawings.read_rendered(tmp_path))
