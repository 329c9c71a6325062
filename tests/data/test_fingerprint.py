"""Fingerprints of sources: equal for copies, different for changed data."""

import json
import shutil
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
from helpers.tiny_config import tiny_config


def identity_of(source: Any) -> str:
    return fingerprint.short(fingerprint.of_sources([("any", source)]))


def identity(path: Path) -> str:
    return identity_of(open_source(path))


FORMS = ("train", "rows.jsonl", "rows.csv", "rows.parquet", "a.tar")


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    """The same rows in every form; images are in files, in shards and in cells."""
    folder = tmp_path / "forms"
    write_data(folder)
    members = {}
    csv_lines = ["image,caption"]
    parquet_rows = []
    for number, line in enumerate((folder / "rows.jsonl").read_text().splitlines()):
        row = json.loads(line)
        data = (folder / row["image"]).read_bytes()
        csv_lines.append(f'{row["image"]},"{row["caption"]}"')
        parquet_rows.append({"image": {"bytes": data}, "caption": row["caption"]})
        members[f"{number}.png"] = data
        members[f"{number}.txt"] = row["caption"].encode()
    (folder / "rows.csv").write_text("\n".join(csv_lines) + "\n")
    table = pa.Table.from_pylist(parquet_rows)
    pq.write_table(table, folder / "rows.parquet", row_group_size=5)
    write_tar_of(folder / "a.tar", members)
    return folder


def test_a_copy_has_the_fingerprint_of_its_original_and_other_images_another(forms):
    identities = [identity(forms / name) for name in FORMS]
    assert len(set(identities)) == len(FORMS)
    copy = forms.parent / "another/place"
    shutil.copytree(forms, copy)
    assert [identity(copy / name) for name in FORMS] == identities
    renamed = (copy / "rows.csv").rename(copy / "renamed.csv")
    assert identity(renamed) == identity(forms / "rows.csv")

    redraw(forms / "train")
    for name in ("rows.parquet", "a.tar"):
        data = bytearray((forms / name).read_bytes())
        data[data.index(b"IDAT") + 8] ^= 1  # one byte of an image
        (forms / name).write_bytes(data)
    changed = [identity(forms / name) for name in FORMS]
    for before, after in zip(identities, changed, strict=True):
        assert before != after


def test_the_sizes_of_all_rows_count_beyond_the_sampled_ones(tmp_path):
    """Row 100 of 1,000 is in none of the four runs of sampled rows."""

    def fingerprint_of(lines: list[str]) -> dict[str, object]:
        (tmp_path / "rows.txt").write_text("\n".join(lines) + "\n")
        source: Any = open_source(tmp_path / "rows.txt", kind="texts")
        return fingerprint.of_sources([("x", source)])

    lines = [f"a red circle, number {number}" for number in range(1000)]
    before = fingerprint_of(lines)
    sampled = {name for name in before if name.startswith("x, row ")}
    assert len(sampled) == fingerprint.NUM_SAMPLED
    assert {"x, row rows.txt:1", "x, row rows.txt:1000"} <= sampled
    assert "x, row rows.txt:101" not in sampled
    assert not fingerprint.difference(before, before)

    lines[100] = "another size"
    now = fingerprint_of(lines)
    assert fingerprint.difference(before, now).startswith("x, names or sizes ")


def test_each_part_of_a_split_has_its_own_fingerprint(tmp_path):
    write_data(tmp_path)
    source: Any = open_source(tmp_path / "train")
    parts = [Subset(source, rows) for rows in (range(6), range(6, 12), [5, 6])]
    assert len({identity_of(part) for part in (source, *parts)}) == 4


def test_unusable_rows_change_a_fingerprint_and_stop_nothing(tmp_path):
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
