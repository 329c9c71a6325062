"""Mistakes on the command line are one line with the given and the expected value; help;
completion."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eve_vl.cli import completion
from eve_vl.cli.calls import call_flags, call_verbs
from eve_vl.cli.data_check import CheckArgs
from eve_vl.cli.evaluate import task_flags
from eve_vl.cli.train import TrainArgs
from eve_vl.cli.verbs import VERBS
from eve_vl.config import Config, TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes
from eve_vl.tasks.predictor import predictor_class
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.file_io import write_file
from helpers.complaints import complaint, write_pairs
from helpers.tiny_runs import tiny_run, write_run
from helpers.verb_flags import flags_of

PRETRAIN_REMOTE = "pretrain tiny --data.train http://localhost:9/0.tar --data.val held-out"
MISTAKES = [
    (
        "completion fish",
        "invalid choice 'fish' for argument 'shell'. Expected one of ('bash', 'zsh')",
    ),
    (
        "pretrain tiny --train.lr fast",
        "--train.lr 'fast': must be a number; eve pretrain tiny --help shows the usage",
    ),
    (
        "pretrain tiny --train.betas 0.9 --out x",
        "Missing value for argument '--train.betas'. Expected 2 values",
    ),
    (
        "pretrain tiny --train.lr-multipliers a b",
        "--train.lr-multipliers: Could not find valid parse for arguments: ['a', 'b']",
    ),
    (
        "pretrain tiny --train_weights x",
        "Unrecognized options: --train_weights, x; did you mean '--data.train-weights'?",
    ),
    (
        "pretrain tiny --data.modality=rows",
        "'rows' for argument '--data.modality'. Expected one of ('image_text', 'image', 'text')",
    ),
    ("pretrain tiny more", "Unrecognized options: more; a text of several words needs quotes; eve"),
    (
        "search index -mail",
        "Unrecognized options: -mail; a text that begins with - needs a space before it; eve",
    ),
    (
        "verify run left.png",
        "missing: RIGHT, STATEMENT; eve verify --help shows the usage",
    ),
    ("data", "usage: eve data check"),
    ("data chekc x", "did you mean 'data check'"),
    ("pretrian demo", "did you mean 'pretrain'"),
    ("pretrain demo --train.batchsize 3", "did you mean '--train.batch-size'"),
    ("pretrain tiny --input.image-size 30 --train.lr -1", "input.image_size 30"),
    ("pretrain tiny --input.image-size 30 --train.lr -1", "train.lr -1"),
    ("report nowhere", "nowhere: no such run folder"),
    ("report a_folde", "a_folde: no such run folder; did you mean 'a_folder'?"),
    ("runs a_folde", "a_folde: no such run folder; did you mean 'a_folder'?"),
    ("pretrain tiny --train.steps ten", "--train.steps 'ten': must be a whole number; eve"),
    ("pretrain tiny --data.crop-scale 1 x", "--data.crop-scale '1', 'x': must be values of"),
    ("search index words --min-score nan", "--min-score nan: must be a finite number"),
    ("evaluate masked_signal .", "holds no checkpoint"),
    (
        "pretrain tiny --data.train words.txt --data.val held-out",
        "--data.modality text --task.mim-weight 0",
    ),
    ("help nothing", "no verb 'nothing'; choose from"),
    ("evaluate .", "no task '.'; choose from classification, "),
    (
        "tokenizer train",
        "eve tokenizer train needs at least one path; eve tokenizer train --help shows the usage",
    ),
    ("pretrain demo_retrieval", "demo_retrieval is a recipe of eve finetune"),
    ("finetune demo --init x", "demo is a recipe of eve pretrain"),
    ("bench tiny --steps 0", "--steps: must be positive (0 given)"),
    (
        "bench tiny --out x --train.log-every 3",
        "--out, --train.log-every: no effect on the speed of a step; leave it out",
    ),
    ("report x --code", "no such Python file"),
    ("pretrain my.py:small", "my.py: no such Python file"),
    ("pretrain json.py:loads", "json.py: there is another module called json"),
    ("pretrain own_recipes.py:smal", "own_recipes.py: no recipe 'smal'; did you mean 'small'?"),
    ("pretrain own_recipes.py", "choose from small, wrong"),
    ("pretrain own_recipes.py:wrong", "own_recipes.py:wrong: returned int, expected a Config"),
    (
        "finetune own_recipes.py:small --init x",
        "own_recipes.py:small: is no recipe for eve finetune",
    ),
    (
        "pretrain nowhere/config.json",
        "nowhere/config.json: cannot be read (No such file or directory)",
    ),
    ("pretrain tiny --data.train nowhere.jsonl --data.val held-out", "no such file or folder"),
    (f"{PRETRAIN_REMOTE} --tokenizer.path nowhere/x", "tokenizer.path: no such file or"),
    (f"{PRETRAIN_REMOTE} --data.split-file nowhere/x", "data.split_file: no such file or"),
    (f"{PRETRAIN_REMOTE} --data.image-root nowhere/x", "data.image_root: no such file or"),
    # flags without effect
    (
        "pretrain tiny --data.format jsonl",
        "--data.format has no effect on generated data; leave it out",
    ),
    (
        "pretrain tiny --task.mim-weight 0 --task.decoder-dim 96",
        "--task.decoder-dim has no effect as task.mim-weight is 0",
    ),
    (
        "pretrain tiny --model.deep-ffn modality --model.num-experts 8",
        "--model.num-experts has no effect without a block",
    ),
    (
        "pretrain tiny --model.num-deep-blocks 0 --model.deep-ffn shared",
        "--model.deep-ffn has no effect as no block has it",
    ),
    (
        "pretrain tiny --task.mim-weight 0 --data.modality text --data.augment rand",
        "--data.augment has no effect on texts without images",
    ),
]


OWN_RECIPES = """
from eve_vl.recipes import get_recipe
def small():
    return get_recipe("tiny")
