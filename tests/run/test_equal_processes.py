"""Processes of a training with other flags, code or data than the first are refused."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.data.readers.open_source import open_source
from eve_vl.data.splits import Splits
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.run import equal_processes
from eve_vl.run.equal_processes import require_equal_flags
from eve_vl.run.resume_checks import check_data
from eve_vl.train import processes
from eve_vl.utils.errors import UserError
from helpers.color_cards import encoded_card
from helpers.gloo_processes import run_in_processes


def lr_of_rank(_: Path) -> object:
    """Give each process another learning rate; return what the user sees."""
    config = get_recipe("tiny")
    train = replace(config.train, lr=0.5 + processes.rank(), threads=1 + processes.rank())
    return refusal(lambda: require_equal_flags(replace(config, train=train)))


def code_of_rank(folder: Path) -> object:
    """Give each process another package; return what the user sees."""
    package = folder / f"package_{processes.rank()}"
    package.mkdir()
    (package / "objectives.py").write_text(f"weight = {processes.rank()}\n")
    equal_processes.PACKAGE = package
    return refusal(lambda: require_equal_flags(get_recipe("tiny")))


def answers_of_rank(folder: Path) -> object:
    """Give each process the same answers in another folder, then other answers."""
    recipe = get_finetune_recipe("vqa", get_recipe("tiny"))
    file = folder / f"machine_{processes.rank()}" / "answers.txt"
    file.parent.mkdir()
    code = ((str(file.with_name("task.py")), "sha256 0123"),)
    config = replace(recipe, task=replace(recipe.task, answers=file), code=code)
    texts = []
    for last_answer in ("no", f"no {processes.rank()}"):
        file.write_text(f"yes\n{last_answer}\n")
        texts.append(refusal(lambda: require_equal_flags(config)))
    return "; ".join(texts)


def missing_answers_of_rank(folder: Path) -> object:
    """Give only the first process the file of answers."""
    recipe = get_finetune_recipe("vqa", get_recipe("tiny"))
    file = folder / "answers.txt"
    if processes.rank() == 0:
        file.write_text("yes\nno\n")
    else:
        file = folder / "none.txt"
    config = replace(recipe, task=replace(recipe.task, answers=file))
    return refusal(lambda: require_equal_flags(config))


def data_of_rank(folder: Path) -> object:
    """Give each process other captions under the same name; return what the user sees."""
    home = folder / str(processes.rank())
    home.mkdir()
    (home / "red.png").write_bytes(encoded_card("red", "PNG"))
    row = {"image": "red.png", "caption": f"a card of process {processes.rank()}"}
    (home / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = open_source(home / "rows.jsonl")
    splits = Splits(
        train=[source],
        val=[],
        test=[],
        train_names=["rows.jsonl"],
        val_names=[],
    )
    return refusal(lambda: check_data(get_recipe("tiny"), splits, [], accepts=False))


def refusal(check: Callable[[], object]) -> str:
    """Return the message of a check that fails."""
    try:
        check()
    except UserError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lr_of_rank, "process 1 has --train.lr 1.5, process 0 has 0.5; start all processes"),
        (code_of_rank, r"process 1 has the code \w+, process 0 has \w+; start all"),
        (answers_of_rank, "accepted; process 1 has --task.answers a file with the hash"),
        (missing_answers_of_rank, r".*none.txt: cannot be read \(No such file"),
        (data_of_rank, "process 1 has other data than process 0: training data rows.jsonl, row"),
    ],
)
def test_a_process_with_something_else_is_named_in_all(work, message, tmp_path: Path):
    for text in run_in_processes(2, work, tmp_path):
        assert re.match(message, text), text
