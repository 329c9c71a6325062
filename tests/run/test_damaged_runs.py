"""Damaged run folders: one line names the file, or the damage is skipped."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

import eve_vl
from eve_vl.eve import Eve
from eve_vl.interop.convert import import_weights
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.eve_checkpoints import EVE, export_published
from eve_vl.interop.foreign_weights import read_tensors
from eve_vl.interop.image_encoders import IMAGE_ENCODERS
from eve_vl.pages.curves import Curves
from eve_vl.run.flops import inspect_run
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.training import train
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.train import checkpoint_folders
from eve_vl.train.bad_samples import BadSamples, read_bad_samples
from eve_vl.train.meter import Meter
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.damaged_checkpoints import edit_state
from helpers.mutations import mutate
from helpers.number_task import CONFIG, Guess, scored, step_folder, trainer_of
from helpers.number_task import train as train_guess
from helpers.published import tiny_published, write_tokenizer_of_500
from helpers.tiny_config import tiny_config
from helpers.tiny_runs import tiny_run, write_run

NUM_DAMAGES = 30  # of each file
CONFIG_4 = replace(CONFIG, steps=4, log_every=3)
CHECKPOINT = "checkpoints/step_00000002"


def require_one_line(path: Path, use: Callable[[], object]) -> None:
    """Damage a file in many ways. Its use either works or raises an error of one line."""
    whole = path.read_bytes()
    for seed in range(NUM_DAMAGES):
        path.write_bytes(mutate(Random(seed), path.name, whole))
        try:
            use()
        except UserError as error:
            message = str(error)
            assert message.isprintable(), (seed, message)
            assert len(message) < 4100, (seed, message)
    path.write_bytes(whole)


@pytest.fixture(scope="module")
def guesses(tmp_path_factory) -> Path:
    """A run at step 2 of 4 with best weights, an open log window and bad samples."""
    run = tmp_path_factory.mktemp("guesses") / "run"
    train_guess(run, Guess(scored(0.5, 0.4)), CONFIG_4)
    shutil.rmtree(step_folder(run, 4))
    rows = [{"where": f"rows.jsonl:{row}", "reason": "cannot be read"} for row in range(3)]
    (run / "bad_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def resume(run: Path) -> None:
    """Read what training reads before it goes on."""
    task = Guess([])
    trainer = trainer_of(run, task, CONFIG_4)
    trainer.resume()
    BadSamples(run, num_rows=1, max_share=1, writes=True)
    if trainer.window:
        Meter(trainer.window).result(CONFIG_4, 3)
    assert all(tensor.isfinite().all() for tensor in task.state_dict().values())


def report(run: Path) -> None:
    """Read what a page shows of a log."""
    curves = Curves(log=read_log(run), step=4)
    for name in curves.names_without_chart([]):
        curves.chart(name, [curves.train(name), curves.val(name)])
    read_bad_samples(run)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("log.jsonl", resume),
        ("log.jsonl", report),
        ("bad_samples.jsonl", resume),
        ("bad_samples.jsonl", report),
        ("best/state.json", resume),
        (f"{CHECKPOINT}/state.json", resume),
        (f"{CHECKPOINT}/model.safetensors", resume),
        (f"{CHECKPOINT}/optimizer.safetensors", resume),
        (f"{CHECKPOINT}/rng_0.safetensors", resume),
    ],
)
def test_going_on_with_a_damaged_run_is_one_line(guesses: Path, name, use):
    with torch.random.fork_rng(devices=[]):
        require_one_line(guesses / name, partial(use, guesses))


@pytest.mark.parametrize("name", ["config.json", "state.json", "answers.json", "model.safetensors"])
def test_loading_a_damaged_run_is_one_line(tmp_path: Path, name):
    run = write_run(tiny_run("vqa"), tmp_path / "run")

    def load_and_use() -> None:
        inspect_run(run)
        Eve.load(run).encode_text("a red circle")

    require_one_line(run / name, load_and_use)


@pytest.mark.filterwarnings("ignore")  # of torch, about what it is asked to read here
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converting_a_damaged_file_is_one_line(tmp_path: Path, suffix):
    path = tmp_path / f"published{suffix}"
    run = tmp_path / "run"
    words = write_tokenizer_of_500(tmp_path / "tokenizer.json")
    if suffix == ".pth":
        torch.save(tiny_published("retrieval"), path)
    else:
        save_file(tiny_published("retrieval"), path)

    def convert() -> None:
        shutil.rmtree(run, ignore_errors=True)
        args = ConvertArgs(
            source=path,
            target=run,
            tokenizer=words,
            num_heads=4,
        )
        import_weights([IMAGE_ENCODERS, EVE], read_tensors(path), args)

    require_one_line(path, convert)


# What decides an answer has a checksum


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A trained run with an answer list."""
    folder = tmp_path_factory.mktemp("tuned")
    data = {
        "train": ("scenes:val",),
        "val": ("scenes:val",),
        "val_samples": 4,
    }
    config = tiny_config(
        task=VQAConfig(),
        data=data,
        train={"steps": 1},
    )
    train(replace(config, out=folder / "run"))
    return folder / "run"


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    return shutil.copytree(tuned, tmp_path / "run")


@pytest.mark.parametrize("name", ["answers.json", "model.safetensors", "data.json"])
def test_a_changed_file_of_a_run_is_refused(run: Path, name):
    path = run / "best" / name
    path.write_bytes(path.read_bytes().replace(b"e", b"d", 1))
    problem = f"{name} is not what was written, by its checksum"
    require_refusal(run, problem)
    path.unlink()
    require_refusal(run, f"{name} is missing")


