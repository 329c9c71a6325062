"""The photos example on small trees in the published layouts."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from eve_vl.utils.errors import UserError
from helpers.example_builds import EXAMPLES, load_example

photos = load_example("photos")

NAMES = [f"{number}_cat.jpg" for number in range(20)]


def write_image(path: Path, width: int = 200, height: int = 150) -> None:
    rng = np.random.default_rng(len(path.name))
    pixels_HW3 = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_HW3).save(path)


def rows_of(file: Path) -> list[dict]:
    return parquet.read_table(file).to_pylist()


def size_of(row: dict) -> tuple[int, int]:
    return Image.open(io.BytesIO(row["image"])).size


def flickr8k_of_kaggle(folder: Path) -> None:
    """Two captions per image; one has a comma."""
    lines = ["image,caption"]
    for name in NAMES:
        write_image(folder / "Images" / name)
        lines += [f'{name},"a cat , {name}"', f"{name},one cat"]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")


def test_kaggles_flickr8k_is_split_by_names(tmp_path: Path):
    flickr8k_of_kaggle(tmp_path)
    out = tmp_path / "out"
    assert photos.build("flickr8k", tmp_path, out) == {"train": 16, "val": 2, "test": 2}
    rows = [row for split in ("train", "val", "test") for row in rows_of(out / f"{split}.parquet")]
    assert sorted(row["name"] for row in rows) == sorted(NAMES)
    for row in rows:
        assert row["captions"] == [f"a cat , {row['name']}", "one cat"]
        assert size_of(row) == (171, 128)


def test_a_second_call_builds_missing_tables_only(tmp_path: Path, capsys):
    flickr8k_of_kaggle(tmp_path)
    out = tmp_path / "out"
    photos.build("flickr8k", tmp_path, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "val.parquet").unlink()
    (out / "val.parquet.tmp").touch()
    photos.build("flickr8k", tmp_path, out)
    changed = {path.name for path in out.glob("*.parquet")} - {
        path.name for path in out.glob("*.parquet") if times[path.name] == path.stat().st_mtime_ns
    }
    assert changed == {"val.parquet"}
    assert "train.parquet: 16 rows, built before" in capsys.readouterr().out
    photos.build("flickr8k", tmp_path, out, size=64)
    assert min(size_of(rows_of(out / "train.parquet")[0])) == 64


def test_official_lists_of_flickr8k_are_kept(tmp_path: Path):
    lines = []
    for name in NAMES:
        write_image(tmp_path / "Flicker8k_Dataset" / name)
        lines += [f"{name}#0\tA cat .", f"{name}#1\tOne cat"]
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    (text / "Flickr8k.token.txt").write_text("\n".join(lines))
    lists = {"train": NAMES[:10], "dev": NAMES[10:13], "test": NAMES[13:15]}
    for split, names in lists.items():
        (text / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))
    counts = photos.build("flickr8k", tmp_path, tmp_path / "out")
    assert counts == {"train": 10, "val": 3, "test": 2}
    names = [row["name"] for row in rows_of(tmp_path / "out/val.parquet")]
    assert names == lists["dev"]
    (line,) = photos.comparison_lines("flickr8k", counts)
    assert line.startswith("flickr8k: published are train 6,000, val 1,000, test 1,000")


def test_flickr30k_by_its_table_and_by_karpathy(tmp_path: Path):
    table = ["image_name| comment_number| comment"]
    images = []
    for number, name in enumerate(NAMES):
        write_image(tmp_path / "flickr30k_images" / name)
        table += [f"{name}| 0| A cat , small .", f"{name}| 1|  One cat"]
        split = ("train", "restval", "val", "test")[number % 4]
        sentences = [{"raw": " A cat."}, {"raw": "One cat"}]
        images.append({"filename": name, "split": split, "sentences": sentences})
    (tmp_path / "results.csv").write_text("\n".join(table))
    photos.build("flickr30k", tmp_path, tmp_path / "by_table")
    row = rows_of(tmp_path / "by_table/val.parquet")[0]
    assert row["captions"] == ["A cat , small .", "One cat"]

    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    counts = photos.build("flickr30k", tmp_path, tmp_path / "by_karpathy")
    assert counts == {"train": 10, "val": 5, "test": 5}
    assert rows_of(tmp_path / "by_karpathy/test.parquet")[0]["name"] == NAMES[3]


def test_coco_captions_belong_to_their_image(tmp_path: Path, capsys):
    for split in ("train2017", "val2017"):
        images = []
        annotations = []
        for number in range(4):
            name = f"{number:012d}.jpg"
            images.append({"id": number, "file_name": name})
            annotations += [
                {"image_id": number, "caption": f"cat {number}"},
                {"image_id": number, "caption": f"{split}\n"},
            ]
            write_image(tmp_path / split / name)
        document = {"images": images, "annotations": annotations[::-1]}
        file = tmp_path / "annotations" / f"captions_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    (tmp_path / "train2017" / "000000000002.jpg").write_bytes(b"no image")
    (tmp_path / "train2017" / "000000000003.jpg").unlink()
    assert photos.build("coco", tmp_path, tmp_path / "out") == {"train": 2, "val": 4}
    rows = rows_of(tmp_path / "out/val.parquet")
    assert {tuple(row["captions"]) for row in rows} == {
        ("val2017", f"cat {number}") for number in range(4)
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "left out 2 images that cannot be read" in printed


def test_daquar_lists_the_things_of_an_answer(tmp_path: Path):
    lines = ["what is on the desk in the image3 ?", "lamp, paper_tray"]
    for split in ("train", "test"):
        (tmp_path / f"qa.894.raw.{split}.txt").write_text("\n".join(lines) + "\n")
    write_image(tmp_path / "nyu_depth_images" / "image3.png")
    assert photos.build("daquar", tmp_path, tmp_path / "out") == {"train": 1, "test": 1}
    (row,) = rows_of(tmp_path / "out/train.parquet")
    assert row["answer_set"] == ["lamp", "paper_tray"]
    assert row["question"].startswith("what is on the desk")


@pytest.fixture
def cifar_pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def test_binary_batches_of_cifar(tmp_path: Path, cifar_pixels):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    classes = [f"class{number}" for number in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(classes) + "\n\n")
    names = ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]
    for number, name in enumerate(names):
        label = bytes([number])
        (folder / f"{name}.bin").write_bytes(
            label + cifar_pixels[number].transpose(2, 0, 1).tobytes()
        )
    assert photos.build("cifar10", tmp_path, tmp_path / "out") == {"train": 5, "test": 1}
    rows = rows_of(tmp_path / "out/train.parquet")
    for number, row in enumerate(rows, start=1):
        assert row["label"] == f"class{number}"
        pixels_HW3 = np.array(Image.open(io.BytesIO(row["image"])))
        assert (pixels_HW3 == cifar_pixels[number]).all()
    (folder / "data_batch_3.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"data_batch_3\.bin: has 3 bytes"):
        photos.build("cifar10", tmp_path, tmp_path / "other")


def test_python_batches_of_cifar(tmp_path: Path, cifar_pixels, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate(["test_batch", *(f"data_batch_{n}" for n in range(1, 6))]):
        data = cifar_pixels[number].transpose(2, 0, 1).reshape(1, -1)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [number]}))
    names = {"label_names": [f"class{number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    with pytest.raises(UserError, match="missing or damaged"):
        photos.build("cifar10", tmp_path, tmp_path / "out")
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    assert photos.build("cifar10", tmp_path, tmp_path / "out") == {"train": 5, "test": 1}
    row = rows_of(tmp_path / "out/train.parquet")[2]
    pixels_HW3 = np.array(Image.open(io.BytesIO(row["image"])))
    assert row["label"] == "class3"
    assert (pixels_HW3 == cifar_pixels[3]).all()


def test_folders_of_classes(tmp_path: Path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "cat" / "1.png", 32, 32)
    assert photos.build("cifar10", tmp_path, tmp_path / "out") == {"train": 1, "test": 1}
    assert rows_of(tmp_path / "out/test.parquet")[0]["label"] == "cat"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flickr8k", "captions.txt, Flickr8k.token.txt or dataset_flickr8k.json"),
        ("flickr30k", "dataset_flickr30k.json"),
        ("coco", "annotations/captions_train2017.json"),
        ("daquar", "qa.894.raw.train.txt"),
        ("cifar10", "cifar-10-batches-py"),
    ],
)
def test_a_folder_without_the_files_is_explained(tmp_path: Path, name: str, message: str):
    with pytest.raises(UserError, match=f"{tmp_path}: has no .*{message}"):
        photos.build(name, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        photos.build(name, tmp_path / "nowhere", tmp_path / "out")


def test_bad_lines_are_named(tmp_path: Path):
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,a cat\nb.jpg\n")
    with pytest.raises(UserError, match=r"captions\.txt:3: expected an image and a caption"):
        photos.build("flickr8k", tmp_path, tmp_path / "out")
    (tmp_path / "dataset_flickr8k.json").write_text('{"images": [{"filename": "a.jpg"}]}')
    with pytest.raises(UserError, match=r"dataset_flickr8k\.json: is none of Karpathy's"):
        photos.build("flickr8k", tmp_path, tmp_path / "out")


def test_the_command_builds_what_eve_reads(tmp_path: Path, eve):
    flickr8k_of_kaggle(tmp_path)
    script = EXAMPLES / "photos/build.py"
    words = [sys.executable, script, "flickr8k", tmp_path, tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "published are train 6,000" in done.stdout
    checked = eve("data", "check", tmp_path / "out/train.parquet")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[0].split() == ["rows", "16"]
