"""Copies and near-duplicates of training images in other splits are counted and named."""

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.source_files import write_jsonl
from helpers.tiny_runs import noise


def smooth_image(seed: int) -> Image.Image:
    image = Image.fromarray(noise(seed, 6, 6))
    return image.resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Training and validation rows: of four validation images, one is a copy, one is smaller."""
    rows = []
    for seed in range(10):
        smooth_image(seed).save(tmp_path / f"train{seed}.png")
        rows.append({"image": f"train{seed}.png", "caption": f"number {seed}"})
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    images = {
        "new": smooth_image(20),
        "copy": smooth_image(3),
        "smaller": smooth_image(5).resize((40, 30)),
        "other": smooth_image(21),
    }
    rows = []
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
        rows.append({"image": f"{name}.png", "caption": name})
    return train, write_jsonl(tmp_path / "val.jsonl", rows)


def test_data_check_names_copies_and_near_duplicates_in_other_splits(eve, tables):
    train, val = tables
    done = eve("data", "check", train, "--against", val, "--json", "check.json")
    assert done.returncode == 1
    copies = f"1 of 4 images are copies of images in {train}: val.jsonl:2 of train.jsonl:4"
    near = f"1 of 4 images are near-duplicates of images in {train}: val.jsonl:3 of train.jsonl:6"
    assert f"{val}: {copies}" in done.stdout
    assert f"{val}: {near}" in done.stdout
    values = json.loads((train.parent / "check.json").read_text())
    assert values["shared_images"] == {
        str(val): [
            {"where": "val.jsonl:2", "other_where": "train.jsonl:4", "is_copy": True},
            {"where": "val.jsonl:3", "other_where": "train.jsonl:6", "is_copy": False},
        ]
    }


def test_training_notes_validation_rows_that_show_its_images(eve, tables, no_report):
    train, val = tables
    flags = ("--data.train", train, "--data.val", val, "--train.steps", 1, "--out", "run")
    done = eve("pretrain", "tiny", *flags, "--train.batch-size", 4, "--data.num-workers", 0)
    assert done.returncode == 0, done.stderr
    assert "note: of 4 validation rows compared, 1 show what is trained on" in done.stdout
