"""A run's numbers of record on any data: metrics, baselines beside them, and the files that official servers take."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.config import HELD_OUT, ClassificationConfig, generated
from eve_vl.data.dataset import RowDataset, SampleSet, eval_rows, row_keys
from eve_vl.data.kinds.labels import LabeledRows
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.prompts import BUILT_IN, check_classes, read_prompts
from eve_vl.data.records import Source, usable_rows
from eve_vl.evaluation.ablations import BlindRows
from eve_vl.evaluation.zero_shot import By, ZeroShot
from eve_vl.metrics import intervals
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.task import Evaluated, Task
from eve_vl.train.trainer import evaluation_batches, num_skipped
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.errors import UserError

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
    skip_invalid: bool = False,
    blind: bool = True,
) -> Evaluated:
    """Return the task's numbers for a loaded run on other sources, or on its own validation sources, with the rows that they
    come from and how well each is done, by its name (see `Task.row_scores`); deterministic.

    In float32, so that no number depends on the size of a batch, with the task's baselines, if the run's training data can be
    read. Means know their n and interval (`Estimate`). flags: values of the run's task section to evaluate with instead, as
    `rerank`. predictions: where to write the file that the official server takes. skip_invalid: leave out rows that cannot be
    used and count them as `num_skipped`, where else UserError is raised. blind: also measure what is left without image or
    text (`Task.blinds`), which takes as long as the evaluation itself each time. Raises UserError.
    """
    flags = flags or {}
    data = dataclasses.replace(run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid)
    run.task.check_heads(flags)
    settings = dataclasses.replace(run.config.task, **flags)
    if problems := settings.validate():
        raise UserError(f"{', '.join(f'--{name}' for name in flags).replace('_', '-')}: {'; '.join(problems)}")
    config, task = dataclasses.replace(run.config, data=data, task=settings), run.task.with_settings(settings)
    if sources is None:
        sources = open_train_and_val(config, task.kind(config))[1]
    num_rows = sum(map(len, sources))
    if predictions is not None and not task.has_prediction_file:
        those = "those that answer, judge, compare or classify have one; --json FILE writes the numbers"
        raise UserError(f"--predictions: a {settings.name} run has no prediction file, {those}")
    if predictions is not None and num_samples < num_rows:
        raise UserError(f"--predictions: the file holds all {num_rows} rows, but --samples is {num_samples}; leave it out")
    dataset = task.eval_dataset(sources, config, run.tokenizer)
    task.check_flags(flags, dataset)
    loader = eval_loader(dataset, rank=0, world=1)
    skipped = [] if skip_invalid else None
    with evaluation_batches(task, loader, run.device, torch.float32, skipped) as batches:
        found = task.evaluated(batches)
    if predictions is not None:
        if skipped:
            lacks = f"the file holds all {num_rows} rows, but {len(skipped)} cannot be used, the first: {skipped[0]}"
            raise UserError(f"--predictions: {lacks}; repair such rows (eve data check lists them), or leave it out")
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, task.prediction_file(found.examples))
    numbers = found.numbers | task.baselines(found.examples) | num_skipped(skipped)
    found = dataclasses.replace(found, numbers=numbers, notes=dataset.notes())
    if blind and task.blinds:
        of_blind = blind_numbers(run, task, dataset, found, skip_invalid=skip_invalid)
        found = dataclasses.replace(found, numbers=found.numbers | of_blind)
    return found


def blind_numbers(
    run: LoadedRun, task: Task[Any], rows: RowDataset, seen: Evaluated, *, skip_invalid: bool
) -> dict[str, float]:
    """Return what the task's main numbers come to if a part of each row is taken away (`Task.blinds`), as NAME_noise; what was
    found on whole rows gets to know its differences from these."""
    numbers: dict[str, float] = {}
    main, scored = task.main_metric or "", task.scored or task.main_metric or ""
    for how in task.blinds:
        loader = eval_loader(BlindRows(rows, how), rank=0, world=1)
        with evaluation_batches(task, loader, run.device, torch.float32, [] if skip_invalid else None) as batches:
            found = task.evaluated(batches)
        for name, value in found.numbers.items():
            if (stem := name.partition("/")[0]) in (main, scored):
                numbers[f"{stem}_{how}{name[len(stem) :]}"] = value
        ours, theirs = seen.row_scores, found.row_scores
        if ours and ours.keys() == theirs.keys() and scored in seen.numbers:
            gain_R = np.array([ours[row] - theirs[row] for row in ours]) / len(ours)
            intervals.over(seen.numbers[scored], f"{scored}_{how}", gain_R, [*map(intervals.group_of, ours)])
    return numbers


def zero_shot(
    run: LoadedRun,
    prompts: str | Path | Mapping[str, Any],
    sources: Sequence[Source[Any]],
    num_samples: int,
    *,
    by: By = "mean",
    skip_invalid: bool = False,
    data: str = "the data",
) -> Evaluated:
    """Return the numbers of classification by prompts (`read_prompts`) of labelled images, in float32, beside chance, the
    prior of each class and images of noise; deterministic. data: what to call the sources. Rows without labels are left out
    and counted. All rows, whatever num_samples, tell the classes and whether a row may have several. Raises UserError, also if
    prompts and data do not have the same classes; of built-in prompts those are used that the data has."""
    texts, where = read_prompts(prompts)
    scorer = ZeroShot(run.predictor, texts, by)  # which a run that cannot is told before all rows are read
    kinds = {row.labels for source in sources for _, row in usable_rows(source)}
    classes, several = {name for given in kinds for name in given}, any(len(given) > 1 for given in kinds)
    if not classes:
        raise UserError(f"{data}: no row has a label to compare with")
    if str(prompts) in BUILT_IN:  # nobody in phantoms:test_novel is healthy
        texts = {name: given for name, given in texts.items() if name in classes}
    check_classes(texts, classes, where, data)
    scorer = ZeroShot(run.predictor, texts, by) if len(texts) < len(scorer.classes) else scorer
    values = dataclasses.replace(run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid)
    config = dataclasses.replace(run.config, data=values, task=ClassificationConfig())
    rows, skipped = LabeledRows(sources, config, run.tokenizer, training=False), [] if skip_invalid else None
    score_RC, labels, num_unlabelled = _scored(run, scorer, rows, skipped)
    if not labels:
        raise UserError(f"{data}: none of the {num_unlabelled} rows looked at has a label to compare with; raise --samples")
    of_noise_RC, *_ = _scored(run, scorer, BlindRows(rows, "noise"), [] if skip_invalid else None)
    given = [*labels.values()]
    numbers, of_noise = (scorer.numbers(each_RC, given, several=several) for each_RC in (score_RC, of_noise_RC))
    right_R, of_noise_R = (scorer.right(each_RC, given) for each_RC in (score_RC, of_noise_RC))
    intervals.over(numbers.get("acc", 0.0), "acc_noise", (right_R - of_noise_R) / len(given))
    numbers |= {f"{name}_noise": of_noise[name] for name in ("acc", "balanced_acc", "mean_ap") if name in of_noise}
    numbers |= ({"num_unlabelled": num_unlabelled} if num_unlabelled else {}) | num_skipped(skipped)
    return Evaluated(numbers=numbers, row_scores=dict(zip(labels, right_R.tolist(), strict=True)))


def _scored(
    run: LoadedRun, scorer: ZeroShot, rows: SampleSet, skipped: list[UserError] | None
) -> tuple[np.ndarray, dict[str, tuple[str, ...]], int]:
    """Return the scores of rows that have labels (R, C), their labels by name, and how many rows have none."""
    scores, labels, num_rows = [], {}, 0
    with evaluation_batches(run.task, eval_loader(rows, rank=0, world=1), run.device, torch.float32, skipped) as batches:
        for batch in batches:
            known = [row for row, given in enumerate(batch.labels) if given]
            scores.append(scorer.scores(batch.images_BCHW)[known])
            labels |= {batch.names[row]: batch.labels[row] for row in known}
            num_rows += len(batch.labels)
    return np.concatenate(scores), labels, num_rows - len(labels)


def remarks(run: LoadedRun, numbers: Mapping[str, float], sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return what people should know about a run's numbers on sources, by default its own validation sources, a sentence each:
    whether it was trained or chosen on such rows, and the task's remarks."""
    return [*leaks(run, sources), *run.task.remarks(numbers)]


