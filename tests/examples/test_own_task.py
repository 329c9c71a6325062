"""examples/own_task: an external task on the command line; code runs only if it is named."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.config import plugins
from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.row_dataset import eval_positions
from eve_vl.eve import Eve
from eve_vl.synthetic.scenes.rows import SceneLabels
from helpers.forked import CONTEXT, PRELOAD

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_task" / "count_things.py"
SHORT = shlex.split("""
    --train.steps 6 --train.batch-size 8 --train.val-every 3 --train.save-every 3
    --data.val-samples 24 --data.num-workers 0 --train.dtype float32 --train.threads 1
""")
NUM_ROWS = 24
PACKAGE = {
    "made_up.py": '''
from dataclasses import dataclass, replace
from eve_vl.data.readers.text_lines import TextTable
from eve_vl.recipes import get_recipe
class Haiku(TextTable):
    name = "haiku"
def little():
    """From a package."""
    return replace(get_recipe("tiny"), train=replace(get_recipe("tiny").train, steps=7))
''',
    "made_up-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: made-up\nVersion: 1.5\n",
    "made_up-1.5.dist-info/top_level.txt": "made_up\n",
    "made_up-1.5.dist-info/entry_points.txt": (
        "[eve_vl.recipes]\nlittle = made_up:little\n[eve_vl.readers]\nhaiku = made_up:Haiku\n"
    ),
    "broken-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n",
    "broken-2.0.dist-info/entry_points.txt": (
        "[eve_vl.recipes]\nbig = nowhere:big\n[eve_vl.tasks]\nguess = nowhere:Guess\n"
    ),
}


def run(argv: list[str]) -> tuple[object, str, str]:
    """Return exit status, stdout and stderr of a command. PYTHON: not a command, but an
    expression."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if argv[0] == "PYTHON":
                out.write(f"{eval(argv[1], {'Eve': Eve})}\n")
            else:
                main(argv)
        except ValueError as error:
            out.write(f"{error}\n")
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def run_all(argvs: Sequence[list[str]], folder: Path, env: Mapping[str, str]) -> None:
    """Run commands in one process. Its loader workers are new processes that know no code of a
    user."""
    os.chdir(folder)
    os.environ.update(env)
    sys.path.insert(0, str(folder / "site"))
    for cached in (plugins.installed, plugins.load_installed):
        cached.cache_clear()
    multiprocessing.set_start_method("spawn", force=True)
    (folder / "done.json").write_text(json.dumps([run(argv) for argv in argvs]))


def commands(folder: Path, *argvs: list[str], **env: str) -> list[tuple[int, str, str]]:
    """Run commands in a process that knows no code of a user but what is installed in `site`."""
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[2])])
    CONTEXT.set_forkserver_preload(PRELOAD)
    process = CONTEXT.Process(target=run_all, args=(argvs, folder, env))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return [tuple(words) for words in json.loads((folder / "done.json").read_text())]


@pytest.fixture(scope="module")
def first(tmp_path_factory, pretrained: Path) -> tuple[Path, list[tuple[int, str, str]]]:
    """A folder with a copy of the example and a run of it; and what commands say that use installed
    packages.

    One process does both. It knows no code of a user but what is installed, until it trains the
    example.
    """
    folder = tmp_path_factory.mktemp("own")
    (folder / "count_things.py").write_text(EXAMPLE.read_text())
    for name, text in PACKAGE.items():
        (folder / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / name).write_text(text)
    (folder / "frog.haiku").write_text("the old pond\na frog jumps in\nthe sound of water\n")
    *done, trained = commands(
        folder,
        ["pretrain", "help"],
        shlex.split(
            "pretrain little --out little --data.train scenes:val --train.steps 2 "
            "--data.val-samples 8 --data.num-workers 0"
        ),
        ["data", "check", "frog.haiku", "--kind", "texts"],
        ["pretrain", "litle"],
        ["pretrain", "big"],
        ["evaluate", "guess", "little"],
        ["guess", "little"],
        ["finetune", "count_things.py:count", "--init", str(pretrained), *SHORT],
        EVE_CODE="",
    )
    shutil.rmtree(folder / "site")
    assert trained[0] == 0, trained
    assert "training on scenes:train, the recipe's data" in trained[1]
    assert (folder / "runs/count/report.html").is_file()
    return folder, done


@pytest.fixture(scope="module")
def folder(first) -> Path:
    return first[0]


