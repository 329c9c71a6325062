"""Damaged run folders: one line names the file, or the damage is skipped."""

import copy
import errno
import functools
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import eve_vl
from eve_vl.eve import Eve
from eve_vl.interop.convert import import_weights
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.eve_checkpoints import EVE, export_published
from eve_vl.interop.foreign_weights import read_tensors
from eve_vl.interop.image_encoders import IMAGE_ENCODERS
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.pages.curves import Curves
from eve_vl.run.flops import inspect_run
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.training import train
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.train import checkpoint_folders
from eve_vl.train.bad_samples import BadSamples, read_bad_samples
from eve_vl.train.meter import Meter
from eve_vl.train.run_log import RunLog, read_log
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.number_task import CONFIG, Guess, scored, step_folder
from helpers.number_task import train as train_guess
from helpers.published import tiny_published, write_tokenizer_of_500
from helpers.tiny_runs import tiny_run, write_run
from helpers.twins import tiny_config

CONFIG_4 = replace(CONFIG, steps=4, log_every=3)
FEW = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
NESTED: Any = json.loads("[" * 200 + "]" * 200)
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**18,
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\ud800",
        "\0",
    ),
    *(
        "\x1b[31m",
        "../..",
        "/dev/zero",
        "step_00000009",
        [],
        {},
        [1],
        ["a", "a"],
        {"a": 1},
        NESTED,
        "x" * 5000,
    ),
)


def paths(value: Any, here: tuple = ()) -> list[tuple]:
    """The ways to all that a JSON value holds."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [here, *(way for key, item in items for way in paths(item, (*here, key)))][:2000]


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Flipped, cut, doubled or inserted bytes."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(
            st.integers(0, max(len(data) - 1, 0)) | st.integers(0, min(200, max(len(data) - 1, 0)))
        )
        match draw(st.sampled_from(("flip", "cut", "insert", "double", "set"))):
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(
                    st.binary(min_size=1, max_size=8)
                    | st.sampled_from((b"\n", b"[" * 5000, b"9" * 400))
                )
            case "double":
                data += data[place : place + 500]
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case _ if data:
                data[place] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def odd_json(draw: Any, content: bytes) -> bytes:
    """The same JSON with another value, one less or one more somewhere."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        way = draw(st.sampled_from(paths(value)))
        new = copy.deepcopy(draw(st.sampled_from(VALUES)))
        if not way:
            value = new
            continue
        holder = value
        for key in way[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(("set", "set", "delete", "add"))):
            case "set":
                holder[way[-1]] = new
            case "delete":
                del holder[way[-1]]
            case _ if isinstance(holder, dict):
                holder[
                    draw(
                        st.sampled_from(
                            ("name", "format", "kind", "step", "where", "value", "__class__", "x")
                        )
                    )
                ] = new
            case _:
                holder.append(new)
    return json.dumps(value).encode()


@st.composite
def odd_lines(draw: Any, content: bytes) -> bytes:
    """JSON lines, some of which are odd."""
    lines = content.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = draw(odd_json(content.splitlines()[place]) | damaged_bytes(lines[place]))
    return b"\n".join(lines) + draw(st.sampled_from((b"", b"\n", b"\xff")))


def odd_file(path: Path) -> st.SearchStrategy[bytes]:
    """What a file may hold after damage."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return odd_json(content) | damaged_bytes(content)
    return (
        odd_lines(content) | damaged_bytes(content)
        if path.suffix == ".jsonl"
        else damaged_bytes(content)
    )


def only_user_errors(call: Callable[[], object], path: Path) -> None:
    """Call; what is wrong must be told in one line."""
    try:
        call()
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable(), error
        assert len(str(error)) < 4100, path


def without_sums(folder: Path) -> None:
    """Make a checkpoint one of an older version, which had no checksums."""
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(
        json.dumps({name: value for name, value in state.items() if name != "sha256"})
    )


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
    """What going on reads."""
    task = Guess([])
    trainer = Trainer(CONFIG_4, run, task, task, device=torch.device("cpu"), texts={})
    trainer.resume()
    BadSamples(run, num_rows=1, max_share=1, writes=True)
    if trainer.window:
        Meter(trainer.window).result(CONFIG_4, 3)
    assert all(tensor.isfinite().all() for tensor in task.state_dict().values())


def report(run: Path) -> None:
    """What a page makes of a log."""
    curves = Curves(log=read_log(run), step=4)
    for name in curves.names_without_chart([]):
        curves.chart(name, [curves.train(name), curves.val(name)])
    read_bad_samples(run)


RUN_FILES = (
    *("log.jsonl", "bad_samples.jsonl", "best/state.json", "checkpoints/step_00000002/state.json"),
    *(f"checkpoints/step_00000002/{name}.safetensors" for name in ("model", "optimizer", "rng_0")),
)


def damage(run: Path, name: str, *uses: Callable[[Path], object]) -> None:
    """Use a run while one of its files is damaged in many ways."""
    path = run / name
    whole = path.read_bytes()

    @FEW
    @given(odd_file(path))
    def try_out(content: bytes) -> None:
        path.write_bytes(content)
        for use in uses:
            only_user_errors(functools.partial(use, run), path)

    try:
        try_out()
    finally:
        path.write_bytes(whole)
        torch.manual_seed(0)


@pytest.mark.parametrize("name", RUN_FILES)
def test_going_on_with_a_damaged_run_is_one_line(guesses: Path, name):
    damage(guesses, name, resume, *[report] * name.endswith("jsonl"))


@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Path:
    """The weights of a tiny run with an answer list."""
    return write_run(tiny_run("vqa"), tmp_path_factory.mktemp("answering") / "run")


def use(folder: Path) -> None:
    """What people do with a run."""
    inspect_run(folder)
    Eve.load(folder).encode_text("a red circle")


@pytest.mark.parametrize("name", ["config.json", "state.json", "answers.json", "model.safetensors"])
def test_loading_a_damaged_run_is_one_line(answering: Path, name):
    damage(answering, name, use)


def import_any(path: Path, run: Path, words: Path) -> None:
    args = ConvertArgs(source=path, target=run, tokenizer=words, num_heads=4)
    import_weights([IMAGE_ENCODERS, EVE], read_tensors(path), args)


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

    @settings(FEW, max_examples=20)
    @given(odd_file(path))
    def try_out(content: bytes) -> None:
        path.write_bytes(content)
        only_user_errors(lambda: import_any(path, run, words), path)
        shutil.rmtree(run, ignore_errors=True)

    try_out()


# What decides an answer has a checksum


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A trained run with an answer list."""
    folder = tmp_path_factory.mktemp("tuned")
    data = {"train": ("scenes:val",), "val": ("scenes:val",), "val_samples": 4}
    config = tiny_config(task=VQAConfig(), data=data, train={"steps": 1})
    train(replace(config, out=folder / "run"))
    return folder / "run"


