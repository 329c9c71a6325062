"""10 steps = 5 + kill + 5, bit for bit; signals; fields that may change between starts."""

import os
import pty
import select
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eve_vl.run.loading import read_config
from eve_vl.train.best_folder import read_best
from eve_vl.train.learning_rate import learning_rate
from eve_vl.train.meter import TIMING
from eve_vl.train.run_log import read_log

pytestmark = pytest.mark.usefixtures("no_report")

FLAGS = (
    *(
        "--train.steps",
        "10",
        "--train.save-every",
        "5",
        "--train.val-every",
        "5",
        "--train.log-every",
        "1",
    ),
    *(
        "--data.train",
        "scenes:val",
        "--data.val-samples",
        "16",
    ),  # of a hundred times as many rows a tokenizer takes seconds
)
NOISE = (
    "--model.dropout",
    "0.1",
    "--model.drop-path",
    "0.2",
    "--data.flip",
    "--train.accumulation",
    "2",
)


def assert_resumes_to_the_same(
    eve: Any, words: tuple[Any, ...], folder: Path, saved: int, steps: int
) -> None:
    """Run a command, and again in a copy that lacks the last checkpoint: the runs `whole` and `killed` are equal."""
    assert eve(*words, "--out", "whole").returncode == 0
    shutil.copytree(
        folder / "whole",
        folder / "killed",
        ignore=shutil.ignore_patterns(f"step_{steps:08}", "metrics.json"),
    )
    done = eve(*words, "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {saved} of {steps}" in done.stdout
    assert_same_run(folder / "whole", folder / "killed", step=steps)


def assert_same_run(one: Path, two: Path, step: int = 10) -> None:
    for name in ("model", "optimizer", "rng_0"):
        a, b = (
            load_file(run / f"checkpoints/step_{step:08}/{name}.safetensors") for run in (one, two)
        )
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a if a[key].isfinite().all()), name
    logs = [
        [row for row in read_log(run) if "→" not in row.get("text", "")] for run in (one, two)
    ]  # but for changed flags
    for a, b in zip(*logs, strict=True):
        for timing in TIMING:
            a.pop(timing, None)
            b.pop(timing, None)
        assert a == b


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(600):
        if (run / "log.jsonl").is_file() and f'"step": {step},' in (run / "log.jsonl").read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in {run}")


MUON = ("--train.optimizer", "muon")


def test_killed_run_goes_on_bit_for_bit(eve, eve_fork, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "whole", *FLAGS, *NOISE, *MUON).returncode == 0
    process = eve_fork("pretrain", "tiny", "--out", "killed", *FLAGS, *NOISE, *MUON)
    wait_for_step(tmp_path / "killed", 6)  # past the checkpoint of step 5
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = eve(
        "pretrain",
        "tiny",
        "--out",
        "killed",
        *FLAGS,
        *NOISE,
        *MUON,
        "--resume",
        "--data.num-workers",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


FEW = (
    *(
        "--train.steps",
        4,
        "--train.save-every",
        2,
        "--train.val-every",
        4,
        "--train.log-every",
        1,
        "--train.batch-size",
        8,
    ),
    *("--data.val-samples", 8, "--data.num-workers", 0, "--train.accumulation", 2),
    *("--train.threads", 1),  # that two pay is measured by steps
)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        *(
            ("vlmo_tiny_images", ""),
            ("vlmo_tiny_texts", "vlmo_tiny_images"),
            ("vlmo_tiny", "vlmo_tiny_texts"),
        ),
        *(("mlim_tiny", ""), ("m3ae_tiny", ""), ("medflip_tiny", "")),
    ],
)
def test_each_system_resumes_bit_for_bit(name, before, eve, pretrained, tmp_path: Path):
    """So does each stage, from the one before."""
    start: tuple[Any, ...] = ("--tokenizer.path", pretrained / "tokenizer.json")
    if before:
        assert (
            eve("pretrain", before, *start, *FEW, "--train.steps", 1, "--out", "before").returncode
            == 0
        )
        start = ("--init", "before")
    words = ("pretrain", name, *start, *FEW)
    assert_resumes_to_the_same(eve, words, tmp_path, saved=2, steps=4)


