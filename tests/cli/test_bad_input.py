"""Broken data on the real command line: one line, exit status above 0, nothing half-written."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch._utils import ExceptionWrapper

from eve_vl.utils.errors import UserError
from helpers.complaints import complaint, write_pairs

pytestmark = pytest.mark.usefixtures("no_report")


def pretrain_on(eve, source: object, *flags: object) -> str:
    """Return the complaint of a pre-training on a source."""
    val = write_pairs(Path("val"))
    return complaint(eve("pretrain", "tiny", "--data.train", source, "--data.val", val, *flags))


def break_image(rows: Path) -> Path:
    (rows.parent / "3.png").write_bytes(b"no image")
    return rows


def cut_json_line(rows: Path) -> Path:
    lines = rows.read_text().splitlines()
    lines[4] = lines[4][:-5]
    rows.write_text("\n".join(lines))
    return rows


def add_endless_caption(rows: Path) -> Path:
    with rows.open("a") as file:
        file.write(json.dumps({"image": "1.png", "caption": "word " * 10_000}) + "\n")
    return rows


def write_truncated_shard(rows: Path) -> Path:
    shard = rows.with_name("shard.tar")
    image = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(image, "JPEG")
    with tarfile.open(shard, "w") as tar:
        for key in range(4):
            for name, data in ((f"{key}.jpg", image.getvalue()), (f"{key}.txt", b"all red")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shard.write_bytes(shard.read_bytes()[: 2 * 1536 + 512 + 100])
    return shard


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (break_image, "rows.jsonl:4"),
        (cut_json_line, "rows.jsonl:5"),
        (add_endless_caption, "rows.jsonl:9"),
        (write_truncated_shard, "shard.tar"),
    ],
)
def test_training_and_check_name_the_broken_row(
    eve,
    tmp_path: Path,
    damage: Callable[[Path], Path],
    problem: str,
):
    source = damage(write_pairs(tmp_path / "pairs"))
    assert problem in pretrain_on(eve, source)
    check = eve("data", "check", source)
    assert check.returncode != 0
    assert problem in check.stdout + check.stderr
    assert "Traceback" not in check.stderr


def test_own_pairs_with_an_unreadable_image_and_small_ones_are_trained_on(eve, tmp_path: Path):
    """The images are smaller than a patch, and squeezed to a square like any other."""
    rows = write_pairs(tmp_path / "pairs", size=(7, 39))
    break_image(rows)
    command = ("pretrain", "tiny", "--data.train", rows, "--data.max-invalid-fraction", 0.2)
    assert "held-out" in complaint(eve(*command))
    val = write_pairs(tmp_path / "val", size=(7, 39))
    done = eve(*command, "--data.val", val, "--train.steps", 4)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "runs/tiny/bad_samples.jsonl").read_text().splitlines()
    (bad,) = map(json.loads, lines)  # once, although four epochs read it
    assert "rows.jsonl:4" in bad["where"]
    done = eve("evaluate", "masked_signal", "runs/tiny", "--data", val)
    assert done.returncode == 0, done.stderr

    line = complaint(eve("pretrain", "demo", "--out", "runs/tiny", "--resume"))
    assert "'tiny'" in line
    assert "'demo'" in line
    assert "--out" in line


def test_complaint_from_a_loader_worker_is_one_line():
    """torch sends an error of a worker as its traceback, in an ExceptionWrapper."""
    problem = "20 rows in a row cannot be used; the last: rows.jsonl:9: not an image"
    try:
        raise UserError(problem)
    except UserError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(UserError) as error:
        pickle.loads(pickle.dumps(wrapper)).reraise()
    assert str(error.value) == problem


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--train.lr-multipliers", "nosuch*", 0.1), "'nosuch*' matches no parameter"),
        (("--data.val", "alike.jsonl"), "usable and has another caption"),
    ],
)
def test_failed_start_leaves_nothing(eve, tmp_path: Path, flags, problem):
    """Neither the files of a run nor an entry among its starts, nor its folder."""
    rows = write_pairs(tmp_path / "pairs")
    with (tmp_path / "alike.jsonl").open("w") as file:
        for number in range(8):
            row = {"image": f"pairs/{number}.png", "caption": "a circle"}
            file.write(json.dumps(row) + "\n")
    assert problem in pretrain_on(eve, rows, "--out", "run", *flags)
    assert not (tmp_path / "run").exists()
