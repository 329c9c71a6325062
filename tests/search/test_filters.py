"""Folders and columns filter a search."""

from pathlib import Path
from typing import Any

import pytest

from eve_vl.search.index import Index
from eve_vl.utils.errors import UserError
from helpers.indices import write_photos
from helpers.source_files import write_jsonl


def image_row(number: int) -> dict[str, Any]:
    parity = "odd" if number % 2 else "even"
    image = f"photos/new/{number:02}.png"
    return {
        "image": image,
        "caption": f"red {number}",
        "set": parity,
        "x": number,
    }


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Index:
    """Images in two folders; those of `new` are also rows of a table with columns."""
    folder = tmp_path_factory.mktemp("filters")
    photos = write_photos(folder / "photos")
    table = write_jsonl(folder / "table.jsonl", map(image_row, range(8, 20)))
    return model.index([photos, table], folder / "index")


def names(hits) -> list[str]:
    return sorted(Path(hit.name).stem for hit in hits)


def test_hits_lie_in_the_folder_and_have_the_values_of_columns(index):
    photos = index.database.folder.with_name("photos")
    assert names(index.search("red", folder=photos / "old")) == [f"{n:02}" for n in range(8)]
    odd = range(9, 20, 2)
    assert names(index.search("red", where={"set": "odd"})) == [f"{number:02}" for number in odd]
    assert names(index.search("red", where={"set": "odd", "x": "11"})) == ["11"]
    captions = index.search("red", where={"set": "odd"}, captions=True)
    assert {hit.name for hit in captions} == {f"red {number}" for number in odd}
    where = {"x": "11"}
    (hit,) = index.search(
        "red",
        folder=photos / "new",
        where=where,
        captions=True,
    )
    assert hit.images[0] == str(photos / "new" / "11.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "other"}, "no image of the index has folder other; its folders: "),
        ({"where": {"sett": "odd"}}, r"no column 'sett'; did you mean 'set'\?"),
        ({"where": {"set": "red"}}, "no image of the index has set = red"),
        ({"where": {"x": "7"}, "captions": True}, "no caption of the index has x = 7"),
    ],
)
def test_filter_that_leaves_nothing_is_named(index, options, message):
    with pytest.raises(UserError, match=message):
        index.search("red", **options)


def test_image_of_two_folders_is_named_by_the_one_that_is_searched(model, photos, folder):
    twin = photos / "old" / "00.png"
    copy = photos / "new" / "copy.png"
    copy.write_bytes(twin.read_bytes())
    index = model.index(photos, folder)
    hits = {hit.name: hit for hit in index.search("red", folder=photos / "new")}
    assert {Path(name).parent for name in hits} == {photos / "new"}
    assert hits[str(copy)].images == (str(copy), str(twin))
    assert index.image(hits[str(copy)].id).where == str(copy)


def test_one_row_about_an_image_must_have_all_values(eve, model, photos, folder, tmp_path):
    """As in tables with a row per caption. Columns that the first row lacks count, and True is
    stored as true."""
    size = 'größe "1\\'
    rows: list[dict[str, Any]] = []
    for number in range(6):
        row = {"image": f"photos/old/0{number // 2}.png", "caption": f"red {number}"}
        rows.append(
            {
                **row,
                "who": number % 2,
                size: number // 2,
            }
        )
    rows.append({"image": "photos/new/10.png", "is_late": True})
    rows.append({"image": "photos/new/10.png", "x.y": "a'b%"})
    table = write_jsonl(tmp_path / "table.jsonl", rows)
    index = model.index(table, folder)
    assert sorted(index.columns()) == [size, "is_late", "who", "x.y"]

    def search(where: dict[str, str], captions: bool = False) -> list[str]:
        return names(index.search("red", where=where, captions=captions))

    every_image = ["00", "01", "02"]
    assert search({"who": "0"}) == search({"who": "1"}) == every_image
    assert search({"who": "1"}, captions=True) == ["red 1", "red 3", "red 5"]
    assert search({"who": "1", size: "1"}) == ["01"]
    assert search({"who": "1", size: "1"}, captions=True) == ["red 3"]
    assert search({"is_late": "true"}) == search({"x.y": "a'b%"}) == ["10"]
    with pytest.raises(UserError, match="no caption of the index has is_late = true"):
        search({"is_late": "true"}, captions=True)

    rows[1]["who"] = 2
    rows[3]["who"] = 0
    write_jsonl(table, rows)
    index = model.index((), folder)
    assert search({"who": "0"}) == every_image
    assert search({"who": "1"}) == ["02"]
    assert search({"who": "2"}) == ["00"]
    output = eve("search", "index", "red", "--where", "who=0", f"{size}=1").stdout
    assert len(output.splitlines()) == 1