def test_sigterm_saves_and_the_same_command_goes_on(eve, eve_fork, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "whole", *FLAGS, *NOISE).returncode == 0
    words = (
        "pretrain",
        "tiny",
        "--out",
        "stopped",
        *FLAGS,
        *NOISE,
        "--train.save-every",
        "100",
        "--data.num-workers",
        "1",
    )
    process = eve_fork(*words, before=os.setsid)
    wait_for_step(tmp_path / "stopped", 2)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does, also to the loader's worker
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "checkpoint saved" in stderr
    assert "Traceback" not in stderr
    assert eve("pretrain", "tiny", "--out", "stopped", *FLAGS, *NOISE).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def in_terminal(name: str) -> None:
    """Make a terminal that of this process, and its input and output."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")


def test_a_closed_terminal_loses_nothing(eve_fork, tmp_path: Path):
    """Nothing can be said any more, to a terminal with a progress bar, yet the run is saved."""
    master, slave = pty.openpty()
    long = (
        "pretrain",
        "tiny",
        "--out",
        "run",
        *FLAGS,
        "--train.steps",
        "1000",
        "--train.save-every",
        "1000",
    )
    process = eve_fork(*long, before=partial(in_terminal, os.ttyname(slave)))
    shown = b""
    while b"loss" not in shown:  # beside the progress bar
        assert select.select([master], [], [], 60)[0], shown
        shown += os.read(master, 4096)
    os.close(slave)
    os.close(master)
    process.communicate(timeout=60)
    assert list((tmp_path / "run/checkpoints").glob("step_*"))


def test_killed_fine_tuning_goes_on_bit_for_bit(eve, eve_fork, pretrained, tmp_path: Path):
    """With its best weights, whose number is that of a validation before the crash or after it."""
    data = ("--data.train", "scenes:val", "--data.val-samples", 32, "--train.batch-size", 8)
    command = ("finetune", "scenes_vqa", "--init", pretrained, *data)
    flags = (*FLAGS, *NOISE, "--data.augment", "color", "--data.num-workers", 0)
    assert eve(*command, "--out", "whole", *flags).returncode == 0
    process = eve_fork(*command, "--out", "killed", *flags)
    wait_for_step(tmp_path / "killed", 6)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "killed/best/state.json").is_file()
    done = eve(*command, "--out", "killed", *flags, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    for name in ("answers.json", "model.safetensors"):
        assert (tmp_path / "whole/best" / name).read_bytes() == (
            tmp_path / "killed/best" / name
        ).read_bytes(), name
    assert read_best(tmp_path / "whole") == read_best(tmp_path / "killed")


def test_a_run_folder_in_use_is_refused(eve, eve_fork, tmp_path: Path):
    long = (
        "pretrain",
        "tiny",
        "--out",
        "run",
        *FLAGS,
        "--train.steps",
        1000,
        "--data.num-workers",
        1,
    )
    process = eve_fork(*long)
    wait_for_step(tmp_path / "run", 6)
    config = (tmp_path / "run/config.json").read_bytes()
    second = eve("pretrain", "tiny", "--out", "run", *FLAGS)
    assert second.returncode == 2
    assert second.stderr.startswith(f"eve: run: is in use by process {process.pid}; ")
    assert (tmp_path / "run/config.json").read_bytes() == config
    os.kill(process.pid, signal.SIGKILL)  # its loader's worker outlives it for a moment
    process.communicate()
    done = eve("pretrain", "tiny", "--out", "run", *FLAGS, "--train.steps", 1000, "--train.lr", 1)
    assert "other values: train.lr 0.001 → 1.0; " in done.stderr
    assert not (tmp_path / "run/.lock").exists()


def test_a_start_that_came_to_nothing_leaves_no_folder(eve, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "run", "--train.freeze", "nothing.*").returncode == 2
    assert eve("pretrain", "tiny", "--out", "other", "--resume").returncode == 2
    assert not (tmp_path / "other").exists()


def test_resume_needs_something_to_resume(eve):
    done = eve("pretrain", "tiny", "--out", "nowhere", "--resume")
    assert done.returncode == 2
    assert "nothing to resume" in done.stderr


def test_other_flags_in_the_same_folder_are_refused(eve):
    assert eve("pretrain", "tiny", "--out", "run", "--train.steps", "2").returncode == 0
    done = eve(
        "pretrain",
        "tiny",
        "--out",
        "run",
        "--train.steps",
        "2",
        "--train.lr",
        "0.1",
        "--model.top-k",
        "1",
    )
    assert done.returncode == 2
    assert (
        "holds a run with other values: model.top_k 2 → 1; train.lr 0.001 → 0.1; give the same flags"
        in done.stderr
    )
    assert (
        eve(
            "pretrain",
            "tiny",
            "--out",
            "run",
            "--train.steps",
            "2",
            "--train.keep_checkpoints",
            "1",
        ).returncode
        == 0
    )


def test_a_finished_run_can_be_lengthened(eve, tmp_path: Path):
    """What it has learnt stays, rates are those of the longer schedule, and the log says so once."""
    flags = (
        "pretrain",
        "tiny",
        "--out",
        "run",
        "--train.log-every",
        1,
        "--train.save-every",
        4,
        "--data.val-samples",
        8,
    )
    assert eve(*flags, "--train.steps", 4, "--train.keep_checkpoints", 3).returncode == 0
    first = load_file(tmp_path / "run/checkpoints/step_00000004/model.safetensors")
    for _ in range(2):
        more = ("--train.val-every", 6, "--train.accumulation", 2)  # of fewer processes, say
        done = eve(*flags, "--train.steps", 8, "--train.keep_checkpoints", 3, *more)
        assert done.returncode == 0, done.stderr
    assert (
        "the learning rate follows the schedule of 8 steps from here on: at step 4 it goes from 0 to "
        in (tmp_path / "run/log.jsonl").read_text()
    )
    again = load_file(tmp_path / "run/checkpoints/step_00000004/model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    rows = read_log(tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "val"] == [4, 6, 8]
    notes = [
        row["text"]
        for row in rows
        if row["kind"] == "note" and "on training rows" not in row["text"]
    ]
    before, *texts, after = notes  # verdicts at both ends
    assert before.count("mlm_acc") == after.count("mlm_acc") == 1
    assert texts[:3] == ["train.accumulation 1 → 2", "train.steps 4 → 8", "train.val_every 10 → 6"]
    assert len(texts) == 4
    config = read_config(tmp_path / "run").train
    rates = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    assert [rates[step] for step in range(5, 9)] == [
        learning_rate(step - 1, config) for step in range(5, 9)
    ]
    assert sorted(rates) == list(range(1, 9))
    shorter = eve(*flags, "--train.steps", 6, "--train.keep_checkpoints", 3)
    assert "train.steps 6, below step 8, which it has reached" in shorter.stderr


def test_non_finite_loss_stops_before_the_update(eve, tmp_path: Path):
    done = eve(
        "pretrain",
        "tiny",
        "--out",
        "run",
        "--train.lr",
        "1e30",
        "--train.save-every",
        "1",
        "--train.warmup",
        "0",
    )
    assert done.returncode == 2
    assert "not finite" in done.stderr and "Traceback" not in done.stderr
    (folder,) = (tmp_path / "run").glob("non_finite_step_*")
    assert load_file(folder / "batch.safetensors")["images_BCHW"].shape[0] == 16
    assert len((folder / "samples.txt").read_text().splitlines()) == 16
    step = int(folder.name.split("_")[3])
    saved = load_file(tmp_path / f"run/checkpoints/step_{step:08d}/model.safetensors")
    stopped = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[key], stopped[key]) for key in saved)