@pytest.mark.parametrize(
    "name", ["answers.json", "tokenizer.json", "model.safetensors", "data.json"]
)
def test_a_changed_file_of_a_run_is_refused(tuned: Path, tmp_path: Path, name):
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    content = (run / "best" / name).read_bytes()
    fix = "; restore it from a copy, or delete this folder to continue without it"
    for damaged, problem in (
        (content.replace(b"e", b"d", 1), f"{name} is not what was written, by its checksum"),
        (None, f"{name} is missing"),
    ):
        (run / "best" / name).write_bytes(damaged) if damaged else (run / "best" / name).unlink()
        for call in (load_run, lambda folder: export_published(folder, tmp_path / "weights.pth")):
            with pytest.raises(UserError) as refused:
                call(run)
            assert str(refused.value) == f"{run}/best: damaged ({problem}){fix}"


def test_a_run_resumes_with_the_labels_and_tokenizer_of_its_checkpoint(tuned: Path, tmp_path: Path):
    """Those next to the checkpoints are copies for people."""
    run = tmp_path / "run"
    shutil.copytree(tuned, run)
    whole = {name: (run / name).read_bytes() for name in ("answers.json", "tokenizer.json")}
    for name, content in whole.items():
        (run / name).write_bytes(content.replace(b"e", b"d", 1))
    config = read_config(run)
    train(replace(config, out=run, train=replace(config.train, steps=2)))
    assert {name: (run / name).read_bytes() for name in whole} == whole


def test_a_config_may_be_edited(tuned: Path, tmp_path: Path):
    shutil.copytree(tuned, tmp_path / "run")
    path = tmp_path / "run/best/config.json"
    path.write_text(path.read_text().replace('"scenes:val"', '"scenes:test"'))
    assert load_run(tmp_path / "run").config.data.val == ("scenes:test",)


# What is found, and what is left out, in words


