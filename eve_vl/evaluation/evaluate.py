"""Evaluation of a loaded run on any data.

Metrics, baselines, ablations, prediction files, and rows that it was trained on.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.config import TaskConfig
from eve_vl.data import fingerprint
from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import RowDataset
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

    The row scores of two runs suit `intervals.paired`.
    Computed in float32, so that no metric depends on the batch size; deterministic. Means know their n and interval
    (`MeasuredValue`). Baselines that need the run's training data are added if it can be read.

    flags: values of the run's task section to evaluate with instead, such as `rerank`. predictions: where to write the file
    that the official server takes. skip_invalid: leave out unusable rows and count them as `num_skipped`; otherwise they raise
    UserError. ablations: also evaluate without image or text (`Evaluator.ablations`), each as long as the evaluation itself.
    """
    flags = flags or {}
    data = dataclasses.replace(
        run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid
    )
    settings = dataclasses.replace(run.config.task, **flags)
    if problems := settings.validate():
        raise UserError(
            f"{', '.join(f'--{name}' for name in flags).replace('_', '-')}: {'; '.join(problems)}"
        )
    config, task = (
        dataclasses.replace(run.config, data=data, task=settings),
        with_settings(run.task, settings),
    )
    evaluator = evaluator_of(task)
    if sources is None:
        sources = open_train_and_val(config, task.dataset.kind_of(config))[1]
    num_rows = sum(map(len, sources))
    if predictions is not None and type(evaluator).prediction_file is Evaluator.prediction_file:
        those = "those that answer, verify, compare or classify have one; --json FILE writes the numbers"
        raise UserError(f"--predictions: a {settings.name} run has no prediction file, {those}")
    if predictions is not None and num_samples < num_rows:
        raise UserError(
            f"--predictions: the file holds all {num_rows} rows, but --samples is {num_samples}; leave it out"
        )
    dataset = evaluator.dataset(sources, config, run.tokenizer)
    skipped = [] if skip_invalid else None
    with evaluation_batches(
        task, eval_loader(dataset, rank=0, world=1), run.device, torch.float32, skipped
    ) as batches:
        found = evaluator.evaluate_with_rows(batches)
    if predictions is not None:
        if skipped:
            lacks = f"the file holds all {num_rows} rows, but {len(skipped)} cannot be used, the first: {skipped[0]}"
            raise UserError(
                f"--predictions: {lacks}; repair such rows (eve data check lists them), or leave it out"
            )
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, evaluator.prediction_file(found.examples))
    numbers = found.numbers | evaluator.data_baselines(found.examples) | num_skipped(skipped)
    data = fingerprint.short(fingerprint.of_sources(enumerate(sources)))
    found = dataclasses.replace(found, numbers=numbers, notes=dataset.notes(), data=data)
    if ablations:
        numbers.update(
            ablated_metrics(evaluator, dataset, found, run.device, skip_invalid=skip_invalid)
        )
    return found


def with_settings(task: AnyTask, settings: TaskConfig) -> AnyTask:
    """Return a twin of a task with the same weights and another section."""
    twin = copy.copy(task)
    twin.settings = settings
    return twin


def ablated_metrics(
    evaluator: Evaluator[Any],
    rows: RowDataset,
    whole: Evaluated,
    device: torch.device,
    *,
    skip_invalid: bool,
) -> dict[str, float]:
    """Return the main metrics with a part of each row taken away.

    They are named NAME_noise, and so on for all `Evaluator.ablations`. The metrics of whole rows get their differences from
    these.
    """
    numbers: dict[str, float] = {}
    main, score_name = (
        evaluator.main_metric or "",
        evaluator.score_name or evaluator.main_metric or "",
    )
    for how in evaluator.ablations:
        loader = eval_loader(AblatedRows(rows, how), rank=0, world=1)
        with evaluation_batches(
            evaluator.task, loader, device, torch.float32, [] if skip_invalid else None
        ) as batches:
            found = evaluator.evaluate_with_rows(batches)
        for name, value in found.numbers.items():
            if (stem := name.partition("/")[0]) in (main, score_name):
                numbers[f"{stem}_{how}{name[len(stem) :]}"] = value
        ours, theirs = whole.row_scores, found.row_scores
        if ours and ours.keys() == theirs.keys() and score_name in whole.numbers:
            gain_R = np.array([ours[row] - theirs[row] for row in ours]) / len(ours)
            intervals.with_difference(
                whole.numbers[score_name],
                f"{score_name}_{how}",
                gain_R,
                [*map(intervals.group_of, ours)],
            )
    return numbers
