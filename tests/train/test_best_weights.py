"""The best weights on validation, also after a resume."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eve_vl.train import best_folder
from eve_vl.train.best_folder import read_best
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.train.checkpoint_writer import CheckpointWriter
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


def best_step(run: Path) -> int | None:
    best = read_best(run)
    return None if best is None else best["step"]


def test_without_scores_per_row_the_last_of_equal_highest_steps_is_best(tmp_path: Path):
    run = tmp_path / "run"
    numbers = {"score": 0.5, "other": 5.0}
    assert train(run, Guess(scored(0.2, 0.5, 0.5, 0.4))) == numbers
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 6)))
    assert not torch.equal(weights(run / "best"), weights(step_folder(run, 4)))
    assert read_best(run) == {"step": 6, "numbers": numbers, "rows": {}}
    assert {path.name for path in (run / "best").iterdir()} == {
        "config.json",
        "model.safetensors",
        "state.json",
        "tokenizer.json",
    }
    assert validations(run) == {2: 0.2, 4: 0.5, 6: 0.5, 8: 0.4}
    assert not list(run.glob(".*"))


def test_checkpoint_is_in_place_before_best_is_written(tmp_path: Path, monkeypatch):
    """Also one that is written while training continues, as on a GPU."""
    saves = []

    def save_and_look(run: Path, *, step: int, **content: Any) -> None:
        saves.append((step, step_folder(run, step).exists()))
        best_folder.save_best(run, step=step, **content)

    monkeypatch.setattr("eve_vl.train.trainer.save_best", save_and_look)
    background_writer = partial(CheckpointWriter, keep=9, in_background=True)
    monkeypatch.setattr(
        "eve_vl.train.trainer.CheckpointWriter", lambda run, **_: background_writer(run)
    )
    train(tmp_path / "run", Guess(scored(0.2, 0.3, 0.4, 0.5)))
    assert saves == [(2, True), (4, True), (6, True), (8, True)]


def test_chosen_checkpoint_of_a_run_is_its_best_else_its_newest(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5, 0.4, 0.3, 0.2)))
    assert chosen_checkpoint(run) == run / "best"
    assert chosen_checkpoint(run / "best") == run / "best"
    assert chosen_checkpoint(step_folder(run, 8)) == step_folder(run, 8)
    without_metric = tmp_path / "without_metric"
    train(without_metric, Guess(scored(0.5, 0.4, 0.3, 0.2), main_metric=None))
    assert not (without_metric / "best").exists()
    assert chosen_checkpoint(without_metric) == step_folder(without_metric, 8)


@pytest.mark.parametrize(
    ("later_scores", "expected_step"), [((0.45, 0.4), 4), ((0.5, 0.6), 8), ((0.7, 0.6), 6)]
)
def test_resumed_run_keeps_its_best_until_a_step_is_better(
    tmp_path: Path, later_scores, expected_step
):
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    task = Guess(scored(*later_scores))
    assert train(run, task)["score"] == max(0.5, *later_scores)
    assert task.num_validations == 2
    assert best_step(run) == expected_step
    assert torch.equal(weights(run / "best"), weights(step_folder(run, expected_step)))


def test_best_later_than_the_resumed_checkpoint_is_chosen_again(tmp_path: Path):
    """Killed after validation at step 4, before the next checkpoint."""
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    shutil.rmtree(step_folder(run, 4))
    # the log has the 0.2 of step 2
    assert train(run, Guess(scored(0.3, 0.25, 0.1)))["score"] == 0.3
    assert best_step(run) == 4
    assert validations(run) == {2: 0.2, 4: 0.3, 6: 0.25, 8: 0.1}


@pytest.mark.parametrize("step", [4, 8])
def test_interrupted_validation_is_repeated_after_resume(tmp_path: Path, step: int):
    """Killed between saving and validating: at the end of the run nothing else would look at the
    last weights."""

    class Killed(Exception):  # noqa: N818
        pass

    def scores_until_killed() -> Iterator[dict[str, float]]:
        yield from scored(*(0.1 * number for number in range(1, step // 2)))
        raise Killed

    run = tmp_path / "run"
    task = Guess([])
    task.scores = scores_until_killed()
    with pytest.raises(Killed):
        train(run, task)
    assert step_folder(run, step).is_dir()
    falling_scores = [0.9 - 0.1 * number for number in range((8 - step) // 2 + 1)]
    assert train(run, Guess(scored(*falling_scores)))["score"] == 0.9
    assert best_step(run) == step
    assert list(validations(run)) == [2, 4, 6, 8]

    task = Guess([])
    assert train(run, task)["score"] == 0.9
    assert task.num_validations == 0  # the run is finished


def test_validation_without_main_metric_is_an_error(tmp_path: Path):
    message = (
        "^validation gives no score to choose the best weights by: its rows have no labels, or"
    )
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", Guess([{"num_pairs": 3.0}]))
    assert not (tmp_path / "run/best").exists()


@pytest.mark.parametrize(
    ("scores", "expected_step"),
    [((NAN, 0.2, NAN, 0.1), 4), ((0.2, NAN, 0.3, NAN), 6), ((NAN, NAN, NAN, NAN), None)],
)
def test_nan_is_never_the_best(tmp_path: Path, scores, expected_step):
    run = tmp_path / "run"
    numbers = train(run, Guess(scored(*scores)))
    best = read_best(run)
    assert best_step(run) == expected_step
    assert best is None or numbers == best["numbers"]


def test_nan_in_the_best_folder_of_an_older_version_is_beaten(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    (run / "best/state.json").write_text('{"step": 4, "numbers": {"score": NaN}}')
    assert train(run, Guess(scored(0.1, 0.05)))["score"] == 0.1


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


def guess_with_rows(scores: Sequence[float]) -> Guess:
    return Guess(scored(*scores), rows=ROWS)


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
        ((0.9, NAN, 0.91, NAN), 6, ": the last has no score"),
        ((0.55, 0.5, 0.9, 0.5), 6, ": it has score 0.900"),
        ((0.9, 0.91, 0.9, 0.4), 4, ": it has score 0.910"),  # step 6 had taken its place
    ],
)
def test_earlier_step_is_best_only_if_better_beyond_chance(
    tmp_path: Path, scores, expected_step, reason
):
    run = tmp_path / "run"
    numbers = train(run, guess_with_rows(scores))
    best = read_best(run)
    assert best is not None
    assert best["step"] == expected_step
    assert numbers == best["numbers"] == scored(scores[expected_step // 2 - 1])[0]
    assert torch.equal(weights(run / "best"), weights(step_folder(run, expected_step)))
    closing = notes_of(run)[-1]
    assert closing.startswith(f"best/ holds step {expected_step}{reason}")
    assert closing.endswith(", which may be chance") == (", the last: step" in closing)


@pytest.mark.parametrize(("killed_at", "lost"), [(4, ()), (8, ()), (8, (8, 6))])
def test_killed_run_makes_the_same_choice(tmp_path: Path, killed_at: int, lost: tuple[int, ...]):
    """Killed before a validation; `lost` checkpoints make it resume from one before best/ was
    written."""
    # at step 6 the last takes the place of step 4, which returns at step 8
    scores = (0.9, 0.91, 0.9, 0.4)
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    with pytest.raises(StopIteration):
        train(killed, guess_with_rows(scores[: killed_at // 2 - 1]))
    for step in lost:
        shutil.rmtree(step_folder(killed, step))
    next_validation = min(lost, default=killed_at) // 2 - 1
    numbers = train(killed, guess_with_rows(scores[next_validation:]))
    assert numbers == train(whole, guess_with_rows(scores))
    assert notes_of(killed) == notes_of(whole)
    for folder in ("best", "checkpoints/highest"):
        assert files_of(killed / folder) == files_of(whole / folder), folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def test_best_step_in_the_warm_up_is_noted(tmp_path: Path):
    run = tmp_path / "run"
    train(run, guess_with_rows((0.9, 0.5, 0.4, 0.5)), replace(CONFIG, warmup=0.5))
    assert notes_of(run)[-1].endswith("; it lies in the warm-up, the first 4 steps")
