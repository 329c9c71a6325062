"""Killed and stopped commands resume bit for bit; which fields may change between starts."""

import os
import pty
import select
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eve_vl.run.loading import read_config
from eve_vl.train.best_folder import read_best
from eve_vl.train.learning_rate import learning_rate
from eve_vl.train.run_log import read_log
from helpers.number_task import step_folder, validations
from helpers.run_comparison import assert_resumes_to_the_same, assert_same_run, wait_for_step

pytestmark = pytest.mark.usefixtures("no_report")

# a tokenizer of scenes:train, a hundred times as many rows, takes seconds
FLAGS = shlex.split(
    "--train.steps 10 --train.save-every 5 --train.val-every 5 --train.log-every 1 "
    "--data.train scenes:val --data.val-samples 16"
)
NOISE = shlex.split("--model.dropout 0.1 --model.drop-path 0.2 --data.flip --train.accumulation 2")
SYSTEM_FLAGS = shlex.split(
    "--train.steps 4 --train.save-every 2 --train.val-every 4 --train.log-every 1 "
    "--train.batch-size 8 --train.accumulation 2 --train.threads 1 "
    "--data.val-samples 8 --data.num-workers 0"
)
MUON = ["--train.optimizer", "muon"]
PRETRAIN = ("pretrain", "tiny", *FLAGS)


