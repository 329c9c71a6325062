"""Mistakes on the command line are one line with the given and the expected value; help;
completion."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eve_vl.cli import completion
from eve_vl.cli.calls import call_flags, call_verbs
from eve_vl.cli.data_answers import AnswersArgs
from eve_vl.cli.data_check import CheckArgs
from eve_vl.cli.data_write import WriteArgs
from eve_vl.cli.evaluate import task_flags
from eve_vl.cli.export import ExportArgs
from eve_vl.cli.features import FeaturesArgs
from eve_vl.cli.inspect import InspectArgs
from eve_vl.cli.report import ReportArgs
from eve_vl.cli.tokenizer_train import TokenizerArgs
from eve_vl.cli.train import TrainArgs
from eve_vl.cli.verbs import VERBS
from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes
from eve_vl.tasks.predictor import predictor_class
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.file_io import write_file
from helpers.complaints import complaint, write_pairs
from helpers.verb_flags import flags_of

MISTAKES = [
    (
        "completion fish",
        "invalid choice 'fish' for argument 'shell'. Expected one of ('bash', 'zsh')",
    ),
    (
        "pretrain tiny --train.lr fast",
        "--train.lr: could not convert string to float: 'fast'; eve pretrain tiny --help shows",
    ),
    (
        "pretrain tiny --train.steps 3.5",
        "--train.steps: invalid literal for int() with base 10: '3.5'",
    ),
    (
        "pretrain tiny --train.steps",
        "Missing value for argument '--train.steps'. Expected 1 values",
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
    ("pretrain tiny --init", "Missing value for argument '--init'"),
    (
        "pretrain tiny --zzz 3",
        "Unrecognized options: --zzz, 3; eve pretrain tiny --help shows the usage",
    ),
    ("pretrain tiny more", "Unrecognized options: more; a text of several words needs quotes; eve"),
    (
        "search index -mail",
        "Unrecognized options: -mail; a text that begins with - needs a space before it; eve",
    ),
    (
        "verify run left.png",
        "Missing from eve verify: RIGHT Right image. (required) STATEMENT Statement about",
    ),
    ("convert", "Missing from eve convert: SOURCE A published EVE"),
    (
        "learn photos --four 1m",
        "Unrecognized options: --four 1m; did you mean '--for'?; eve learn --help shows the usage",
    ),
    (
        "features photos --outt=x",
        "Unrecognized options: --outt=x; did you mean '--out'?; eve features",
    ),
    ("data", "usage: eve data check"),
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
    ("bench tiny --train.batch-size 10000000", "a step needs about"),
    ("bench tine", "no recipe 'tine'; did you mean 'tiny'?"),
    ("bench demo_vqa --init nowhere", "nowhere: no such run folder"),
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
    *[
        (
            "pretrain tiny --data.train http://localhost:9/0.tar --data.val held-out "
            f"--{name} nowhere/x",
            f"{name.replace('-', '_')}: no such file or",
        )
        for name in ("tokenizer.path", "data.split-file", "data.image-root")
    ],
    # flags without effect
    (
        "pretrain tiny --data.format jsonl",
        "--data.format has no effect on generated data; leave it out",
    ),
    (
        "pretrain tiny --data.batches-from set",
        "--data.batches-from has no effect on generated data; leave it out",
    ),
    (
        "pretrain tiny --task.mim-weight 0 --task.decoder-dim 96",
        "--task.decoder-dim has no effect as task.mim-weight is 0",
    ),
    (
        "pretrain tiny --task.mlm-weight 0 --task.text-mask-ratio 0.2",
        "--task.text-mask-ratio has no effect",
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
def test_a_mistake_is_one_line(command: str, message: str, eve, tmp_path: Path):
    (tmp_path / "own_recipes.py").write_text(OWN_RECIPES)
    (tmp_path / "json.py").write_text("raise SystemExit('this file must not run')\n")
    sys.modules.pop("own_recipes", None)
    try:
        assert message in complaint(eve(*command.split()))
    finally:
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]
    assert not (tmp_path / "runs").exists()


def test_what_is_missing_is_refused_before_torch_is_imported(tmp_path: Path):
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
    assert not done.returncode and len(done.stderr.splitlines()) == 10, done


def test_a_text_file_gets_the_flags_to_train_on_texts(eve, tmp_path: Path):
    (tmp_path / "words.txt").write_text("one line\nanother line\n" * 40)
    line = complaint(eve("pretrain", "tiny", "--data.train", "words.txt", "--data.val", "held-out"))
    assert "--data.modality text --task.mim-weight 0" in line


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        ("help report", "usage: eve report"),
        ("report help", "usage: eve report"),
        ("help data check", "usage: eve data check"),
        ("help pretrain", "usage: eve pretrain RECIPE"),
        ("help pretrain tiny", "usage: eve pretrain tiny"),
        ("finetune help demo_vqa", "usage: eve finetune demo_vqa"),
        ("help evaluate vqa", "usage: eve evaluate vqa"),
    ],
)
def test_help_comes_before_or_after(words: str, usage: str, eve):
    done = eve(*words.split())
    assert done.returncode == 0 and done.stdout.startswith(usage), done


def test_help_of_fine_tuning_names_no_run_to_start_from(eve):
    text = eve("finetune", "demo_vqa", "--help").stdout
    assert "runs/base" not in text and "(required)" in text
    words = " ".join(text.split())
    assert "--input.image-size" in words and "(default: 48)" in words  # of demo
    assert "a run takes these values from --init." in words
    text = eve("help", "finetune", "demo_vqa", "--init", "builtin:drawings").stdout
    words = " ".join(text.split())
    assert "(default: 64)" in words and "from --init." not in words


def test_replacing_the_users_data_with_built_in_data_needs_a_yes(
    eve, tmp_path: Path, monkeypatch, no_report
):
    rows = write_pairs(tmp_path / "pairs", count=12)
    few = ("--train.steps", 1, "--train.batch-size", 2, "--data.val-samples", 2)
    few += ("--data.num-workers", 0)
    data = ("--data.train", rows, "--data.val", rows)
    done = eve("pretrain", "tiny", "--out", "mine:x:[/b]", *data, *few)
    assert done.returncode == 0, done.stderr
    start = ("finetune", "demo_nlvr2", "--init", "mine:x:[/b]", "--out", "verify", *few)
    line = complaint(eve(*start))
    assert (
        f"mine:x:[/b] was trained on {rows}, but this recipe trains on built-in data (scenes:train)"
        in line
    )
    assert "--data.train PATH" in line and "confirm with --data.train scenes:train" in line
    assert not (tmp_path / "verify").exists()
    for answer, code in (("n", 2), ("y", 0)):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin.isatty", lambda: True)
            patch.setattr("builtins.input", lambda *_, answer=answer: answer)
            done = eve(*start)
            assert done.returncode == code
            assert "mine:x:[/b] was trained on" in done.stdout
    assert eve(*start).returncode == 0  # it resumes without asking again
    assert eve(*start[:-8], "--out", "other", *few, "--data.train", "scenes:train").returncode == 0


@pytest.fixture
def complete(eve, tmp_path: Path, monkeypatch) -> Callable[..., list[str]]:
    """Return a function that completes the last word of a line in bash."""
    script = eve("completion", "bash").stdout
    monkeypatch.setenv("COLUMNS", "80")  # as the script sets it

    def run(line: str, command: str = 'cat "./$*"') -> list[str]:
        *before, last = line.split(" ")
        # the help that the script asks for is written to a file first
        verb = [word for word in before[1:3] if not word.startswith("-")]
        (tmp_path / shlex.join([*verb, "--help"])).write_text(eve(*verb, "--help").stdout)
        lines = [
            script,
            f"eve() {{ {command}; }}",
            f"COMP_WORDS=({' '.join(before)} '{last}'); COMP_CWORD={len(before)}",
            "_eve; _eve",
            "printf '%s\\n' \"${COMPREPLY[@]}\"",
        ]
        bash = ["bash", "--norc", "-c", "\n".join(lines)]
        done = subprocess.run(bash, capture_output=True, text=True, timeout=60)
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
    demos = [name for name in recipes("finetune") if name.startswith("demo_")]
    assert complete("eve finetune demo_") == demos
    measured = [name for name, kind in all_kinds(TaskConfig, "tasks").items() if kind.has_numbers]
    assert complete("eve evaluate ") == [*measured, "zero_shot"]


def test_completion_offers_flags(complete):
    flags = ["--train.lr", "--train.lr-multipliers", "--train.layout", "--train.log-every"]
    assert complete("eve pretrain tiny --train.l") == flags
    assert complete("eve finetune vqa --init x --task.ans") == ["--task.answers"]
    assert complete("eve demo --out x --") == ["--help", "--code", "--out"]
    installed = f'PYTHONPATH={Path(__file__).parents[2]} {sys.executable} -m eve_vl "$@"'
    assert complete("eve inspect tiny --j", installed) == ["--json"]
    config = get_finetune_recipe("nlvr2", get_recipe("base"))
    flags = flags_of(TrainArgs, TrainArgs(config=config))
    assert {*flags} == {*complete("eve finetune nlvr2 --")} - {"--help", "--code"}


def test_completion_offers_all_flags_of_a_verb(complete):
    classes = {
        "features": FeaturesArgs,
        "data check": CheckArgs,
        "data answers": AnswersArgs,
        "data write": WriteArgs,
        "tokenizer train": TokenizerArgs,
        "inspect": InspectArgs,
        "convert": ConvertArgs,
        "report": ReportArgs,
        "export": ExportArgs,
        "evaluate retrieval": task_flags(RetrievalConfig.evaluation),
    }
    for call, request in predictor_class(VQAConfig).requests().items():
        classes[f"{call.replace('_', '-')} run"] = call_flags(request)
    for words, cls in classes.items():
        assert {*flags_of(cls)} <= {*complete(f"eve {words} --")}, words


def test_completion_of_zsh_loads_that_of_bash(eve):
    bash = eve("completion", "bash").stdout
    assert eve("completion", "zsh").stdout.endswith(bash)


def test_under_torchrun_a_mistake_is_printed_once(tmp_path: Path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "eve_vl", "pretrain", "nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=120,
    )
    assert done.returncode and done.stderr.count("eve: no recipe 'nothing'") == 1


def test_a_file_that_cannot_take_its_place_is_named_not_the_temporary_one(
    eve, monkeypatch, tmp_path: Path
):
    (tmp_path / "page").mkdir()
    monkeypatch.setattr(completion, "run_completion", lambda _: write_file(Path("page"), "text"))
    done = eve("completion", "bash")
    assert (done.returncode, done.stderr) == (2, "eve: page: Is a directory\n")
