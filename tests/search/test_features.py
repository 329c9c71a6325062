"""`eve features`: Parquet parts that equal `encode_image` and the index, however many processes write them and die."""

import hashlib
import json
import shutil
import tarfile
from collections import Counter
from itertools import count
from pathlib import Path

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
from helpers.indices import features_of, write_image
from helpers.tiny_runs import TEXTS, tiny_run, write_run

SIZES = ("--part-rows", 8, "--batch-size", 4)


def bits(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def vectors(table) -> np.ndarray:
    return np.array(table["feature"].to_pylist(), dtype=np.float16)


def test_parts_hold_what_encode_image_and_the_index_compute(eve, model, run, photos, tmp_path):
    (photos / "new" / "15.png").write_bytes(b"x")
    (photos / "old" / "03.txt").write_bytes(b"\xff")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(photos.glob("old/0[0-2].*")):
            tar.add(path, path.name)
    rows = [
        {"image": f"photos/old/0{n}.png", "caption": TEXTS[0], "year": 2000 + n} for n in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = ("photos", "shard.tar", "rows.jsonl")
    done = eve("features", *sources, "--run", run, "--out", "f", *SIZES)
    assert f"skipped: {photos}/new/15.png: not an image" in done.stdout
    assert done.stdout.endswith(
        "f: 5 new parts, 0 kept parts, 25 images, 1 unusable row, 0 missing parts\n"
    )
    table = parquet.read_table(tmp_path / "f")
    found = dict(zip(table["name"].to_pylist(), vectors(table), strict=True))
    encoded = model.encode_image([str(photos)], batch_size=4)
    np.testing.assert_array_equal(vectors(table)[:19], np.asarray(encoded).astype(np.float16))
    assert table["name"].to_pylist()[:19] == [*encoded.names]
    model.index(photos, tmp_path / "index", batch_size=4)
    for path in (*photos.glob("old/*.png"), photos / "new" / "08.png"):
        np.testing.assert_array_equal(found[str(path)], features_of(tmp_path / "index", str(path)))
    each = {row["name"]: row for row in table.to_pylist()}
    shard, member = each[f"{tmp_path}/shard.tar:02"], (photos / "old" / "02.png").read_bytes()
    data = Path(shard["path"]).read_bytes()[shard["offset"] :][: shard["size"]]
    assert data == member and shard["captions"] == [TEXTS[2]]
    assert shard["hash"] == hashlib.sha256(member).hexdigest()[:32]
    assert [json.loads(row["columns"]) for row in table.to_pylist()[-3:]] == [
        {"year": str(2000 + n)} for n in range(3)
    ]
    notes = [
        json.loads(parquet.read_schema(path).metadata[b"eve"])
        for path in sorted((tmp_path / "f").glob("*.parquet"))
    ]
    assert [name for note in notes for name in note["skipped"]] == [f"{photos}/new/15.png"]
    (bad,) = (note["bad_captions"] for note in notes if note["bad_captions"])
    assert [*bad] == [f"{photos}/old/03.png"] and "not UTF-8" in bad[f"{photos}/old/03.png"]


def test_remote_shards_have_the_features_of_local_ones(model, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard, remote = tmp_path / "features.tar", "memory://bucket/features.tar"
    with tarfile.open(shard, "w") as tar:
        for path in sorted(photos.glob("old/0[0-2].*")):
            tar.add(path, path.name)
    fsspec.filesystem("memory").pipe("/bucket/features.tar", shard.read_bytes())
    for name, source in {"local": shard, "remote": remote}.items():
        assert write_features(model, [source], tmp_path / name)["image"] == 3
    local, far = (parquet.read_table(tmp_path / name) for name in ("local", "remote"))
    assert (
        far["path"].to_pylist() == [remote] * 3
        and far["name"][2].as_py() == "memory://bucket/features.tar:02"
    )
    assert far.drop(["path", "name"]).equals(local.drop(["path", "name"]))
    with pytest.raises(
        UserError,
        match=r"^memory://bucket/features.tar: a search reads its images again; copy them to a disk",
    ):
        model.index(remote, tmp_path / "index")
    assert not (tmp_path / "index").exists()


class Killed(BaseException):
    """Stands for SIGKILL."""


KILLS = [  # what dies at which of its calls
    (parquet_features, "_arrow_table", 1),
    (PendingImage, "read", 9),
    (PendingImage, "read", 16),
    (parquet_features, "_arrow_table", 2),
    (file_io, "sync", 3),  # the temporary file of the second part is whole
]


def test_after_five_kills_the_bits_are_the_same(eve, model, run, photos, tmp_path, monkeypatch):
    """Two machines take turns, and each dies at another moment; the first one before its first part."""
    for number in range(100, 136):
        write_image(photos / "many" / f"{number}.png", number)
    command = ("features", "photos", "--run", run, *SIZES, "--out")
    assert eve(*command, "whole").returncode == 0
    whole, parts, left = bits(tmp_path / "whole"), tmp_path / "parts", tmp_path / "left"
    assert len(whole) == 7
    for kills, (owner, name, calls) in enumerate(KILLS):
        counted, real = count(1), getattr(owner, name)

        def call(*args, counted=counted, last=calls, real=real, **kwargs):
            if next(counted) == last:
                shutil.copytree(parts, left)
                raise Killed
            return real(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, call)
            place = ProcessPlace(rank=kills % 2, world_size=2)
            patch.setattr(parquet_features, "process_place", lambda place=place: place)
            write_features(model, [photos], parts, part_rows=8, batch_size=4)
        shutil.rmtree(parts)
        left.rename(parts)
        assert len(bits(parts)) == kills
        assert bits(parts).items() <= whole.items()
    assert len([*parts.glob(".part-*.tmp/new")]) == 1
    (parts / "part-00000.parquet").write_bytes(
        whole["part-00000.parquet"][:1000]
    )  # a copy that broke off
    assert (
        eve(*command, "parts").stdout
        == "parts: 4 new parts, 3 kept parts, 32 images, 0 unusable rows, 0 missing parts\n"
    )
    assert bits(parts) == whole


def test_processes_share_the_parts(model, photos, tmp_path, monkeypatch):
    def write(world: int, number: int) -> Counter[str]:
        for name, value in {"RANK": number, "LOCAL_RANK": 0, "WORLD_SIZE": world}.items():
            monkeypatch.setenv(name, str(value))
        return write_features(model, [photos], tmp_path / f"{world}", part_rows=6, batch_size=4)

    for world in (1, 2, 4):
        done = [write(world, number) for number in range(world)]
        assert [each["new part"] for each in done] == [4 // world] * world
        assert [each["missing part"] for each in done] == [
            4 - 4 // world * (number + 1) for number in range(world)
        ]
        assert bits(tmp_path / f"{world}") == bits(tmp_path / "1")


def test_mistakes_are_one_line(eve, run, photos, tmp_path, monkeypatch):
    assert eve("features", "photos", "--run", run, "--out", "f", *SIZES).returncode == 0
    write_run(tiny_run("vqa"), tmp_path / "vqa")
    other = write_run(tiny_run("retrieval", model={"depth": 4}), tmp_path / "other")
    (tmp_path / "empty").mkdir()

    def line(*args: object) -> str:
        done = eve("features", *args)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    to_f = ("--run", run, "--out", "f")
    assert "needs at least one path" in line("--run", run)
    assert "no images in this folder" in line("empty", *to_f)
    assert "is generated data, which has no files" in line("scenes:", *to_f)
    assert "its features of images do not compare with those of texts" in line(
        "photos", "--run", "vqa", "--out", "g"
    )
    assert "f: holds other features (run " in line("photos", "--run", other, "--out", "f", *SIZES)
    assert "f: holds other features (rows per part 8 → 8192)" in line("photos", *to_f)
    assert "photos: holds files, but no _features.json" in line(
        "photos", "--run", run, "--out", "photos"
    )
    assert "--part-rows 0 and --batch-size 64: both must be positive" in line(
        "photos", *to_f, "--part-rows", 0
    )
    (photos / "old" / "07.png").unlink()
    assert "f: holds other features" in line("photos", *to_f, *SIZES)


def test_processes_that_see_different_data_stop(model, photos, tmp_path, monkeypatch):
    """Both found an empty folder; the first one notices it before its next part."""
    real = FeatureParts.write

    def write(self, number):
        facts = tmp_path / "f" / FACTS_FILE
        facts.write_text(
            facts.read_text().replace(f'"{photos}, rows": 20', f'"{photos}, rows": 19')
        )
        return real(self, number)

    monkeypatch.setattr(FeatureParts, "write", write)
    with pytest.raises(UserError, match=r"f: holds other features \(.*photos, rows 19 → 20\)"):
        write_features(model, [photos], tmp_path / "f", part_rows=8)
