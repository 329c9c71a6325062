"""Runs of a task that learns three numbers, and whose validation returns given scores."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.run_log import read_log
from eve_vl.train.step import StepOutput
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import BadSampleError

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
        numbers = next(self.scores)
        if self.main_metric not in numbers:
            return numbers, {}
        row_scores = self.rows.get(numbers[self.main_metric], ())
        return numbers, {f"row {index}": score for index, score in enumerate(row_scores)}

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        return []

    def comparison(self, numbers: Mapping[str, float]) -> str:
        return ""


def scored(*values: float) -> list[dict[str, float]]:
    return [{"score": value, "other": 10 * value} for value in values]


def endless() -> Iterator[Numbers]:
    while True:
        yield Numbers()


def no_bad_samples(run: Path) -> BadSamples:
    return BadSamples(
        run,
        num_rows=1,
        max_share=1,
        writes=True,
    )


def trainer_of(run: Path, task: Any, config: TrainConfig = CONFIG, **options: Any) -> Trainer:
    run.mkdir(exist_ok=True)
    texts = {"config.json": "{}", "tokenizer.json": "{}"}
    cpu = torch.device("cpu")
    return Trainer(
        config,
        run,
        task,
        task,
        **{
            "device": cpu,
            "texts": texts,
            **options,
        },
    )


def train(run: Path, task: Any, config: TrainConfig = CONFIG, **options: Any) -> dict[str, float]:
    """Start a run, or resume it, and return its numbers."""
    trainer = trainer_of(run, task, config, **options)
    trainer.resume()
    return trainer.fit(endless(), [], no_bad_samples(run))


def weights(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")["weight"]


def step_folder(run: Path, step: int) -> Path:
    return run / f"checkpoints/step_{step:08d}"


def validations(run: Path, name: str = "score") -> dict[int, float]:
    """Return a metric by the step of its validation."""
    return {row["step"]: row[name] for row in read_log(run) if row["kind"] == "val"}


def notes_of(run: Path) -> list[str]:
    return [row["text"] for row in read_log(run) if row["kind"] == "note"]