def kill_after_step(process: Any, run: Path, step: int) -> None:
    wait_for_step(run, step)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_run_resumes_bit_for_bit(eve, eve_fork, tmp_path: Path):
    command = (*PRETRAIN, *NOISE, *MUON)
    assert eve(*command, "--out", "whole").returncode == 0
    process = eve_fork(*command, "--out", "killed")
    kill_after_step(process, tmp_path / "killed", 6)  # past the checkpoint of step 5
    done = eve(*command, "--out", "killed", "--resume", "--data.num-workers", "1")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_killed_fine_tuning_resumes_bit_for_bit(eve, eve_fork, pretrained, tmp_path: Path):
    """With its best weights, whose number is that of a validation before the crash or after it."""
    data = ["--data.train", "scenes:val", "--data.val-samples", "32", "--train.batch-size", "8"]
    command = ("finetune", "scenes_vqa", "--init", pretrained, *FLAGS, *data, *NOISE)
    command += ("--data.augment", "color", "--data.num-workers", 0)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert eve(*command, "--out", "whole").returncode == 0
    process = eve_fork(*command, "--out", "killed")
    kill_after_step(process, killed, 6)
    assert (killed / "best/state.json").is_file()
    done = eve(*command, "--out", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(killed, whole)
    for name in ("answers.json", "model.safetensors"):
        assert (killed / "best" / name).read_bytes() == (whole / "best" / name).read_bytes(), name
    assert read_best(killed) == read_best(whole)


@pytest.mark.parametrize(
    ("recipe", "first_stage"),
    [
        ("vlmo_tiny_images", ""),
        ("vlmo_tiny_texts", "vlmo_tiny_images"),
        ("vlmo_tiny", "vlmo_tiny_texts"),
        ("mlim_tiny", ""),
        ("m3ae_tiny", ""),
        ("medflip_tiny", ""),
    ],
)
def test_each_system_resumes_bit_for_bit(recipe, first_stage, eve, pretrained, tmp_path: Path):
    """So does each stage, from the one before."""
    start = ("--tokenizer.path", pretrained / "tokenizer.json")
    if first_stage:
        one_step = (*SYSTEM_FLAGS, "--train.steps", 1)
        assert eve("pretrain", first_stage, *start, *one_step, "--out", "first").returncode == 0
        start = ("--init", "first")
    command = ("pretrain", recipe, *start, *SYSTEM_FLAGS)
    assert_resumes_to_the_same(eve, command, tmp_path, saved=2, steps=4)


def test_sigterm_saves_and_the_same_command_resumes(eve, eve_fork, tmp_path: Path):
    command = (*PRETRAIN, *NOISE)
    assert eve(*command, "--out", "whole").returncode == 0
    without_saves = ["--train.save-every", "100", "--data.num-workers", "1"]
    process = eve_fork(*command, *without_saves, "--out", "stopped", before=os.setsid)
    wait_for_step(tmp_path / "stopped", 2)
    os.killpg(process.pid, signal.SIGTERM)  # as `timeout` does, also to the loader's worker
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "checkpoint saved" in stderr
    assert "Traceback" not in stderr
    assert eve(*command, "--out", "stopped").returncode == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def take_over_terminal(name: str) -> None:
    """Make a terminal that of this process, and its input and output."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")


def test_run_is_saved_when_its_terminal_closes(eve_fork, tmp_path: Path):
    """Nothing can be printed any more, to a terminal with a progress bar."""
    master, slave = pty.openpty()
    long = ["--out", "run", "--train.steps", "1000", "--train.save-every", "1000"]
    process = eve_fork(*PRETRAIN, *long, before=partial(take_over_terminal, os.ttyname(slave)))
    output = b""
    while b"loss" not in output:  # beside the progress bar
        readable, _, _ = select.select([master], [], [], 60)
        assert readable, output
        output += os.read(master, 4096)
    os.close(slave)
    os.close(master)
    process.communicate(timeout=60)
    assert list((tmp_path / "run/checkpoints").glob("step_*"))


def test_run_folder_in_use_is_refused(eve, eve_fork, tmp_path: Path):
    run = tmp_path / "run"
    long = (*PRETRAIN, "--out", "run", "--train.steps", 1000)
    process = eve_fork(*long, "--data.num-workers", 1)
    wait_for_step(run, 6)
    config = (run / "config.json").read_bytes()
    second = eve(*PRETRAIN, "--out", "run")
    assert second.returncode == 2
    assert second.stderr.startswith(f"eve: run: is in use by process {process.pid}; ")
    assert (run / "config.json").read_bytes() == config
    os.kill(process.pid, signal.SIGKILL)  # its loader's worker outlives it for a moment
    process.communicate()
    done = eve(*long, "--train.lr", 1)
    assert "other values: train.lr 0.001 → 1.0; " in done.stderr
    assert not (run / ".lock").exists()


def test_failed_start_leaves_no_folder(eve, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "run", "--train.freeze", "nothing.*").returncode == 2
    done = eve("pretrain", "tiny", "--out", "other", "--resume")
    assert done.returncode == 2
    assert "nothing to resume" in done.stderr
    assert not (tmp_path / "other").exists()


def test_other_flags_in_the_same_folder_are_refused(eve):
    command = ("pretrain", "tiny", "--out", "run", "--train.steps", "2")
    assert eve(*command).returncode == 0
    done = eve(*command, "--train.lr", "0.1", "--model.top-k", "1")
    assert done.returncode == 2
    changes = "model.top_k 2 → 1; train.lr 0.001 → 0.1"
    assert f"holds a run with other values: {changes}; give the same flags" in done.stderr
    assert eve(*command, "--train.keep_checkpoints", "1").returncode == 0


def test_finished_run_can_be_lengthened(eve, tmp_path: Path):
    """Its weights stay, rates are those of the longer schedule, and the log says so once."""
    run = tmp_path / "run"
    flags = "--train.log-every 1 --train.save-every 4 --data.val-samples 8"
    command = ("pretrain", "tiny", "--out", "run", *flags.split(), "--train.keep_checkpoints", 3)
    assert eve(*command, "--train.steps", 4).returncode == 0
    checkpoint = step_folder(run, 4) / "model.safetensors"
    before = load_file(checkpoint)
    for _ in range(2):
        changes = ["--train.val-every", "6", "--train.accumulation", "2"]
        done = eve(*command, "--train.steps", 8, *changes)
        assert done.returncode == 0, done.stderr
    after = load_file(checkpoint)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(validations(run, "mlm_acc")) == [4, 6, 8]

    rows = read_log(run)
    notes = [row["text"] for row in rows if row["kind"] == "note"]
    first, *changed, last = [text for text in notes if "on training rows" not in text]
    assert first.count("mlm_acc") == last.count("mlm_acc") == 1  # comparisons at both ends
    assert changed[:3] == [
        "train.accumulation 1 → 2",
        "train.steps 4 → 8",
        "train.val_every 10 → 6",
    ]
    assert len(changed) == 4
    schedule = "the learning rate follows the schedule of 8 steps from here on: at step 4 it goes"
    assert changed[3].startswith(f"{schedule} from 0 to ")
    config = read_config(run).train
    rates = {row["step"]: row["lr"] for row in rows if row["kind"] == "train"}
    assert sorted(rates) == list(range(1, 9))
    for step in range(5, 9):
        assert rates[step] == learning_rate(step - 1, config)

    shorter = eve(*command, "--train.steps", 6)
    assert "train.steps 6, below step 8, which it has reached" in shorter.stderr


def test_non_finite_loss_stops_before_the_update(eve, tmp_path: Path):
    flags = ["--train.lr", "1e30", "--train.save-every", "1", "--train.warmup", "0"]
    done = eve("pretrain", "tiny", "--out", "run", *flags)
    assert done.returncode == 2
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = (tmp_path / "run").glob("non_finite_step_*")
    assert load_file(folder / "batch.safetensors")["images_BCHW"].shape[0] == 16
    assert len((folder / "samples.txt").read_text().splitlines()) == 16
    step = int(folder.name.split("_")[3])
    saved = load_file(step_folder(tmp_path / "run", step) / "model.safetensors")
    stopped = load_file(folder / "model.safetensors")
    assert all(torch.equal(stopped[name], value) for name, value in saved.items())
