"""A run's numbers of record on any data: metrics, baselines beside them, and the files that official servers take."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eve_vl.config import HELD_OUT, DataConfig, generated
from eve_vl.data.dataset import eval_rows, row_keys
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.errors import UserError
from eve_vl.files import write_file
from eve_vl.loading import LoadedRun
from eve_vl.tasks.task import Evaluated
from eve_vl.train.trainer import evaluation_batches, num_skipped

NUM_KNOWN, NUM_LOOKED_AT = 50_000, 500  # training rows, and rows of each source, looked at for what was trained on


def evaluate_rows(
    run: LoadedRun, num_samples: int, sources: Sequence[Source[Any]] | None = None, **how: Any
) -> tuple[dict[str, float], Mapping[str, float]]:
    """Return the numbers and the row scores of `evaluated` (of two runs for `metrics.certainty.paired`). how: its options."""
    found = evaluated(run, num_samples, sources, **how)
    return found.numbers, found.row_scores


def evaluated(
    run: LoadedRun,
    num_samples: int,
    sources: Sequence[Source[Any]] | None = None,
    *,
    flags: Mapping[str, int | bool] | None = None,
    predictions: Path | None = None,
    skip_broken: bool = False,
) -> Evaluated:
    """Return the task's numbers for a loaded run on other sources, or on its own validation sources, with the rows that they
    come from and how well each is done, by its name (see `Task.row_scores`); deterministic.

    In float32, so that no number depends on the size of a batch, with the task's baselines, if the run's training data can be
    read. Means know their n and interval (`Estimate`). flags: values of the run's task section to evaluate with instead, as
    `rerank`. predictions: where to write the file that the official server takes. skip_broken: leave out rows that cannot be
    used and count them as `num_skipped`, where else UserError is raised. Raises UserError.
    """
    flags = flags or {}
    data = dataclasses.replace(run.config.data, val_samples=num_samples, skip_broken_val=skip_broken)
    settings = dataclasses.replace(run.config.task, **flags)
    if problems := settings.problems():
        raise UserError(f"{', '.join(f'--{name}' for name in flags).replace('_', '-')}: {'; '.join(problems)}")
    config, task = dataclasses.replace(run.config, data=data, task=settings), run.task.with_settings(settings)
    if sources is None:
        sources = open_train_and_val(config, task.kind(config))[1]
    num_rows = sum(map(len, sources))
    if predictions is not None and not task.has_prediction_file:
        raise UserError(f"--predictions: a {settings.name} run has no prediction file")
    if predictions is not None and num_samples < num_rows:
        raise UserError(f"--predictions: the file holds all {num_rows} rows, but --samples is {num_samples}; leave it out")
    dataset = task.eval_dataset(sources, config, run.tokenizer)
    task.check_flags(flags, dataset)
    loader = eval_loader(dataset, rank=0, world=1)
    device, skipped = next(task.parameters()).device, [] if skip_broken else None
    with evaluation_batches(task, loader, device, torch.float32, skipped) as batches:
        found = task.evaluated(batches)
    if predictions is not None:
        if skipped:
            lacks = f"the file holds all {num_rows} rows, but {len(skipped)} cannot be used, the first: {skipped[0]}"
            raise UserError(f"--predictions: {lacks}; repair such rows (eve data check lists them), or leave it out")
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, task.prediction_file(found.examples))
    numbers = found.numbers | task.baselines(found.examples) | num_skipped(skipped)
    return dataclasses.replace(found, numbers=numbers)


def remarks(run: LoadedRun, numbers: Mapping[str, float], sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return what people should know about a run's numbers on sources, by default its own validation sources, a sentence each:
    whether it was trained on such rows, and the task's remarks."""
    num_seen = num_looked_at = 0
    with contextlib.suppress(UserError):  # what it was trained on may be out of reach
        if sources is not None or run.config.data.val != (HELD_OUT,):
            train, val = open_train_and_val(run.config, run.task.kind(run.config))
            num_seen, num_looked_at = _seen_in_training(run.config.data, train, val if sources is None else sources)
    seen = [f"of {num_looked_at:,} rows looked at, {num_seen:,} show what this run was trained on"] if num_seen else []
    return [*seen, *run.task.remarks(numbers)]


def _seen_in_training(data: DataConfig, train: Sequence[Source[Any]], sources: Sequence[Source[Any]]) -> tuple[int, int]:
    """Return how many rows show a picture of training (by its file, of tables by its bytes) or, without pictures, have a text
    of it, and how many were looked at: a part of both sides where they are large, so that it takes seconds."""
    files = [source for name, source in zip(data.train, train, strict=True) if not generated(name)]
    known = {key for row in eval_rows(files, NUM_KNOWN) for key in row_keys(row)}
    rows = [(source, row) for source in sources for row in eval_rows([source], NUM_LOOKED_AT)]
    # scenes of one split are equal
    return sum(source in train or not known.isdisjoint(row_keys(row)) for source, row in rows), len(rows)
