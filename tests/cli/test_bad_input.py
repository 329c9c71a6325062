"""User mistakes on the real command line: one line, exit status above 0, nothing half-written."""

import io
import json
import resource
import subprocess
import tarfile
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from helpers.complaints import complaint, write_pairs

pytestmark = pytest.mark.usefixtures("no_report")


def pretrain_on(eve, source: object, *flags: object) -> str:
    val = write_pairs(Path("val"))
    return complaint(eve("pretrain", "tiny", "--data.train", source, "--data.val", val, *flags))


def test_missing_path(eve, tmp_path: Path):
    write_pairs(tmp_path / "pairs")
    line = pretrain_on(eve, "pairs/row.jsonl")
    assert "pairs/row.jsonl" in line and "rows.jsonl" in line
    assert not (tmp_path / "runs").exists()
    assert "nowhere.jsonl" in complaint(eve("data", "check", "nowhere.jsonl"))
    assert "no such run folder" in complaint(eve("report", "nowhere"))
    assert "holds no checkpoint" in complaint(eve("evaluate", "masked_signal", "pairs"))


def test_empty_folder(eve, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "empty" in pretrain_on(eve, "empty")


def test_unreadable_image(eve, tmp_path: Path):
    rows = write_pairs(tmp_path / "pairs")
    (tmp_path / "pairs/3.png").write_bytes(b"no image")
    line = pretrain_on(eve, rows)
    assert "rows.jsonl:4" in line and "max_invalid_fraction" in line
    (bad,) = map(json.loads, (tmp_path / "runs/tiny/bad_samples.jsonl").read_text().splitlines())
    assert "rows.jsonl:4" in bad["where"]
    check = eve("data", "check", rows)
    assert (
        check.returncode == 1 and "rows.jsonl:4" in check.stdout and "Traceback" not in check.stderr
    )


def test_unreadable_image_within_the_allowed_share(eve, tmp_path: Path):
    rows = write_pairs(tmp_path / "pairs")
    (tmp_path / "pairs/3.png").write_bytes(b"no image")
    val = write_pairs(tmp_path / "val")
    flags = ("--data.max-invalid-fraction", "0.2", "--train.steps", 4)
    done = eve("pretrain", "tiny", "--data.train", rows, "--data.val", val, *flags)
    assert done.returncode == 0, done.stderr
    assert (
        len((tmp_path / "runs/tiny/bad_samples.jsonl").read_text().splitlines()) == 1
    )  # once, however often met


def test_truncated_tar(eve, tmp_path: Path):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "JPEG")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key in range(4):
            for name, data in ((f"{key:09}.jpg", buffer.getvalue()), (f"{key:09}.txt", b"all red")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    whole = (tmp_path / "shard.tar").read_bytes()
    (tmp_path / "shard.tar").write_bytes(whole[: 2 * 1536 + 512 + 100])
    assert "shard.tar" in pretrain_on(eve, "shard.tar")
    assert eve("data", "check", "shard.tar").returncode != 0


def test_broken_json_line(eve, tmp_path: Path):
    rows = write_pairs(tmp_path / "pairs")
    lines = rows.read_text().splitlines()
    lines[4] = lines[4][:-5]
    rows.write_text("\n".join(lines))
    assert "rows.jsonl:5" in pretrain_on(eve, rows)
    check = eve("data", "check", rows)
    assert check.returncode == 1 and "rows.jsonl:5" in check.stdout


@pytest.mark.parametrize("caption", ["", "  \n", "word " * 10_000])
def test_empty_or_endless_caption(eve, tmp_path: Path, caption: str):
    rows = write_pairs(tmp_path / "pairs")
    with rows.open("a") as file:
        file.write(json.dumps({"image": "1.png", "caption": caption}) + "\n")
    line = pretrain_on(eve, rows)
    assert "rows.jsonl:9" in line and "caption" in line
    check = eve("data", "check", rows)
    assert check.returncode == 1 and "rows.jsonl:9" in check.stdout


def test_unknown_names(eve):
    assert "did you mean 'demo'" in complaint(eve("pretrain", "deno"))
    assert "did you mean 'pretrain'" in complaint(eve("pretrian", "demo"))
    assert "did you mean 'data check'" in complaint(eve("data", "chekc", "x"))
    assert "did you mean '--train.batch-size'" in complaint(
        eve("pretrain", "demo", "--train.batchsize", 3)
    )
    assert "did you mean 'scenes_vqa'" in complaint(eve("finetune", "scene_vqa", "--init", "x"))
    assert "did you mean '--task.mim-weight'" in complaint(
        eve("pretrain", "tiny", "--task.mimweight", 3)
    )
    assert "did you mean 'masked_signal'" in complaint(eve("evaluate", "masked_signals", "x"))
    done = eve("pretrain", "tiny", "--train.lr", "fast")
    assert done.returncode == 2 and "--train.lr" in done.stderr and "Traceback" not in done.stderr


def test_all_problems_of_a_config_at_once(eve):
    line = complaint(
        eve(
            "pretrain",
            "tiny",
            "--input.image-size",
            30,
            "--train.lr",
            -1,
            "--task.image-mask-ratio",
            1.5,
        )
    )
    assert all(
        name in line for name in ("input.image_size 30", "train.lr", "task.image_mask_ratio")
    )


def test_image_size_and_patch(eve, tmp_path: Path):
    assert "not divisible by patch_size" in complaint(
        eve("pretrain", "tiny", "--input.image-size", 36)
    )
    assert "smaller than patch_size" in complaint(eve("pretrain", "tiny", "--input.image-size", 4))
    rows = write_pairs(
        tmp_path / "pairs", size=(7, 39)
    )  # smaller than a patch, and squeezed to a square like any other
    assert eve("data", "check", rows, "--recipe", "tiny").returncode == 0
    done = eve("pretrain", "tiny", "--data.train", rows, "--data.val", rows, "--train.steps", 2)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs/tiny/bad_samples.jsonl").exists()
    for verb in (
        ["evaluate", "masked_signal", "runs/tiny", "--data", rows],
        ["fill-mask", "runs/tiny", "pairs/0.png", "a [MASK]"],
    ):
        assert eve(*verb).returncode == 0


def test_folder_of_another_recipe(eve):
    assert eve("pretrain", "tiny", "--out", "run", "--train.steps", 2).returncode == 0
    line = complaint(eve("pretrain", "demo", "--out", "run", "--resume"))
    assert "'tiny'" in line and "'demo'" in line and "--out" in line


def test_disk_full_while_saving(eve, eve_fork, tmp_path: Path):
    """A limit on the size of a file stands in for a full disk: the second checkpoint cannot be
    written whole."""
    flags = ("pretrain", "tiny", "--out", "run", "--train.save-every", 5, "--train.steps", 10)
    assert eve(*flags[:4], "--train.save-every", 5, "--train.steps", 5).returncode == 0
    before = {
        path: path.read_bytes()
        for path in (tmp_path / "run/checkpoints").rglob("*")
        if path.is_file()
    }
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["train"]["steps"] = 10  # as if the run had been stopped half-way
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    limit = max(len(data) for data in before.values()) // 2
    process = eve_fork(
        *flags, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    )
    stdout, stderr = process.communicate(timeout=120)
    line = complaint(subprocess.CompletedProcess([], process.returncode, stdout, stderr))
    assert "cannot be written" in line and "earlier checkpoints are intact" in line
    after = {
        path: path.read_bytes()
        for path in (tmp_path / "run/checkpoints").rglob("*")
        if path.is_file()
    }
    assert after == before
    assert eve(*flags).returncode == 0  # with room again it goes on
    assert (tmp_path / "run/checkpoints/step_00000010/state.json").is_file()


def test_own_pairs_need_validation_pairs(eve, tmp_path: Path):
    rows = write_pairs(tmp_path / "pairs")
    assert "held-out" in complaint(eve("pretrain", "tiny", "--data.train", rows))
    done = eve(
        "pretrain", "tiny", "--data.train", rows, "--data.val", "held-out", "--train.steps", 2
    )
    assert done.returncode == 0, done.stderr


def test_a_complaint_from_a_loader_worker_is_one_line_too(eve, tmp_path: Path):
    rows = write_pairs(tmp_path / "pairs", count=60)
    for number in range(20, 60):
        (tmp_path / f"pairs/{number}.png").write_bytes(b"no image")
    alone, worker = (
        pretrain_on(eve, rows, "--data.num-workers", num, "--data.max-invalid-fraction", 1)
        for num in (0, 1)
    )
    assert worker == alone
    assert "rows in a row cannot be used" in alone


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--train.lr-multipliers", "nosuch*", 0.1), "'nosuch*' matches no parameter"),
        (("--train.freeze", "nosuch*"), "'nosuch*' matches no parameter"),
        (("--train.compile",), "there is no no-such-compiler"),
        (("--data.val", "alike.jsonl"), "usable and has another caption"),
    ],
)
def test_a_start_that_came_to_nothing_leaves_nothing(eve, tmp_path: Path, monkeypatch, flags, said):
    """Neither the files of a run nor an entry among its starts, nor its folder."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = write_pairs(tmp_path / "pairs")
    alike = [json.loads(line) | {"caption": "a circle"} for line in rows.read_text().splitlines()]
    (tmp_path / "alike.jsonl").write_text(
        "".join(json.dumps(row | {"image": f"pairs/{row['image']}"}) + "\n" for row in alike)
    )
    assert said in complaint(
        eve("pretrain", "tiny", "--out", "run", "--data.train", rows, "--data.val", rows, *flags)
    )
    assert not (tmp_path / "run").exists()
