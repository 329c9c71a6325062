"""Fingerprints of sources: equal for copies, different for changed data."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import Subset

from eve_vl.data import fingerprint
from eve_vl.data.opening import open_sources
from eve_vl.data.readers.open_source import open_source
from eve_vl.synthetic.scenes.rows import ScenePairs
from helpers.captioned_folders import redraw, write_data
from helpers.tars import write_tar_of
from helpers.twins import tiny_config


def identity_of(source: Any) -> str:
    return fingerprint.short(fingerprint.of_sources([("any", source)]))


def identity(path: Path) -> str:
    return identity_of(open_source(path))


FORMS = ("train", "rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "a.tar")


def write_forms(folder: Path) -> None:
    """Write the same rows in every form; images are in files, in shards and in cells."""
    write_data(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (folder / "rows.json").write_text(json.dumps(rows))
    lines = [f'{row["image"]},"{row["caption"]}"' for row in rows]
    (folder / "rows.csv").write_text("\n".join(["image,caption", *lines]) + "\n")
    cells = [{"bytes": (folder / row["image"]).read_bytes()} for row in rows]
    table = pa.table({"image": cells, "caption": [row["caption"] for row in rows]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    members = {}
    for number, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        members[f"{number}.png"] = cell["bytes"]
        members[f"{number}.txt"] = row["caption"].encode()
    write_tar_of(folder / "a.tar", members)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "place"
    write_forms(folder)
    return folder


def test_a_copy_has_the_fingerprint_of_its_original(forms: Path, tmp_path: Path):
    expected = [identity(forms / name) for name in FORMS]
    copy = tmp_path / "another/place"
    shutil.copytree(forms, copy)
    assert [identity(copy / name) for name in FORMS] == expected
    renamed = (copy / "rows.csv").rename(copy / "renamed.csv")
    assert identity(renamed) == expected[3]
    assert expected[2] == expected[3]  # JSON and CSV hold the same values
    assert len(set(expected)) == len(FORMS) - 1


@pytest.mark.parametrize("name", FORMS)
def test_another_image_gives_another_fingerprint(forms: Path, tmp_path: Path, name: str):
    copy = tmp_path / "copy"
    shutil.copytree(forms, copy)
    path = copy / name
    if path.suffix in (".parquet", ".tar"):
        data = bytearray(path.read_bytes())
        data[data.index(b"IDAT") + 8] ^= 1  # one byte of an image
        path.write_bytes(data)
    else:
        redraw(copy / "train")
    assert identity(path) != identity(forms / name)


def opened(folder: Path, lines: Sequence[str]) -> Any:
    (folder / "rows.txt").write_text("\n".join(lines) + "\n")
    return open_source(folder / "rows.txt", kind="texts")


def test_the_sizes_of_all_rows_count_beyond_the_sampled_ones(tmp_path: Path):
    """Row 100 of 1,000 is in none of the four runs of sampled rows."""
    lines = [f"a red circle, number {number}" for number in range(1000)]
    before = fingerprint.of_sources([("x", opened(tmp_path, lines))])
    sampled = {name for name in before if name.startswith("x, row ")}
    assert len(sampled) == fingerprint.NUM_SAMPLED
    assert {"x, row rows.txt:1", "x, row rows.txt:1000"} <= sampled
    assert "x, row rows.txt:101" not in sampled
    assert not fingerprint.difference(before, before)

    lines[100] = "another size"
    now = fingerprint.of_sources([("x", opened(tmp_path, lines))])
    assert fingerprint.difference(before, now).startswith("x, names or sizes ")


def test_each_part_of_a_split_has_its_own_fingerprint(tmp_path: Path):
    write_data(tmp_path)
    source: Any = open_source(tmp_path / "train")
    parts = [Subset(source, rows) for rows in (range(6), range(6, 12), [5, 6])]
    assert len({identity_of(part) for part in (source, *parts)}) == 4


def test_unusable_rows_change_a_fingerprint_and_stop_nothing(tmp_path: Path):
    write_data(tmp_path)
    before = identity(tmp_path / "train")
    (tmp_path / "train/03.txt").write_bytes(b"\xff")
    (tmp_path / "train/04.png").unlink()
    (tmp_path / "train/04.png").symlink_to(tmp_path / "nowhere")
    assert identity(tmp_path / "train") != before


def test_no_image_of_generated_rows_is_drawn(monkeypatch):
    monkeypatch.setattr("eve_vl.data.image_refs.ImageDrawing.pixels", property(lambda _: 1 / 0))
    val, test = open_sources(["scenes:val", "scenes:test"], tiny_config().data, 16)
    assert identity_of(val) != identity_of(test)
    assert identity_of(val) == identity_of(ScenePairs(split="val", image_size=32))