def require_refusal(run: Path, problem: str) -> None:
    """Require that the best weights are neither loaded nor exported."""
    fix = "; restore it from a copy, or delete this folder to continue without it"
    for use in (load_run, partial(export_published, target=run / "weights.pth")):
        with pytest.raises(UserError) as error:
            use(run)
        assert str(error.value) == f"{run}/best: damaged ({problem}){fix}"


def test_a_run_resumes_with_the_labels_and_tokenizer_of_its_checkpoint(run: Path):
    """Those next to the checkpoints are copies for people."""
    whole = {name: (run / name).read_bytes() for name in ("answers.json", "tokenizer.json")}
    for name, content in whole.items():
        (run / name).write_bytes(content.replace(b"e", b"d", 1))
    config = read_config(run)
    train(replace(config, out=run, train=replace(config.train, steps=2)))
    for name, content in whole.items():
        assert (run / name).read_bytes() == content, name


def test_a_config_may_be_edited(run: Path):
    path = run / "best/config.json"
    path.write_text(path.read_text().replace('"scenes:val"', '"scenes:test"'))
    assert load_run(run).config.data.val == ("scenes:test",)


# What is found, and what is left out, in words


def test_a_bad_weight_is_named_when_a_run_is_used_or_started_from(
    eve, pretrained: Path, tmp_path: Path
):
    start = checkpoint_folders.chosen_checkpoint(pretrained)
    folder = shutil.copytree(start, tmp_path / "start")
    edit_state(sha256={})(folder)  # as of an older version
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.norm.bias"] = torch.full_like(tensors["encoder.norm.bias"], torch.nan)
    save_file(tensors, folder / "model.safetensors")
    for command in (
        ("features", folder, "--texts", "a", "--out", "f.npz"),
        ("finetune", "demo_vqa", "--init", folder, "--out", "tuned"),
    ):
        done = eve(*command)
        assert done.returncode == 2
        assert "encoder.norm.bias holds NaN or infinity" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"steps": True}, "train.steps True: JSON bool, expected a whole number"),
        ("train", {"steps": 10**30}, "a whole number of too many digits"),
        (
            "train",
            {"lr_multipliers": [["encoder.*", "1"]]},
            "train.lr_multipliers[0][1] '1': JSON str, expected a number",
        ),
        ("data", {"image_root": "\0"}, "data.image_root '\\x00': "),
        ("model", [], "model []: JSON list, expected"),
        ("format", 99, "config format 99 is not supported"),
    ],
)
def test_a_config_names_the_file_and_the_key(tmp_path: Path, section, values, message):
    run = write_run(tiny_run("vqa"), tmp_path / "run")
    path = run / "config.json"
    config = json.loads(path.read_text())
    if isinstance(values, dict):
        config[section] |= values
    else:
        config[section] = values
    path.write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        read_config(run)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_name_that_begins_with_a_space_keeps_it():
    assert str(BadSampleError(" .png", "no captions")) == " .png: no captions"


def test_half_a_bad_row_does_not_swallow_the_next(tmp_path: Path):
    (tmp_path / "bad_samples.jsonl").write_text(
        '{"where": "a", "reason": "b"}\n{"where": "c", "rea'
    )
    errors = [BadSampleError("c", "d") for _ in range(3)]
    # of two files of one name
    errors[1].row = "0:7"
    errors[2].row = "1:7"
    for batch in ([*errors, BadSampleError("a", "b")], errors):
        bad_samples = BadSamples(
            tmp_path,
            num_rows=9,
            max_share=1,
            writes=True,
        )
        bad_samples.add(batch, num_seen=1)
    rows = [(row["where"], row["reason"]) for row in read_bad_samples(tmp_path).values()]
    assert rows == [("a", "b"), *[("c", "d")] * 3]


def test_a_folder_that_cannot_be_renamed_is_read_without_it(
    guesses: Path, tmp_path: Path, monkeypatch
):
    """A crash left the best weights aside, and the disk has been read-only since."""
    run = shutil.copytree(guesses, tmp_path / "run")
    (run / "best").rename(run / ".best.old")

    def read_only(_self: Path, _target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    assert checkpoint_folders.chosen_checkpoint(run) == step_folder(run, 2)


# The command line


OF_THE_PACKAGE = str(Path(eve_vl.__file__).parent / "report/style.css")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "pairs.jsonl"),
            "pairs.jsonl: No such file or directory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EBADF, "Bad file descriptor"), None),
        (OSError("something inside of torch"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", OF_THE_PACKAGE), None),
    ],
)
def test_an_error_of_the_system_is_one_line_only_where_the_user_can_mend_it(
    eve, monkeypatch, error, message
):
    def verb(_argv: Sequence[str]) -> None:
        raise error

    monkeypatch.setattr("eve_vl.cli.inspect.run_inspect", verb)
    if message is None:
        with pytest.raises(type(error)):
            eve("inspect")
        return
    done = eve("inspect")
    assert done.returncode == 2
    assert done.stderr == f"eve: {message}\n"


@pytest.mark.parametrize("module", ["eve_vl.utils.errors", "torch._utils"])
def test_an_interrupt_while_modules_load_leaves_no_traceback(tmp_path: Path, module):
    command = [sys.executable, "-X", "importtime", "-m", "eve_vl", "pretrain", "tiny"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not process.stderr.readline().endswith(f" {module}\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in stderr.splitlines() if not line.startswith("import time:")]
    assert lines == ["eve: interrupted"]


def test_an_interrupt_is_handled_before_any_slow_import():
    imports = "import os, signal, sys, types, typing"
    code = f"{imports}; before = set(sys.modules); import eve_vl.__main__; "
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "eve_vl eve_vl.__main__\n"
