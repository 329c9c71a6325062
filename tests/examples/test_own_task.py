"""examples/own_task: an external task on the command line; code runs only if it is named."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.config import plugins
from eve_vl.data import loader
from eve_vl.data.image_refs import ImageDrawing
from eve_vl.data.row_dataset import eval_positions
from eve_vl.eve import Eve
from eve_vl.report import page
from eve_vl.synthetic.scenes.rows import SceneLabels
from helpers.forked import CONTEXT, PRELOAD

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_task" / "count_things.py"
RUN = "runs/count"
CODE = "--code count_things.py"
NUM_ROWS = 12
TRAINING = (
    "finetune count_things.py:count --train.steps 4 --train.batch-size 8 --train.val-every 2 "
    f"--train.save-every 2 --data.val-samples {NUM_ROWS} --data.num-workers 0 "
    "--train.dtype float32 --train.threads 1 --init"
)
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


class Done(NamedTuple):
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


def run(command: str) -> Done:
    """Run a command of `eve`, or evaluate an expression after "PYTHON "."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if command.startswith("PYTHON "):
                out.write(f"{eval(command.removeprefix('PYTHON '), {'Eve': Eve})}\n")
            else:
                main(command.split())
        except ValueError as error:
            out.write(f"{error}\n")
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def run_all(commands: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
    """Run commands in one process, without pages that no command names.

    Its loader workers are new processes that know no code of a user.
    """
    os.chdir(folder)
    os.environ.update(env)
    sys.path.insert(0, str(folder / "site"))
    plugins.installed.cache_clear()
    plugins.load_installed.cache_clear()
    CONTEXT.set_forkserver_preload(PRELOAD)
    loader.start_method = lambda num_workers: CONTEXT if num_workers else None
    write_report = page.write_report

    def write_report_if_named(run: Path, *out: Path) -> Path:
        return write_report(run, *out) if out else run

    page.write_report = write_report_if_named
    (folder / "done.json").write_text(json.dumps([run(command) for command in commands]))


def run_in_process(folder: Path, *commands: str, **env: str) -> list[Done]:
    """Run commands in a process that knows no code of a user but what is installed in `site`."""
    env["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), str(Path(__file__).parents[2])])
    CONTEXT.set_forkserver_preload(PRELOAD)
    process = CONTEXT.Process(target=run_all, args=(commands, folder, env))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return [Done(*fields) for fields in json.loads((folder / "done.json").read_text())]


@pytest.fixture(scope="module")
def first(tmp_path_factory, pretrained: Path) -> tuple[Path, list[Done]]:
    """A folder with a copy of the example and a run of it; and what commands print that use
    installed packages."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "count_things.py").write_text(EXAMPLE.read_text())
    for name, text in PACKAGE.items():
        (folder / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "site" / name).write_text(text)
    (folder / "frog.haiku").write_text("the old pond\na frog jumps in\nthe sound of water\n")
    *done, trained = run_in_process(
        folder,
        "pretrain help",
        "pretrain little --out little --data.train scenes:val --train.steps 1 "
        "--data.val-samples 8 --data.num-workers 0",
        "data check frog.haiku --kind texts",
        "pretrain litle",
        "pretrain big",
        "evaluate guess little",
        "guess little",
        f"{TRAINING} {pretrained}",
        EVE_CODE="",
    )
    shutil.rmtree(folder / "site")
    assert trained.code == 0, trained
    assert "training on scenes:train, the recipe's data" in trained.out
    return folder, done


@pytest.fixture(scope="module")
def folder(first) -> Path:
    return first[0]


def test_the_run_says_which_code_it_is_made_with(folder: Path):
    config = json.loads((folder / RUN / "config.json").read_text())
    checksum = hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()[:16]
    assert (config["recipe"], config["task"]["name"]) == ("count_things.py:count", "count")
    assert config["code"] == [[str(folder / "count_things.py"), f"sha256 {checksum}"]]
    assert config == json.loads((folder / RUN / "best/config.json").read_text())


def test_without_its_code_a_run_is_refused_in_one_line(folder: Path):
    loaded, verb, *refused = run_in_process(
        folder,
        f"PYTHON Eve.load({RUN!r})",
        f"count {RUN} 0.png",
        f"evaluate count {RUN}",
        f"report {RUN}",
        f"finetune demo_vqa --init {RUN}",
        f"finetune {RUN}/config.json --out again",
    )
    assert "which is not loaded" in loaded.out
    assert "your own task needs --code FILE.py" in refused[0].err
    assert "--code FILE.py" in verb.err
    for done in refused[1:]:
        assert f"the task 'count' needs {folder}/count_things.py (sha256 " in done.err
        assert "EVE_CODE" in done.err
    for done in (verb, *refused):
        assert done.code == 2
        assert done.err.startswith("eve: ")
        assert done.err.count("\n") == 1
    assert not (folder / "runs/demo_vqa").exists()


def test_with_its_code_a_run_serves_every_verb(folder: Path, pretrained: Path):
    scenes = SceneLabels(split="val", image_size=32)
    num_things = []
    for index, (_, _, row) in enumerate(eval_positions([len(scenes)], NUM_ROWS)):
        scene = scenes[row]
        assert isinstance(scene.image, ImageDrawing)
        Image.fromarray(scene.image.pixels).save(folder / f"{index}.png")
        num_things.append(len(scene.labels))
    count_all = f"[eve.count(f'{{index}}.png') for index in range({NUM_ROWS})]"
    all_done = run_in_process(
        folder,
        f"{CODE} evaluate count {RUN} --samples {NUM_ROWS} --json numbers.json",
        f"report {RUN} --out page.html",
        f"count {RUN} 0.png",
        f"{TRAINING} {pretrained}",
        f"finetune {RUN}/config.json --data.num-workers 1 --out again",
        f"PYTHON Eve.load({RUN!r}, code='count_things.py').calls",
        f"PYTHON [{count_all} for eve in [Eve.load({RUN!r})]][0]",
    )
    for done in all_done:
        assert done.code == 0, done
    _, _, counted, resumed, _, calls, all_counted = all_done
    assert "count_acc" in (folder / "page.html").read_text()
    assert "resuming from step 4 of 4; nothing left to train" in resumed.out
    assert calls.out == "('encode_image', 'encode_text', 'count', 'experts')\n"

    metrics = json.loads((folder / RUN / "metrics.json").read_text())
    numbers = json.loads((folder / "numbers.json").read_text())
    for name in metrics.keys() - {"certainty"}:
        assert numbers[name] == pytest.approx(metrics[name], abs=1e-6)
    counts = json.loads(all_counted.out)
    assert float(counted.out) == pytest.approx(counts[0], abs=0.05)
    errors = [abs(count - num) for count, num in zip(counts, num_things, strict=True)]
    assert numbers["count_error"] == pytest.approx(fmean(errors), abs=1e-4)

    config = json.loads((folder / RUN / "config.json").read_text())
    new_config = json.loads((folder / "again/config.json").read_text())
    assert new_config | {"out": config["out"], "data": config["data"]} == config
    # the same values make the same run, also in loader workers
    assert json.loads((folder / "again/metrics.json").read_text()) == metrics


def test_packages_bring_recipes_and_readers_and_break_nothing(first):
    folder, (listed, trained, checked, unknown, broken, task, verb) = first
    assert listed.code == 0
    assert "From a package. (package made-up 1.5)" in listed.out
    warning = "package broken 2.0: eve_vl.recipes big cannot be loaded (ModuleNotFoundError"
    assert listed.err.startswith(f"eve: warning: {warning}")
    assert listed.err.count("\n") == 1
    assert trained.code == 0, trained
    config = json.loads((folder / "little/config.json").read_text())
    assert (config["recipe"], config["code"]) == ("little", [["made-up", "1.5"]])
    assert checked.code == 0
    assert "3" in checked.out
    assert "did you mean 'little'" in unknown.err
    assert broken.code == 2
    assert "no recipe 'big'" in broken.err
    assert task.code == verb.code == 2
    assert "package broken 2.0: eve_vl.tasks guess" in task.err
    assert "no verb 'guess'" in verb.err
