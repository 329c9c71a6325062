"""Killed and stopped commands resume bit for bit; which fields may change between starts."""

import os
import pty
import select
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

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
PRETRAIN = shlex.split(
    "pretrain tiny --train.steps 10 --train.save-every 5 --train.val-every 5 --train.log-every 1 "
    "--train.batch-size 4 --data.train scenes:val --data.val-samples 8"
)
NOISE = shlex.split("--model.dropout 0.1 --model.drop-path 0.2 --data.flip --train.accumulation 2")
SHORT = shlex.split(
    "--train.steps 2 --train.save-every 1 --train.val-every 2 --train.log-every 1 "
    "--train.batch-size 4 --train.accumulation 2 --train.threads 1 "
    "--data.val-samples 8 --data.num-workers 0"
)


def test_killed_and_terminated_runs_resume_bit_for_bit(eve, eve_fork, tmp_path: Path):
    command = (*PRETRAIN, *NOISE, "--train.optimizer", "muon")
    assert eve(*command, "--out", "whole").returncode == 0

    process = eve_fork(*command, "--out", "killed")
    wait_for_step(tmp_path / "killed", 6)  # past the checkpoint of step 5
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = eve(*command, "--out", "killed", "--resume", "--data.num-workers", "1")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")

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


@pytest.mark.parametrize("recipe", ["mlim_tiny", "m3ae_tiny", "medflip_tiny"])
def test_each_system_resumes_bit_for_bit(recipe, eve, pretrained, tmp_path: Path):
    command = ("pretrain", recipe, "--tokenizer.path", pretrained / "tokenizer.json", *SHORT)
    assert_resumes_to_the_same(eve, command, tmp_path, saved=1, steps=2)


def test_each_stage_of_vlmo_resumes_bit_for_bit(eve, pretrained, tmp_path: Path):
    start = ("--tokenizer.path", pretrained / "tokenizer.json")
    for recipe in ("vlmo_tiny_images", "vlmo_tiny_texts", "vlmo_tiny"):
        command = ("pretrain", recipe, *start, *SHORT)
        assert_resumes_to_the_same(eve, command, tmp_path, saved=1, steps=2)
        (tmp_path / "whole").rename(tmp_path / recipe)
        shutil.rmtree(tmp_path / "killed")
        start = ("--init", recipe)


def test_fine_tuning_resumes_bit_for_bit_with_its_best_weights(eve, pretrained, tmp_path: Path):
    data = shlex.split("--data.train scenes:val --data.augment color")
    command = ("finetune", "scenes_vqa", "--init", pretrained, *SHORT, *NOISE, *data)
    command += ("--train.val-every", 1)
    assert_resumes_to_the_same(eve, command, tmp_path, saved=1, steps=2)
    whole = tmp_path / "whole/best"
    killed = tmp_path / "killed/best"
    assert read_best(killed.parent) == read_best(whole.parent)
    for name in ("answers.json", "model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def take_over_terminal(name: str) -> None:
    """Make a terminal that of this process, and its input and output."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w")


def test_run_in_use_is_refused_and_saved_when_its_terminal_closes(eve, eve_fork, tmp_path: Path):
    """Nothing can be printed any more, to a terminal with a progress bar."""
    run = tmp_path / "run"
    master, slave = pty.openpty()
    long = ("--out", "run", "--train.steps", 1000, "--train.save-every", 1000)
    process = eve_fork(*PRETRAIN, *long, before=partial(take_over_terminal, os.ttyname(slave)))
    output = b""
    while b"loss" not in output:  # beside the progress bar
        readable, _, _ = select.select([master], [], [], 60)
        assert readable, output
        output += os.read(master, 4096)

    config = (run / "config.json").read_bytes()
    second = eve(*PRETRAIN, "--out", "run")
    assert second.returncode == 2
    assert second.stderr.startswith(f"eve: run: is in use by process {process.pid}; ")
    assert (run / "config.json").read_bytes() == config

    os.close(slave)
    os.close(master)
    process.communicate(timeout=60)
    assert list((run / "checkpoints").glob("step_*"))
    assert not (run / ".lock").exists()


def test_failed_start_leaves_no_folder(eve, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "run", "--train.freeze", "nothing.*").returncode == 2
    done = eve("pretrain", "tiny", "--out", "other", "--resume")
    assert done.returncode == 2
    assert "nothing to resume" in done.stderr
    assert list(tmp_path.iterdir()) == []


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
    another = eve(*command, "--train.steps", 8, "--train.lr", "0.1", "--model.top-k", "1")
    assert another.returncode == 2
    differences = "model.top_k 2 → 1; train.lr 0.001 → 0.1"
    assert f"holds a run with other values: {differences}; give the same flags" in another.stderr