def leaks(run: LoadedRun, sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return a sentence if sources, by default the run's own validation sources, show what it was trained on, and one if other
    sources show what its weights were chosen on; nothing where that is out of reach."""
    data, found = run.config.data, []
    with contextlib.suppress(UserError):
        if sources is not None or data.val != (HELD_OUT,):
            train, val = open_train_and_val(run.config, run.task.kind(run.config))
            known = {"this run was trained on": (data.train, train)}
            if sources is not None and data.val != (HELD_OUT,) and run.task.main_metric:
                known["validation has chosen these weights by, so that they say too much"] = (data.val, val)
            for what, (names, rows) in known.items():
                num_seen, num_looked_at = _seen(names, rows, val if sources is None else sources)
                found += [f"of {num_looked_at:,} rows looked at, {num_seen:,} show what {what}"] if num_seen else []
    return found


def _seen(names: Sequence[str], known: Sequence[Source[Any]], sources: Sequence[Source[Any]]) -> tuple[int, int]:
    """Return how many rows show an image of known sources (by its file, of tables by its bytes) or, without images, have a
    text of these, and how many were looked at: a part of both sides where they are large, so that it takes seconds."""
    files = [source for name, source in zip(names, known, strict=True) if not generated(name)]
    keys = {key for row in eval_rows(files, NUM_KNOWN) for key in row_keys(row)}
    rows = [(source, row) for source in sources for row in eval_rows([source], NUM_LOOKED_AT)]
    # scenes of one split are equal
    return sum(source in known or not keys.isdisjoint(row_keys(row)) for source, row in rows), len(rows)
