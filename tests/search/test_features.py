"""`eve features`: Parquet parts that equal `encode_image` and the index, however many processes
write them and die."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pyarrow import parquet

from eve_vl.search import parquet_features
from eve_vl.search.parquet_features import FACTS_FILE, FeatureParts, write_features
from eve_vl.search.pending_images import PendingImage
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError
from eve_vl.utils.launcher import ProcessPlace
from helpers.indices import features_of, write_images
from helpers.source_files import write_jsonl
from helpers.tars import write_tar_of
from helpers.tiny_runs import TEXTS, tiny_run, write_run

SIZES = ("--part-rows", 8, "--batch-size", 4)


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def write_shard(photos: Path, path: Path) -> None:
    """Write a shard of three images with captions."""
    files = sorted(photos.glob("old/0[0-2].*"))
    write_tar_of(path, {file.name: file.read_bytes() for file in files})


def test_features_equal_those_of_encode_image_and_the_index(
    eve, run, model, photos, folder, tmp_path
):
    """Of a folder with two broken files, of a shard and of a table."""
    (photos / "new" / "15.png").write_bytes(b"x")
    (photos / "old" / "03.txt").write_bytes(b"\xff")
    write_shard(photos, tmp_path / "shard.tar")
    rows = []
    for number in range(3):
        image = f"photos/old/0{number}.png"
        rows.append(
            {
                "image": image,
                "caption": TEXTS[0],
                "year": 2000 + number,
            }
        )
    write_jsonl(tmp_path / "rows.jsonl", rows)
    sources = ("photos", "shard.tar", "rows.jsonl")
    done = eve("features", run, *sources, "--out", "features", *SIZES)
    assert f"skipped: {photos}/new/15.png: not an image" in done.stdout
    summary = "5 new parts, 0 kept parts, 25 images, 1 unusable row, 0 missing parts"
    assert done.stdout.endswith(f"features: {summary}\n")

    table = parquet.read_table(tmp_path / "features")
    features = np.array(table["feature"].to_pylist(), dtype=np.float16)
    names = table["name"].to_pylist()
    encoded = model.encode_image([str(photos)], batch_size=4)
    assert names[:19] == list(encoded.names)
    np.testing.assert_array_equal(features[:19], np.asarray(encoded).astype(np.float16))
    feature_of_name = dict(zip(names, features, strict=True))
    model.index(photos, folder, batch_size=4)
    for path in (*photos.glob("old/*.png"), photos / "new" / "08.png"):
        np.testing.assert_array_equal(feature_of_name[str(path)], features_of(folder, str(path)))

    rows = table.to_pylist()
    assert [json.loads(row["columns"])["year"] for row in rows[-3:]] == ["2000", "2001", "2002"]
    (row,) = [row for row in rows if row["name"] == f"{tmp_path}/shard.tar:02"]
    image = (photos / "old" / "02.png").read_bytes()
    assert Path(row["path"]).read_bytes()[row["offset"] :][: row["size"]] == image
    assert row["hash"] == hashlib.sha256(image).hexdigest()[:32]
    assert row["captions"] == [TEXTS[2]]

    skipped: dict[str, str] = {}
    bad_captions: dict[str, str] = {}
    for path in (tmp_path / "features").glob("*.parquet"):
        notes = json.loads(parquet.read_schema(path).metadata[b"eve"])
        skipped |= notes["skipped"]
        bad_captions |= notes["bad_captions"]
    assert list(skipped) == [f"{photos}/new/15.png"]
    assert list(bad_captions) == [f"{photos}/old/03.png"]
    assert "not UTF-8" in bad_captions[f"{photos}/old/03.png"]


def test_remote_shards_have_the_features_of_local_ones(model, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = tmp_path / "features.tar"
    url = "memory://bucket/features.tar"
    write_shard(photos, shard)
    fsspec.filesystem("memory").pipe("/bucket/features.tar", shard.read_bytes())
    assert write_features(model, [shard], tmp_path / "local")["image"] == 3
    assert write_features(model, [url], tmp_path / "remote")["image"] == 3
    local = parquet.read_table(tmp_path / "local")
    remote = parquet.read_table(tmp_path / "remote")
    assert remote["path"].to_pylist() == [url] * 3
    assert remote["name"][2].as_py() == f"{url}:02"
    assert remote.drop(["path", "name"]).equals(local.drop(["path", "name"]))
    problem = rf"^{url}: a search reads its images again; copy them to a disk"
    with pytest.raises(UserError, match=problem):
        model.index(url, tmp_path / "index")
    assert not (tmp_path / "index").exists()


class Killed(BaseException):
    """Stands for SIGKILL."""


KILLS: list[tuple[Any, str, int]] = [  # at which call of what
    (parquet_features, "_arrow_table", 1),
    (PendingImage, "read", 9),
    (PendingImage, "read", 16),
    (parquet_features, "_arrow_table", 2),
    (file_io, "sync", 3),  # the temporary file of the second part is whole
]


def test_after_five_kills_the_bits_are_the_same(
    eve,
    model,
    run,
    photos,
    tmp_path,
    monkeypatch,
):
    """Two machines take turns, and each dies at another moment."""
    write_images(photos / "many", range(100, 136))
    command = ("features", run, "photos", *SIZES, "--out")
    assert eve(*command, "whole").returncode == 0
    whole = read_bytes(tmp_path / "whole")
    assert len(whole) == 7
    parts = tmp_path / "parts"
    snapshot = tmp_path / "snapshot"
    for num_kills, (owner, name, last_call) in enumerate(KILLS):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at_call(patch, owner, name, last_call, parts, snapshot)
            place = ProcessPlace(rank=num_kills % 2, world_size=2)
            patch.setattr(parquet_features, "process_place", lambda place=place: place)
            write_features(model, [photos], parts, part_rows=8, batch_size=4)
        shutil.rmtree(parts)
        snapshot.rename(parts)
        assert len(read_bytes(parts)) == num_kills
        assert read_bytes(parts).items() <= whole.items()
    assert len(list(parts.glob(".part-*.tmp/new"))) == 1
    # a copy that broke off
    (parts / "part-00000.parquet").write_bytes(whole["part-00000.parquet"][:1000])
    summary = "4 new parts, 3 kept parts, 32 images, 0 unusable rows, 0 missing parts"
    assert eve(*command, "parts").stdout == f"parts: {summary}\n"
    assert read_bytes(parts) == whole


def kill_at_call(
    monkeypatch,
    owner: Any,
    name: str,
    last_call: int,
    folder: Path,
    snapshot: Path,
) -> None:
    """Copy a folder and raise Killed instead of a call."""
    real = getattr(owner, name)
    num_calls = 0

    def call(*args, **kwargs):
        nonlocal num_calls
        num_calls += 1
        if num_calls == last_call:
            shutil.copytree(folder, snapshot)
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_processes_share_the_parts(model, photos, tmp_path, monkeypatch):
    def write(world_size: int, rank: int) -> Counter[str]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        folder = tmp_path / str(world_size)
        return write_features(model, [photos], folder, part_rows=6, batch_size=4)

    for world_size in (1, 2):
        num_missing = 4
        for rank in range(world_size):
            counts = write(world_size, rank)
            num_missing -= 4 // world_size
            assert counts["new part"] == 4 // world_size
            assert counts["missing part"] == num_missing
        assert read_bytes(tmp_path / str(world_size)) == read_bytes(tmp_path / "1")


def test_mistakes_are_one_line(eve, run, photos, tmp_path):
    assert eve("features", run, "photos", "--out", "f", *SIZES).returncode == 0
    write_run(tiny_run("vqa"), tmp_path / "vqa")
    other_run = write_run(tiny_run("retrieval", model={"depth": 4}), tmp_path / "other")
    to_f = ("--out", "f")
    mistakes: list[tuple[tuple[Any, ...], str]] = [
        ((run,), "nothing to encode: name images, folders or tables"),
        ((run, "scenes:", *to_f), "is generated data, which has no files"),
        (
            ("vqa", "photos", "--out", "g"),
            "its features of images do not compare with those of texts",
        ),
        ((other_run, "photos", *to_f, *SIZES), "f: holds other features (run "),
        ((run, "photos", *to_f), "f: holds other features (rows per part 8 → 8192)"),
        ((run, "photos", "--out", "photos"), "photos: holds files, but no _features.json"),
        (
            (run, "photos", *to_f, "--part-rows", 0),
            "--part-rows 0 and --batch-size 64: both must be",
        ),
    ]
    for args, message in mistakes:
        done = eve("features", *args)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    (photos / "old" / "07.png").unlink()
    assert "f: holds other features" in eve("features", run, "photos", *to_f, *SIZES).stderr


def test_processes_that_see_different_data_stop(model, photos, tmp_path, monkeypatch):
    """Both saw an empty folder; the first one notices the other before its next part."""
    write = FeatureParts.write

    def change_facts_and_write(self, number):
        facts = tmp_path / "f" / FACTS_FILE
        text = facts.read_text().replace(f'"{photos}, rows": 20', f'"{photos}, rows": 19')
        facts.write_text(text)
        return write(self, number)

    monkeypatch.setattr(FeatureParts, "write", change_facts_and_write)
    with pytest.raises(UserError, match=r"f: holds other features \(.*photos, rows 19 → 20\)"):
        write_features(model, [photos], tmp_path / "f", part_rows=8)