def test_the_run_says_which_code_it_is_made_with(folder: Path):
    config = json.loads((folder / "runs/count/config.json").read_text())
    checksum = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()[:16]
    assert (config["recipe"], config["task"]["name"]) == ("count_things.py:count", "count")
    assert config["code"] == [[str(folder / "count_things.py"), f"sha256 {checksum}"]]
    assert config == json.loads((folder / "runs/count/best/config.json").read_text())


def test_a_run_of_an_own_task_needs_its_code_for_every_verb(folder: Path, pretrained: Path):
    scenes = SceneLabels(split="val", image_size=32)
    rows = [scenes[row] for _, _, row in eval_positions([len(scenes)], NUM_ROWS)]
    for index, row in enumerate(rows):
        assert isinstance(row.image, ImageDrawing)
        Image.fromarray(row.image.pixels).save(folder / f"{index}.png")
    run = "runs/count"
    code = ["--code", "count_things.py"]
    refused = [["PYTHON", f"Eve.load({run!r})"]]
    refused += [
        ["evaluate", "count", run],
        ["report", run],
        ["count", run, "0.png"],
        ["evaluate", "vqa", run],
    ]
    refused += [
        ["finetune", "demo_vqa", "--init", run],
        ["finetune", "runs/count/config.json", "--out", "again"],
    ]
    flags = ["--data.num-workers", "1", "--out", "again"]
    train = ["finetune", "count_things.py:count", "--init", str(pretrained), *SHORT]
    packages = [
        [*code, "evaluate", "count", run, "--samples", "24", "--json", "numbers.json"],
        ["report", run, "--out", "page.html"],
        train,
    ]
    packages += [
        ["finetune", "runs/count/config.json", *flags],
        ["PYTHON", f"Eve.load({run!r}, code='count_things.py').calls"],
    ]
    done = commands(
        folder, *refused, *packages, *(["count", run, f"{index}.png"] for index in range(NUM_ROWS))
    )
    assert "which is not loaded" in done.pop(0)[1] and refused.pop(0)
    lines = [err for code, _, err in done[: len(refused)] if code == 2]
    assert len(lines) == len(refused) and all(
        err.startswith("eve: ") and err.count("\n") == 1 for err in lines
    )
    assert "your own task needs --code FILE.py" in lines[0] and "--code FILE.py" in lines[2]
    for line in (lines[1], *lines[3:]):
        assert (
            f"the task 'count' needs {folder}/count_things.py (sha256 " in line
            and "EVE_CODE" in line
        ), line
    assert not (folder / "runs/demo_vqa").exists()

    done = done[len(refused) :]
    assert not [err for code, _, err in done if code], done
    numbers, metrics = (
        json.loads((folder / name).read_text()) for name in ("numbers.json", f"{run}/metrics.json")
    )
    certainty = metrics.pop("certainty")
    assert {name: numbers[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    counted = [float(out) for _, out, _ in done[-NUM_ROWS:]]
    true = [len(row.labels) for row in rows]
    assert numbers["count_error"] == pytest.approx(
        sum(abs(f - t) for f, t in zip(counted, true, strict=True)) / 24, abs=0.05
    )
    assert "count_acc" in (folder / "page.html").read_text()
    assert "resuming from step 6 of 6; nothing left to train" in done[2][1]
    assert done[4][1] == "('encode_image', 'encode_text', 'count', 'experts')\n"
    was, now = (
        json.loads((folder / path).read_text())
        for path in (f"{run}/config.json", "again/config.json")
    )
    assert now | {"out": was["out"], "data": was["data"]} == was
    assert json.loads((folder / "again/metrics.json").read_text()) == metrics | {
        "certainty": certainty
    }  # the same values make the same run


def test_packages_bring_recipes_and_readers_and_break_nothing(first):
    folder, (listed, trained, checked, unknown, broken, task, verb) = first
    assert (
        listed[0] == 0
        and "little" in listed[1]
        and "From a package. (package made-up 1.5)" in listed[1]
    )
    warning = (
        "eve: warning: package broken 2.0: eve_vl.recipes big cannot be loaded (ModuleNotFoundError"
    )
    assert listed[2].startswith(warning) and listed[2].count("\n") == 1
    assert trained[0] == 0, trained
    config = json.loads((folder / "little/config.json").read_text())
    assert (config["recipe"], config["code"]) == ("little", [["made-up", "1.5"]])
    assert checked[0] == 0 and "3" in checked[1]
    assert "did you mean 'little'" in unknown[2]
    assert broken[0] == 2 and "no recipe 'big'" in broken[2]
    assert task[0] == verb[0] == 2 and "package broken 2.0: eve_vl.tasks guess" in task[2]