def test_a_bad_weight_is_named_when_a_run_is_used_or_started_from(
    eve, pretrained: Path, tmp_path: Path
):
    for edit, message, num_commands in (
        (lambda tensor: tensor.fill_(torch.nan), "encoder.norm.bias holds NaN or infinity", 2),
        (lambda tensor: tensor.long(), "encoder.norm.bias ", 1),
    ):
        folder = shutil.copytree(
            checkpoint_folders.chosen_checkpoint(pretrained), tmp_path / "start", dirs_exist_ok=True
        )
        without_sums(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["encoder.norm.bias"] = edit(tensors["encoder.norm.bias"].clone())
        save_file(tensors, folder / "model.safetensors")
        for command in (
            ("features", "--run", folder, "--texts", "a", "--out", "f.npz"),
            ("finetune", "demo_vqa", "--init", folder, "--out", "tuned"),
        )[:num_commands]:
            done = eve(*command)
            assert (
                done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
            ), done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"steps": True}}, "train.steps True: JSON bool, expected a whole number"),
        (
            {"train": {"lr_multipliers": [["encoder.*", "1"]]}},
            "train.lr_multipliers[0][1] '1': JSON str, expected a number",
        ),
        ({"train": {"lr": float("nan")}}, "train.lr nan is not in (0, inf)"),
        ({"train": {"steps": 10**30}}, "a whole number of too many digits"),
        ({"data": {"image_root": "\0"}}, "data.image_root '\\x00': "),
        ({"model": {"name": "eve", "depth": 10**9}}, "model.depth 1000000000 is not in [1, 1000]"),
        ({"model": []}, "model []: JSON list, expected"),
        ({"format": 99}, "config format 99 is not supported"),
    ],
)
def test_a_config_names_the_file_and_the_key(pretrained: Path, tmp_path: Path, change, message):
    run = shutil.copytree(pretrained, tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    new = {
        key: values[key] | value if isinstance(value, dict) else value
        for key, value in change.items()
    }
    (run / "config.json").write_text(json.dumps(values | new))
    with pytest.raises(UserError) as caught:
        read_config(run)
    assert str(caught.value).startswith(f"{run / 'config.json'}: ") and message in str(caught.value)


def test_rows_of_another_form_are_left_out_of_a_log(tmp_path: Path):
    good = [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "note", "step": 1, "text": "x"},
        {"kind": "own", "step": 2, "a": []},
    ]
    certain = {
        "kind": "val",
        "step": 2,
        "acc": 0.5,
        "certainty": {"acc": {"n": 2, "low": 0, "high": 1.0, "method": "wilson"}},
    }
    bad = [
        *(
            3,
            [],
            None,
            {},
            {"kind": "train"},
            {"step": 1},
            {"kind": "train", "step": "1"},
            {"kind": ["train"], "step": 1},
        ),
        *({"kind": "train", "step": True}, {"kind": "val", "step": 10**30}),
    ]
    whole = certain["certainty"]["acc"]
    damages = (
        {"n": math.inf},
        {"versus": 3},
        {"versus": {"other": 0.5}},
        {"versus": {"other": ["a", 1]}},
        {"groups": "x"},
    )
    odd = [{"acc": whole | damage} for damage in damages]
    uncertain = [certain | {"certainty": damaged} for damaged in ({"acc": {"n": 2}}, 3, *odd)]
    uncertain += [
        certain | {"certainty": {}, "samples_per_second": "x", "core_seconds": [1], "lr": 10**30}
    ]
    lines = [json.dumps(row).encode() for pair in zip(bad, good * 9, strict=False) for row in pair]
    (tmp_path / "log.jsonl").write_bytes(
        b"\n".join(
            [
                *lines,
                b"\xff",
                b"[" * 9999,
                *(json.dumps(row).encode() for row in [*uncertain, certain]),
                b'{"kind": "va',
            ]
        )
    )
    value = {"kind": "val", "step": 2, "acc": 0.5}
    rows = read_log(tmp_path)
    assert rows == [*(good * 9)[: len(bad)], *[value] * (len(uncertain) + 1)]
    assert [type(row["acc"]) for row in rows[len(bad) :]] == [
        *[float] * len(uncertain),
        MeasuredValue,
    ]


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
    BadSamples(tmp_path, num_rows=9, max_share=1, writes=True).add(
        [*errors, BadSampleError("a", "b")], num_seen=1
    )
    BadSamples(tmp_path, num_rows=9, max_share=1, writes=True).add(errors, num_seen=1)
    rows = [(row["where"], row["reason"]) for row in read_bad_samples(tmp_path).values()]
    assert rows == [("a", "b"), *[("c", "d")] * 3]


def test_what_was_said_before_a_crash_is_not_said_again(tmp_path: Path):
    log = RunLog(tmp_path, first_step=0, num_steps=4, enabled=True)
    log.note(4, "too little training")
    log.close()  # and here it is killed, before the row of validation
    log = RunLog(tmp_path, first_step=4, num_steps=4, enabled=True)
    log.note(4, "too little training")
    log.note(4, "and something else")
    log.close()
    assert [row["text"] for row in read_log(tmp_path)] == [
        "too little training",
        "and something else",
    ]


def test_a_folder_that_cannot_be_renamed_is_read_without_it(tmp_path: Path, monkeypatch):
    """A crash left the best weights aside, and the disk has been read-only since."""
    run = tmp_path / "run"
    train_guess(run, Guess(scored(0.5, 0.4)), CONFIG_4)
    (run / "best").rename(run / ".best.old")

    def read_only(_self: Path, _target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    assert checkpoint_folders.chosen_checkpoint(run) == step_folder(run, 4)


# The command line


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
        (
            FileNotFoundError(
                errno.ENOENT, "No such file", str(Path(eve_vl.__file__).parent / "report/style.css")
            ),
            None,
        ),
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
    else:
        done = eve("inspect")
        assert (done.returncode, done.stderr) == (2, f"eve: {message}\n")


@pytest.mark.parametrize("module", ["eve_vl.utils.errors", "numpy.version", "torch._utils"])
def test_an_interrupt_while_modules_load_leaves_no_traceback(tmp_path: Path, module):
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "eve_vl",
        "pretrain",
        "tiny",
        "--train.steps",
        "100000",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not process.stderr.readline().endswith(f" {module}\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in stderr.splitlines() if not line.startswith("import time:")] == [
        "eve: interrupted"
    ]