def wrong():
    return 3
"""


@pytest.mark.parametrize(("command", "message"), MISTAKES)
def test_mistake_is_one_line(
    command: str,
    message: str,
    eve,
    tmp_path: Path,
):
    (tmp_path / "own_recipes.py").write_text(OWN_RECIPES)
    (tmp_path / "json.py").write_text("raise SystemExit('this file must not run')\n")
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "words.txt").write_text("one line\nanother line\n" * 40)
    sys.modules.pop("own_recipes", None)
    try:
        assert message in complaint(eve(*command.split()))
    finally:
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]
    assert not (tmp_path / "runs").exists()


def test_missing_files_are_refused_before_torch_is_imported(tmp_path: Path):
    code = """import sys
from eve_vl.cli.main import main
for words in sys.stdin.read().splitlines():
    try:
        main(words.split())
    except SystemExit:
        assert "torch" not in sys.modules, words"""
    mistakes = """learn nowhere --for 1m
learn . --for soon
pretrain demo --data.train nowhere --data.val held-out
evaluate retrieval nowhere
evaluate retrieval builtin:drawings --data nowhere
index nowhere --run builtin:drawings
search nowhere mail
serve --index nowhere
answer nowhere 0.png what
data check nowhere"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=mistakes, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 10


def test_other_processes_of_torchrun_give_the_first_one_time_to_print(eve, monkeypatch):
    """torchrun ends them when the first one fails, so that a mistake is printed once."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    complaint(eve("pretrain", "nothing"))
    assert seconds == []
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    complaint(eve("pretrain", "nothing"))
    assert seconds == [5]


def test_file_that_cannot_take_its_place_is_named_not_the_temporary_one(
    eve, monkeypatch, tmp_path: Path
):
    (tmp_path / "page").mkdir()
    monkeypatch.setattr(completion, "run_completion", lambda _: write_file(Path("page"), "text"))
    assert complaint(eve("completion", "bash")) == "eve: page: Is a directory"


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("help", "usage: eve VERB"),
        ("data --help", "usage: eve VERB …\n\n  data check "),
        ("evaluate --help", "usage: eve evaluate TASK"),
        ("report help", "usage: eve report [-h] [RUN …] [--out"),
        ("help data write", "usage: eve data write [-h] GENERATOR LAYOUT FOLDER [--rows"),
        ("help pretrain", "usage: eve pretrain RECIPE"),
        ("pretrain tiny -h", "usage: eve pretrain tiny"),
        ("index --help", "usage: eve index [-h] [OPTIONS] [SOURCE …]"),
        ("verify --help", "usage: eve verify [-h] RUN LEFT RIGHT STATEMENT [--device"),
        ("explain --help", "usage: eve explain [-h] [OPTIONS] RUN IMAGE [TEXT]"),
    ],
)
def test_help_comes_before_or_after_and_names_positional_words(words: str, usage: str, eve):
    done = eve(*words.split())
    assert done.returncode == 0
    assert done.stdout.startswith(usage)


def test_help_of_fine_tuning_shows_defaults_of_the_run_if_one_is_named(eve):
    words = " ".join(eve("finetune", "demo_vqa", "--help").stdout.split())
    assert "runs/base" not in words
    assert "(required)" in words
    assert "(default: 48)" in words  # pixels of demo
    assert "a run takes these values from --init." in words
    text = eve("help", "finetune", "demo_vqa", "--init", "builtin:drawings").stdout
    words = " ".join(text.split())
    assert "(default: 64)" in words
    assert "from --init." not in words


def test_replacing_own_data_with_built_in_data_needs_a_yes(eve, tmp_path: Path, monkeypatch):
    """Nothing is trained here: checkpoints are copies of the one to start from."""
    trained: list[Config] = []

    def train(config: Config, **_: Any) -> bool:
        trained.append(config)
        return False  # and writes no report

    monkeypatch.setattr("eve_vl.run.training.train", train)
    rows = write_pairs(tmp_path / "pairs")
    run = tiny_run("masked")
    data = replace(
        run.config.data,
        train=(str(rows),),
        val=(str(rows),),
    )
    config = replace(run.config, data=data)
    write_run(replace(run, config=config), tmp_path / "mine:x:[/b]")
    start = ("finetune", "demo_nlvr2", "--init", "mine:x:[/b]", "--out", "verify")
    line = complaint(eve(*start))
    problem = f"mine:x:[/b] was trained on {rows}, but this recipe trains on built-in data"
    assert f"{problem} (scenes:train)" in line
    assert "--data.train PATH" in line
    assert "confirm with --data.train scenes:train" in line
    for answer, code in (("n", 2), ("y", 0)):
        with monkeypatch.context() as terminal:
            terminal.setattr("sys.stdin.isatty", lambda: True)
            terminal.setattr("builtins.input", lambda *_, answer=answer: answer)
            done = eve(*start)
        assert done.returncode == code
        assert "mine:x:[/b] was trained on" in done.stdout
    assert eve(*start, "--data.train", "scenes:train").returncode == 0
    assert len(trained) == 2

    checkpoint = tmp_path / "verify/checkpoints/step_00000001"
    write_run(replace(run, config=trained[0]), checkpoint)
    for path in checkpoint.iterdir():
        shutil.copy(path, tmp_path / "verify")
    assert eve(*start).returncode == 0  # it resumes without asking again
    assert len(trained) == 3


@pytest.fixture
def complete(eve, tmp_path: Path, monkeypatch) -> Callable[[str], list[str]]:
    """Return a function that completes the last word of a line in bash."""
    script = eve("completion", "bash").stdout
    assert eve("completion", "zsh").stdout.endswith(script)
    monkeypatch.setenv("COLUMNS", "80")  # as the script sets it

    def run(line: str) -> list[str]:
        *words, last = line.split(" ")
        # the help that the script asks for is written to a file first
        verb = [word for word in words[1:3] if not word.startswith("-")]
        (tmp_path / shlex.join([*verb, "--help"])).write_text(eve(*verb, "--help").stdout)
        lines = [
            script,
            'eve() { cat "./$*"; }',
            f"COMP_WORDS=({' '.join(words)} '{last}'); COMP_CWORD={len(words)}",
            "_eve; _eve",
            "printf '%s\\n' \"${COMPREPLY[@]}\"",
        ]
        bash = ["bash", "--norc", "-c", "\n".join(lines)]
        done = subprocess.run(
            bash,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not done.stderr
        return done.stdout.split()

    return run


def test_completion_offers_verbs_and_names(complete):
    verbs = dict.fromkeys(verb.split()[0] for verb in (*VERBS, *call_verbs()))
    assert [*dict.fromkeys(complete("eve "))] == [*verbs, "help"]
    assert complete("eve re") == ["report", "reconstruct"]
    assert complete("eve data ") == ["check", "answers", "write", "help"]
    assert complete("eve completion ") == ["bash", "zsh", "--help", "--code"]
    assert complete("eve pretrain ") == [*recipes("pretrain")]
    measured = [name for name, kind in all_kinds(TaskConfig, "tasks").items() if kind.has_numbers]
    assert complete("eve evaluate ") == [*measured, "zero_shot"]


def test_completion_offers_flags(complete):
    flags = ["--train.lr", "--train.lr-multipliers", "--train.layout", "--train.log-every"]
    assert complete("eve pretrain tiny --train.l") == flags
    assert complete("eve demo --out x --") == ["--help", "--code", "--out"]
    config = get_finetune_recipe("nlvr2", get_recipe("base"))
    flags = {*flags_of(TrainArgs, TrainArgs(config=config)), "--help", "--code"}
    assert {*complete("eve finetune nlvr2 --init x --")} == flags
    answer = predictor_class(VQAConfig).requests()["answer"]
    classes = {
        "data check": CheckArgs,
        "evaluate retrieval": task_flags(RetrievalConfig.evaluation),
        "answer run": call_flags(answer),
    }
    for words, cls in classes.items():
        assert {*flags_of(cls)} <= {*complete(f"eve {words} --")}, words
