"""Evaluation of a loaded run on any data.

Metrics, baselines, ablations and prediction files.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.config import TaskConfig
from eve_vl.data import fingerprint
from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.sample_set import SampleSet
from eve_vl.metrics import intervals
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.evaluator import AnyTask, Evaluated, Evaluator, evaluator_of
from eve_vl.tasks.run import Run
from eve_vl.train.evaluation_batches import evaluation_batches, num_skipped
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import write_file


def evaluated(
    run: Run,
    num_samples: int,
    sources: Sequence[Source[Any]] | None = None,
    *,
    flags: Mapping[str, int | bool] | None = None,
    predictions: Path | None = None,
    skip_invalid: bool = False,
    ablations: bool = True,
) -> Evaluated:
    """Evaluate a run on sources, by default its own validation sources.

    The row scores of two runs suit `intervals.paired`. Computed in float32, so that no metric
    depends on the batch size; deterministic. Means know their n and interval (`MeasuredValue`).
    Baselines that need the run's training data are added if it can be read.

    flags: values of the run's task section to evaluate with instead, such as `rerank`. predictions:
    where to write the file that the official server takes. skip_invalid: leave out unusable rows
    and count them as `num_skipped`; otherwise they raise UserError. ablations: also evaluate
    without image or text (`Evaluator.ablations`), each as long as the evaluation itself.
    """
    settings = changed_settings(run.config.task, flags or {})
    data = replace(run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid)
    config = replace(run.config, data=data, task=settings)
    evaluator = evaluator_of(with_settings(run.task, settings))
    if sources is None:
        _, sources = open_train_and_val(config, evaluator.task.dataset.kind_of(config))
    num_rows = sum(len(source) for source in sources)
    if predictions is not None:
        require_prediction_file(evaluator, num_rows, num_samples)

    dataset = evaluator.dataset(sources, config, run.tokenizer)
    skipped = [] if skip_invalid else None
    result = evaluate_rows(evaluator, dataset, run.device, skipped)
    if predictions is not None:
        if skipped:
            raise UserError(
                f"--predictions: the file holds all {num_rows} rows, but {len(skipped)} cannot be "
                f"used, the first: {skipped[0]}; repair such rows (eve data check lists them), "
                "or leave it out"
            )
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, evaluator.prediction_file(result.examples))

    numbers = result.numbers | evaluator.data_baselines(result.examples) | num_skipped(skipped)
    data_id = fingerprint.short(fingerprint.of_sources(enumerate(sources)))
    result = replace(result, numbers=numbers, notes=dataset.notes(), data=data_id)
    if ablations:
        for how in evaluator.ablations:
            rows = AblatedRows(dataset, how)
            ablated = evaluate_rows(evaluator, rows, run.device, [] if skip_invalid else None)
            numbers.update(ablated_metrics(evaluator, how, result, ablated))
    return result


def changed_settings(settings: TaskConfig, flags: Mapping[str, int | bool]) -> TaskConfig:
    """Return a task section with other values. Raises UserError."""
    settings = replace(settings, **flags)
    problems = settings.validate()
    if problems:
        names = ", ".join(f"--{name}" for name in flags).replace("_", "-")
        raise UserError(f"{names}: {'; '.join(problems)}")
    return settings


def with_settings(task: AnyTask, settings: TaskConfig) -> AnyTask:
    """Return a twin of a task with the same weights and another section."""
    twin = copy.copy(task)
    twin.settings = settings
    return twin


def require_prediction_file(evaluator: Evaluator[Any], num_rows: int, num_samples: int) -> None:
    """Raise UserError if a task has no prediction file, or if not all rows are evaluated."""
    if type(evaluator).prediction_file is Evaluator.prediction_file:
        raise UserError(
            f"--predictions: a {evaluator.task.settings.name} run has no prediction file, those "
            "that answer, verify, compare or classify have one; --json FILE writes the numbers"
        )
    if num_samples < num_rows:
        raise UserError(
            f"--predictions: the file holds all {num_rows} rows, but --samples is {num_samples}; "
            "leave it out"
        )


def evaluate_rows(
    evaluator: Evaluator[Any],
    rows: SampleSet,
    device: torch.device,
    skipped: list[Any] | None,
) -> Evaluated:
    """Evaluate rows in float32. skipped: see `evaluation_batches`."""
    loader = eval_loader(rows, rank=0, world=1)
    with evaluation_batches(evaluator.task, loader, device, torch.float32, skipped) as batches:
        return evaluator.evaluate_with_rows(batches)


def ablated_metrics(
    evaluator: Evaluator[Any], how: str, whole: Evaluated, ablated: Evaluated
) -> dict[str, float]:
    """Return the main metrics with a part of each row taken away, named NAME_noise and so on.

    The metrics of whole rows get their differences from these.
    """
    main_metric = evaluator.main_metric or ""
    score_name = evaluator.score_name or main_metric
    numbers = {}
    for name, value in ablated.numbers.items():
        stem, slash, part = name.partition("/")
        if stem in (main_metric, score_name):
            numbers[f"{stem}_{how}{slash}{part}"] = value

    scores = whole.row_scores
    has_same_rows = bool(scores) and scores.keys() == ablated.row_scores.keys()
    if has_same_rows and score_name in whole.numbers:
        gains = [scores[row] - ablated.row_scores[row] for row in scores]
        groups = [intervals.group_of(row) for row in scores]
        score = whole.numbers[score_name]
        intervals.with_difference(
            score, f"{score_name}_{how}", np.array(gains) / len(scores), groups
        )
    return numbers
