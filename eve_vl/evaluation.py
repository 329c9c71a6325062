"""A run's numbers of record on any data: metrics, baselines beside them, and the files that official servers take."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eve_vl.config import TaskConfig
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.errors import UserError
from eve_vl.files import write_file
from eve_vl.loading import LoadedRun
from eve_vl.train.trainer import evaluation_batches


def evaluate_run(
    run: LoadedRun,
    num_samples: int,
    sources: Sequence[Source[Any]] | None = None,
    *,
    flags: Mapping[str, int | bool] | None = None,
    predictions: Path | None = None,
) -> dict[str, float]:
    """Return the task's numbers for a loaded run on other sources, or on its own validation sources; deterministic.

    In float32, so that no number depends on the size of a batch, with the task's baselines, if the run's training data can be
    read. flags: values of the run's task section to evaluate with instead, as `rerank`. predictions: where to write the file
    that the official server takes. Raises UserError.
    """
    data, flags = dataclasses.replace(run.config.data, val_samples=num_samples), flags or {}
    settings = _with_flags(run.config.task, flags)
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
    device = next(task.parameters()).device
    with evaluation_batches(task, loader, device, torch.float32) as batches:
        evaluated = task.evaluated(batches)
    if predictions is not None:
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, task.prediction_file(evaluated.examples))
    return evaluated.numbers | task.baselines(evaluated.examples)


def _with_flags(settings: TaskConfig, flags: Mapping[str, int | bool]) -> TaskConfig:
    """Return a task section with the values of flags. Raises UserError if they do not fit."""
    changed = dataclasses.replace(settings, **flags)
    if problems := changed.problems():
        names = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
        raise UserError(f"{names}: {'; '.join(problems)}")
    return changed
