"""The best weights on validation: the choice between steps, in runs and after a resume."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from eve_vl.train.best_folder import ValidatedStep, read_best, save_best
from eve_vl.train.best_weights import BestWeights
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.errors import UserError
from helpers.number_task import (
    CONFIG,
    Guess,
    notes_of,
    scored,
    step_folder,
    train,
    validations,
    weights,
)

NAN = float("nan")
ALTERNATING = [0.0, 1.0] * 20
ROWS = {
    0.5: ALTERNATING,
    0.55: [1.0, *ALTERNATING[1:]],
    0.9: [1.0] * 39 + [0.0],
    0.4: [0.0, 0.0, *ALTERNATING[2:]],
    0.91: [1.0] * 40,
}
"""Scores per row by the main metric: those of 0.9 are better than those of 0.5 beyond chance, those
of 0.55 are not."""


def choose(
    run: Path,
    scores: Sequence[float],
    first_step: int = 2,
    rows: Mapping[float, Sequence[float]] = ROWS,
) -> BestWeights:
    """Choose among validations of every second step, of which each has its number as weight."""
    choice = BestWeights(run, "score")
    choice.restore(first_step - 2)
    for index, score in enumerate(scores):
        step = first_step + 2 * index
        row_scores = {f"row {row}": value for row, value in enumerate(rows.get(score, ()))}
        numbers = {"score": score}
        save = partial(
            save_best,
            run,
            step=step,
            model={"weight": torch.tensor([step])},
            texts={},
            numbers=numbers,
            rows=row_scores,
        )
        validated = ValidatedStep(step=step, numbers=numbers, rows=row_scores)
        choice.update(validated, step // 2 - 1, save)
    return choice


@pytest.mark.parametrize(
    ("scores", "expected_step", "reason"),
    [
        ((0.4, 0.5, 0.55, 0.9), 8, ", the last: it has the highest score"),
        (
            (0.4, 0.55, 0.4, 0.5),
            8,
            ", the last: step 4 has score 0.550, the last 0.500; "
            "better on 1 of 40 validation rows, worse on 0, ",
        ),
        (
            (0.4, 0.9, 0.4, 0.5),
            4,
            ": it has score 0.900, the last 0.500; "
            "better on 20 of 40 validation rows, worse on 1, difference 0.475",
        ),
        (
            (0.4, 0.9, 0.91, 0.9),
            8,
            ", the last: step 6 has score 0.910, the last 0.900; "
            "better on 1 of 40 validation rows, worse on 0, ",
        ),
        ((0.55, 0.5, 0.9, 0.5), 6, ": it has score 0.900"),
        ((0.9, 0.91, 0.9, 0.4), 4, ": it has score 0.910"),  # step 6 had taken its place
        ((0.9, NAN, 0.91, NAN), 6, ": the last has no score"),
        ((NAN, 0.9, NAN, 0.4), 4, ": it has score 0.900"),
    ],
)
def test_earlier_step_is_best_only_if_better_beyond_chance(
    tmp_path: Path, scores, expected_step, reason
):
    choice = choose(tmp_path, scores)
    best = read_best(tmp_path)
    assert best is not None
    assert best.step == expected_step
    assert best.numbers == {"score": scores[expected_step // 2 - 1]}
    assert weights(tmp_path / "best").item() == expected_step
    closing = choice.closing(8, num_warmup=0)
    assert closing.startswith(f"best/ holds step {expected_step}{reason}")
    assert closing.endswith(", which may be chance") == (", the last: step" in closing)


def test_best_step_in_the_warm_up_is_noted(tmp_path: Path):
    choice = choose(tmp_path, (0.9, 0.5, 0.4, 0.5))
    assert choice.closing(8, 4).endswith("; it lies in the warm-up, the first 4 steps")


def test_nan_alone_is_never_the_best(tmp_path: Path):
    """Older versions wrote it to best/."""
    assert choose(tmp_path, (NAN, NAN)).best is None
    assert not (tmp_path / "best").exists()
    save_best(
        tmp_path,
        step=2,
        model={},
        texts={},
        numbers={"score": NAN},
    )
    best = choose(tmp_path, (0.1, 0.05), first_step=4, rows={}).best
    assert best is not None
    assert best.numbers == {"score": 0.1}


@pytest.mark.parametrize(
    ("later_scores", "expected_step"),
    [
        ((0.45, 0.4), 4),
        ((0.5, 0.6), 8),
        ((0.7, 0.6), 6),
    ],
)
def test_resumed_choice_keeps_its_best_until_a_step_is_better(
    tmp_path: Path, later_scores, expected_step
):
    choose(tmp_path, (0.2, 0.5), rows={})
    choose(tmp_path, later_scores, first_step=6, rows={})
    assert weights(tmp_path / "best").item() == expected_step


# Runs


def test_run_without_scores_per_row_writes_the_last_of_equal_highest_steps(tmp_path: Path):
    run = tmp_path / "run"
    numbers = {"score": 0.5, "other": 5.0}
    assert train(run, Guess(scored(0.2, 0.5, 0.5, 0.4))) == numbers
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 6)))
    assert not torch.equal(weights(run / "best"), weights(step_folder(run, 4)))
    assert read_best(run) == ValidatedStep(
        step=6,
        numbers=numbers,
        rows={},
    )
    assert {path.name for path in (run / "best").iterdir()} == {
        "config.json",
        "model.safetensors",
        "state.json",
        "tokenizer.json",
    }
    assert validations(run) == {
        2: 0.2,
        4: 0.5,
        6: 0.5,
        8: 0.4,
    }
    assert not list(run.glob(".*"))
    assert chosen_checkpoint(run) == run / "best"
    assert chosen_checkpoint(run / "best") == run / "best"
    assert chosen_checkpoint(step_folder(run, 8)) == step_folder(run, 8)


def test_run_without_a_main_metric_is_its_newest_checkpoint(tmp_path: Path):
    run = tmp_path / "run"
    train(
        run,
        Guess(scored(0.5, 0.4), main_metric=None),
        replace(CONFIG, steps=4),
    )
    assert not (run / "best").exists()
    assert chosen_checkpoint(run) == step_folder(run, 4)


def test_validation_without_the_main_metric_is_an_error(tmp_path: Path):
    message = (
        "^validation gives no score to choose the best weights by: its rows have no labels, or"
    )
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", Guess([{"num_pairs": 3.0}]))
    assert not (tmp_path / "run/best").exists()


def test_best_later_than_the_resumed_checkpoint_is_chosen_again(tmp_path: Path):
    """Killed after validation at step 4, before the next checkpoint."""
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    shutil.rmtree(step_folder(run, 4))
    # the log has the 0.2 of step 2
    assert train(run, Guess(scored(0.3, 0.25, 0.1)))["score"] == 0.3
    best = read_best(run)
    assert best is not None
    assert best.step == 4
    assert validations(run) == {
        2: 0.2,
        4: 0.3,
        6: 0.25,
        8: 0.1,
    }


@pytest.mark.parametrize(
    "lost",
    [
        (),
        (8, 6),
    ],
)
def test_run_killed_in_its_last_validation_repeats_it_and_makes_the_same_choice(
    tmp_path: Path, lost: tuple[int, ...]
):
    """`lost` checkpoints make it resume from one before best/ was written."""
    # at step 6 the last takes the place of step 4, which returns at step 8
    scores = scored(0.9, 0.91, 0.9, 0.4)
    killed = tmp_path / "killed"
    with pytest.raises(StopIteration):
        train(killed, Guess(scores[:3], rows=ROWS))
    assert step_folder(killed, 8).is_dir()
    for step in lost:
        shutil.rmtree(step_folder(killed, step))
    next_validation = 2 if lost else 3
    numbers = train(killed, Guess(scores[next_validation:], rows=ROWS))

    whole = tmp_path / "whole"
    assert numbers == train(whole, Guess(scores, rows=ROWS)) == scores[1]
    assert notes_of(killed) == notes_of(whole)
    assert notes_of(whole)[-1].startswith("best/ holds step 4: it has score 0.910")
    assert validations(killed) == validations(whole)
    for folder in ("best", "checkpoints/highest"):
        assert files_of(killed / folder) == files_of(whole / folder), folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}
