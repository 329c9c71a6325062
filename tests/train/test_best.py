"""The best weights on validation, also after a resume."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import best_folder
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.best_folder import read_best
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.train.checkpoint_writer import CheckpointWriter
from eve_vl.train.run_log import read_log
from eve_vl.train.step import StepOutput
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import BadSampleError, UserError

CONFIG = TrainConfig(
    steps=8,
    batch_size=1,
    lr=0.1,
    warmup=0.0,
    val_every=2,
    save_every=2,
    log_every=2,
    keep_checkpoints=9,
    device="cpu",
)


@dataclass(kw_only=True)
class Numbers:
    """The batch of a task that learns a number."""

    where: tuple[str, ...] = ("one",)
    skipped: tuple[BadSampleError, ...] = ()

    def to(self, device: torch.device) -> "Numbers":
        return self


class Guess(nn.Module):
    """A task that is its own evaluator: it returns given scores and counts its validations.

    rows: by score, the rows' own.
    """

    def __init__(
        self,
        scores: Sequence[dict[str, float]],
        main_metric: str | None = "score",
        rows: Mapping[float, Sequence[float]] | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.scores = iter(scores)
        self.main_metric = main_metric
        self.main_loss: str | None = None
        self.num_validations = 0
        self.rows = rows or {}

    def forward(self, batch: Numbers) -> StepOutput:
        return StepOutput(loss=(self.weight - 1).square().sum(), terms={})

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], dict[str, float]]:
        self.num_validations += 1
        found = next(self.scores)
        rows = self.rows.get(found[self.main_metric], ()) if self.main_metric in found else ()
        return found, {f"row {number}": value for number, value in enumerate(rows)}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        return []

    def comparison(self, numbers: Mapping[str, float]) -> str:
        return ""


def endless() -> Iterator[Numbers]:
    while True:
        yield Numbers()


def train(
    run: Path, task: Guess, config: TrainConfig = CONFIG, notes: Sequence[str] = ()
) -> dict[str, float]:
    run.mkdir(exist_ok=True)
    texts = {"config.json": "{}", "tokenizer.json": "{}"}
    trainer = Trainer(config, run, task, task, device=torch.device("cpu"), texts=texts, notes=notes)
    trainer.resume()
    return trainer.fit(endless(), [], BadSamples(run, num_rows=1, max_share=1, writes=True))


def scored(*values: float) -> list[dict[str, float]]:
    return [{"score": value, "other": 10 * value} for value in values]


def weights(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")["weight"]


def notes_of(run: Path) -> list[str]:
    return [row["text"] for row in read_log(run) if row["kind"] == "note"]


def step_folder(run: Path, step: int) -> Path:
    return run / f"checkpoints/step_{step:08d}"


def test_without_scores_per_row_the_last_of_the_highest_numbers_is_kept(tmp_path: Path):
    run = tmp_path / "run"
    assert train(run, Guess(scored(0.2, 0.5, 0.5, 0.4))) == {"score": 0.5, "other": 5.0}
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 6)))
    assert not torch.equal(weights(run / "best"), weights(step_folder(run, 4)))
    assert read_best(run) == {"step": 6, "numbers": {"score": 0.5, "other": 5.0}, "rows": {}}
    assert sorted(path.name for path in (run / "best").iterdir()) == [
        *("config.json", "model.safetensors", "state.json", "tokenizer.json")
    ]
    assert [row["score"] for row in read_log(run) if row["kind"] == "val"] == [0.2, 0.5, 0.5, 0.4]
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


class Unusable(Guess):
    """Its validation data holds a row that cannot be used."""

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], dict[str, float]]:
        raise UserError("a row to evaluate on cannot be used")


def test_a_bad_row_of_validation_loses_no_step(tmp_path: Path):
    config = replace(CONFIG, val_every=3, save_every=8)
    with pytest.raises(UserError, match="cannot be used"):
        train(tmp_path / "run", Unusable([]), config)
    assert weights(step_folder(tmp_path / "run", 3)).any()


def test_the_checkpoint_of_a_step_is_in_place_before_its_best(tmp_path: Path, monkeypatch):
    """Also one that is written while training continues, as on a GPU."""
    run, save_best, found = tmp_path / "run", best_folder.save_best, []

    def save(run: Path, *, step: int, **content: Any) -> None:
        found.append((step, step_folder(run, step).exists()))
        save_best(run, step=step, **content)

    monkeypatch.setattr("eve_vl.train.trainer.save_best", save)
    as_on_a_gpu = partial(CheckpointWriter, keep=9, in_background=True)
    monkeypatch.setattr("eve_vl.train.trainer.CheckpointWriter", lambda run, **_: as_on_a_gpu(run))
    train(run, Guess(scored(0.2, 0.3, 0.4, 0.5)))
    assert found == [(2, True), (4, True), (6, True), (8, True)]


def test_a_run_is_read_as_its_best_a_checkpoint_as_itself(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5, 0.4, 0.3, 0.2)))
    assert chosen_checkpoint(run) == run / "best"
    assert chosen_checkpoint(run / "best") == run / "best"
    assert chosen_checkpoint(step_folder(run, 8)) == step_folder(run, 8)
    other = tmp_path / "other"
    train(other, Guess(scored(0.5, 0.4, 0.3, 0.2), main_metric=None))
    assert not (other / "best").exists()
    assert chosen_checkpoint(other) == step_folder(other, 8)
    for nothing, words in (
        (tmp_path / "nowhere", "no such run folder"),
        (tmp_path, "holds no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            chosen_checkpoint(nothing)


@pytest.mark.parametrize(
    ("later", "best_step"), [((0.45, 0.4), 4), ((0.5, 0.6), 8), ((0.7, 0.6), 6)]
)
def test_a_resumed_run_keeps_its_best_until_it_is_beaten(tmp_path: Path, later, best_step):
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    task = Guess(scored(*later))
    found = train(run, task)
    assert task.num_validations == 2
    assert found["score"] == max(0.5, *later)
    best = read_best(run)
    assert best is not None
    assert best["step"] == best_step
    assert torch.equal(weights(run / "best"), weights(step_folder(run, best_step)))


def test_a_best_later_than_the_checkpoint_that_a_run_goes_on_from_is_found_again(tmp_path: Path):
    """Killed after validation at step 4, before the next checkpoint."""
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    for path in step_folder(run, 4).iterdir():
        path.unlink()
    step_folder(run, 4).rmdir()
    assert train(run, Guess(scored(0.3, 0.25, 0.1))) == {
        "score": 0.3,
        "other": 3.0,
    }  # the log has the 0.2 of step 2
    best = read_best(run)
    assert best is not None
    assert best["step"] == 4
    assert [(row["step"], row["score"]) for row in read_log(run) if row["kind"] == "val"] == [
        (2, 0.2),
        (4, 0.3),
        (6, 0.25),
        (8, 0.1),
    ]


@pytest.mark.parametrize("step", [4, 8])
def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path: Path, step: int):
    """Killed between saving and validating: at the end of the run nothing else would look at the last weights."""

    class Killed(Exception):  # noqa: N818
        pass

    def until_killed() -> Iterator[dict[str, float]]:
        yield from scored(*(0.1 * number for number in range(1, step // 2)))
        raise Killed

    run = tmp_path / "run"
    task = Guess([])
    task.scores = until_killed()
    with pytest.raises(Killed):
        train(run, task)
    assert step_folder(run, step).is_dir()
    values = [0.9 - 0.1 * number for number in range((8 - step) // 2 + 1)]
    assert train(run, Guess(scored(*values)))["score"] == 0.9
    best = read_best(run)
    assert best is not None
    assert best["step"] == step
    assert [row["step"] for row in read_log(run) if row["kind"] == "val"] == [2, 4, 6, 8]
    task = Guess([])
    assert train(run, task)["score"] == 0.9  # finished: nothing is done again
    assert task.num_validations == 0


def test_validation_without_labels_cannot_choose(tmp_path: Path):
    with pytest.raises(
        UserError,
        match=r"^validation gives no score to choose the best weights by: its rows have no labels, or",
    ):
        train(tmp_path / "run", Guess([{"num_pairs": 3.0}]))
    assert not (tmp_path / "run/best").exists()


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "best_step"),
    [((NAN, 0.2, NAN, 0.1), 4), ((0.2, NAN, 0.3, NAN), 6), ((NAN, NAN, NAN, NAN), None)],
)
def test_what_is_not_a_number_is_never_the_best(tmp_path: Path, scores, best_step):
    run = tmp_path / "run"
    found = train(run, Guess(scored(*scores)))
    best = read_best(run)
    assert (best and best["step"]) == best_step
    assert best is None or found == best["numbers"]


def test_a_best_of_an_older_version_that_is_not_a_number_is_beaten(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.2, 0.5)), replace(CONFIG, steps=4))
    (run / "best/state.json").write_text('{"step": 4, "numbers": {"score": NaN}}')
    assert train(run, Guess(scored(0.1, 0.05)))["score"] == 0.1


def test_notes_are_told_once(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    for steps in (4, 8):
        config = replace(CONFIG, steps=steps)
        task = Guess(scored(0.2, 0.5))
        trainer = Trainer(
            config,
            run,
            task,
            task,
            device=torch.device("cpu"),
            texts={},
            notes=["weights from elsewhere"],
        )
        trainer.resume()
        trainer.fit(endless(), [], BadSamples(run, num_rows=1, max_share=1, writes=True))
    notes = [
        json.dumps(row)
        for row in read_log(run)
        if row["kind"] == "note" and not row["text"].startswith("best/")
    ]
    assert notes == ['{"kind": "note", "step": 0, "text": "weights from elsewhere"}']


def test_new_parameters_take_larger_steps(tmp_path: Path):
    """One step of AdamW moves every weight by its learning rate."""
    task = Guess(scored(0.1))
    task.head = nn.Parameter(torch.zeros(3))
    forward = task.forward
    task.forward = lambda batch: StepOutput(
        loss=forward(batch).loss + (task.head - 1).square().sum(), terms={}
    )  # type: ignore
    config = replace(
        CONFIG,
        steps=1,
        head_lr_multiplier=5.0,
        weight_decay=0.0,
        clip_norm=0.0,
        lr=0.01,
        schedule="linear",
    )
    (tmp_path / "run").mkdir()
    trainer = Trainer(
        config, tmp_path / "run", task, task, device=torch.device("cpu"), texts={}, new={"head"}
    )
    trainer.fit(endless(), [], BadSamples(tmp_path / "run", num_rows=1, max_share=1, writes=True))
    torch.testing.assert_close(task.weight.detach(), torch.full((3,), 0.01), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(task.head.detach(), torch.full((3,), 0.05), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "last"),
    [
        ((0.1, 0.3, 0.2, 0.3, 0.9, 0.9), 8),  # the same again is no better
        ((NAN, 0.1, NAN, 0.2, 0.1, 0.2), 12),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 12),
        ((0.3, 0.2, 0.1, 0.0, 0.0, 0.0), 6),
    ],
)
def test_a_run_stops_early(tmp_path: Path, scores, last, capsys):
    run, config = tmp_path / "run", replace(CONFIG, steps=12, save_every=5, patience=2)
    assert train(run, Guess(scored(*scores)), config)["score"] == max(
        score for score in scores[: last // 2] if score == score
    )
    assert [row["step"] for row in read_log(run) if row["kind"] == "val"] == list(
        range(2, last + 1, 2)
    )
    notes = notes_of(run)[:-1]
    assert notes == (["stopped early: 2 validations without a better score"] if last < 12 else [])
    assert step_folder(run, last).is_dir()
    task = Guess([])
    train(run, task, config)  # nothing is left to do
    assert task.num_validations == 0
    if last < 12:  # but with more patience there is, and not with more steps
        rates = "the learning rate follows the schedule of 24 steps from here on"
        capsys.readouterr()
        train(run, task, replace(config, steps=24), notes=[rates])
        assert capsys.readouterr().out == (
            f"resuming from step {last} of 24; nothing left to train: train.patience 2 has ended it; a larger one, or 0, "
            "continues\n"
        )
        assert notes_of(run)[:-1] == notes
        train(run, Guess(scored(*[0.05] * 6)), replace(config, patience=9))
        assert step_folder(run, 12).is_dir()


@pytest.mark.parametrize("killed_at", [2, 4, 6])
def test_patience_is_not_renewed_by_a_restart(tmp_path: Path, killed_at):
    run, config = tmp_path / "run", replace(CONFIG, steps=12, patience=3)
    scores = [0.5, 0.2, 0.3, 0.4, 0.9, 0.9]
    train(run, Guess(scored(*scores[: killed_at // 2])), replace(config, steps=killed_at))
    assert train(run, Guess(scored(*scores[killed_at // 2 :])), config)["score"] == 0.5
    assert [row["step"] for row in read_log(run) if row["kind"] == "val"] == [2, 4, 6, 8]


def test_without_a_main_metric_a_loss_is_watched(tmp_path: Path):
    task = Guess([{"loss": value} for value in (3.0, 2.0, 2.5, 2.1, 1.0)], main_metric=None)
    with pytest.raises(UserError, match="no number to watch"):
        train(tmp_path / "run", task, replace(CONFIG, patience=2))
    task.__dict__["main_loss"] = "loss"
    train(tmp_path / "run", task, replace(CONFIG, steps=10, patience=2))
    assert [row["loss"] for row in read_log(tmp_path / "run") if row["kind"] == "val"] == [
        3.0,
        2.0,
        2.5,
        2.1,
    ]


EVEN = [0.0, 1.0] * 20
ROWS = {
    0.5: EVEN,
    0.55: [1.0, *EVEN[1:]],
    0.9: [1.0] * 39 + [0.0],
    0.4: [0.0, 0.0, *EVEN[2:]],
    0.91: [1.0] * 40,
}
"""Scores per row by the main metric: those of 0.9 are better than those of 0.5 beyond chance, those of 0.55 are not."""


def better(scores: Sequence[float]) -> Guess:
    return Guess(scored(*scores), rows=ROWS)


@pytest.mark.parametrize(
    ("scores", "best_step", "reason"),
    [
        ((0.4, 0.5, 0.55, 0.9), 8, ", the last: it has the highest score"),
        (
            (0.4, 0.55, 0.4, 0.5),
            8,
            ", the last: step 4 has score 0.550, the last 0.500; better on 1 of 40 validation rows, worse on 0, ",
        ),
        (
            (0.4, 0.9, 0.4, 0.5),
            4,
            ": it has score 0.900, the last 0.500; better on 20 of 40 validation rows, worse on 1, difference 0.475",
        ),
        (
            (0.4, 0.9, 0.91, 0.9),
            8,
            ", the last: step 6 has score 0.910, the last 0.900; better on 1 of 40 validation rows, worse on 0, ",
        ),
        ((0.9, NAN, 0.91, NAN), 6, ": the last has no score"),
        ((0.55, 0.5, 0.9, 0.5), 6, ": it has score 0.900"),
        ((0.9, 0.91, 0.9, 0.4), 4, ": it has score 0.910"),  # step 6 had taken its place
    ],
)
def test_an_earlier_step_is_kept_only_if_it_is_better_beyond_chance(
    tmp_path: Path, scores, best_step, reason
):
    run = tmp_path / "run"
    found = train(run, better(scores))
    best = read_best(run)
    assert best is not None
    assert best["step"] == best_step
    assert found == best["numbers"] == scored(scores[best_step // 2 - 1])[0]
    assert torch.equal(weights(run / "best"), weights(step_folder(run, best_step)))
    closing = notes_of(run)[-1]
    assert closing.startswith(f"best/ holds step {best_step}{reason}")
    assert closing.endswith(", which may be chance") == (", the last: step" in closing)


@pytest.mark.parametrize(("killed_at", "lost"), [(4, ()), (8, ()), (8, (8, 6))])
def test_a_killed_run_makes_the_same_choice(tmp_path: Path, killed_at: int, lost: tuple[int, ...]):
    """Killed before a validation; `lost` checkpoints make it resume from one before best/ was written."""
    scores = (
        0.9,
        0.91,
        0.9,
        0.4,
    )  # at step 6 the last takes the place of step 4, which returns at step 8
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    task = better(scores[: killed_at // 2 - 1])
    with pytest.raises(StopIteration):
        train(cut, task)
    for step in lost:
        shutil.rmtree(step_folder(cut, step))
    left = better(scores[(min(lost, default=killed_at)) // 2 - 1 :])
    assert train(cut, left) == train(whole, better(scores))
    assert notes_of(cut) == notes_of(whole)
    for folder in ("best", "checkpoints/highest"):
        files = [
            {path.name: path.read_bytes() for path in (run / folder).glob("*")}
            for run in (whole, cut)
        ]
        assert files[0] == files[1], folder


def test_a_best_step_in_the_warm_up_is_said(tmp_path: Path):
    train(tmp_path / "run", better((0.9, 0.5, 0.4, 0.5)), replace(CONFIG, warmup=0.5))
    assert notes_of(tmp_path / "run")[-1].endswith("; it lies in the warm-up, the first 4 steps")
