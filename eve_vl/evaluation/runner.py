"""Evaluation of a loaded run on any data: metrics, baselines, ablations, prediction files, and rows it was trained on."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from eve_vl.config import HELD_OUT, ClassificationConfig, Config, config_from_dict, generated
from eve_vl.data.dataset import RowDataset, SampleSet, eval_rows, row_keys
from eve_vl.data.kinds.labels import LabeledRows
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.ablations import AblatedRows
from eve_vl.evaluation.evaluator import Evaluated, Evaluator, evaluator_of, with_settings
from eve_vl.evaluation.zero_shot import BUILT_IN, By, ZeroShot, check_classes, read_prompts
from eve_vl.metrics import intervals
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Task
from eve_vl.train.checkpoint import chosen_checkpoint
from eve_vl.train.trainer import evaluation_batches, num_skipped
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import read_json

NUM_KNOWN, NUM_LOOKED_AT = 50_000, 500  # training rows, and rows of each source, that `leaks` compares


class Run(Protocol):
    """A loaded run (`run.loading.LoadedRun`)."""

    config: Config
    tokenizer: Tokenizer
    task: Task[Any]

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        ...


def evaluate_rows(
    run: Run, num_samples: int, sources: Sequence[Source[Any]] | None = None, **how: Any
) -> tuple[dict[str, float], Mapping[str, float]]:
    """Return the metrics and the row scores of `evaluated`; those of two runs suit `intervals.paired`. how: its options."""
    found = evaluated(run, num_samples, sources, **how)
    return found.numbers, found.row_scores


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
    """Return the metrics of a run on sources, by default its own validation sources, with the rows and their scores.

    Computed in float32, so that no metric depends on the batch size; deterministic. Means know their n and interval
    (`MeasuredValue`). Baselines that need the run's training data are added if it can be read.

    flags: values of the run's task section to evaluate with instead, such as `rerank`. predictions: where to write the file
    that the official server takes. skip_invalid: leave out unusable rows and count them as `num_skipped`; otherwise they raise
    UserError. ablations: also evaluate without image or text (`Evaluator.ablations`), each as long as the evaluation itself.
    """
    flags = flags or {}
    data = dataclasses.replace(run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid)
    evaluator_of(run.task).check_heads(flags)
    settings = dataclasses.replace(run.config.task, **flags)
    if problems := settings.validate():
        raise UserError(f"{', '.join(f'--{name}' for name in flags).replace('_', '-')}: {'; '.join(problems)}")
    config, task = dataclasses.replace(run.config, data=data, task=settings), with_settings(run.task, settings)
    evaluator = evaluator_of(task, run.tokenizer)
    if sources is None:
        sources = open_train_and_val(config, task.dataset.kind_of(config))[1]
    num_rows = sum(map(len, sources))
    if predictions is not None and not evaluator.has_prediction_file:
        those = "those that answer, verify, compare or classify have one; --json FILE writes the numbers"
        raise UserError(f"--predictions: a {settings.name} run has no prediction file, {those}")
    if predictions is not None and num_samples < num_rows:
        raise UserError(f"--predictions: the file holds all {num_rows} rows, but --samples is {num_samples}; leave it out")
    dataset = evaluator.dataset(sources, config, run.tokenizer)
    evaluator.check_dataset(flags, dataset)
    loader = eval_loader(dataset, rank=0, world=1)
    skipped = [] if skip_invalid else None
    with evaluation_batches(task, loader, run.device, torch.float32, skipped) as batches:
        found = evaluator.evaluate_with_rows(batches)
    if predictions is not None:
        if skipped:
            lacks = f"the file holds all {num_rows} rows, but {len(skipped)} cannot be used, the first: {skipped[0]}"
            raise UserError(f"--predictions: {lacks}; repair such rows (eve data check lists them), or leave it out")
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, evaluator.prediction_file(found.examples))
    numbers = found.numbers | evaluator.data_baselines(found.examples) | num_skipped(skipped)
    found = dataclasses.replace(found, numbers=numbers, notes=dataset.notes())
    if ablations and evaluator.ablations:
        ablated = ablated_metrics(evaluator, dataset, found, run.device, skip_invalid=skip_invalid)
        found = dataclasses.replace(found, numbers=found.numbers | ablated)
    return found


def ablated_metrics(
    evaluator: Evaluator[Any], rows: RowDataset, whole: Evaluated, device: torch.device, *, skip_invalid: bool
) -> dict[str, float]:
    """Return the main metrics with a part of each row taken away, as NAME_noise, and so on for all `Evaluator.ablations`.

    The metrics of whole rows get their differences from these.
    """
    numbers: dict[str, float] = {}
    main, score_name = evaluator.main_metric or "", evaluator.score_name or evaluator.main_metric or ""
    for how in evaluator.ablations:
        loader = eval_loader(AblatedRows(rows, how), rank=0, world=1)
        with evaluation_batches(evaluator.task, loader, device, torch.float32, [] if skip_invalid else None) as batches:
            found = evaluator.evaluate_with_rows(batches)
        for name, value in found.numbers.items():
            if (stem := name.partition("/")[0]) in (main, score_name):
                numbers[f"{stem}_{how}{name[len(stem) :]}"] = value
        ours, theirs = whole.row_scores, found.row_scores
        if ours and ours.keys() == theirs.keys() and score_name in whole.numbers:
            gain_R = np.array([ours[row] - theirs[row] for row in ours]) / len(ours)
            intervals.over(whole.numbers[score_name], f"{score_name}_{how}", gain_R, [*map(intervals.group_of, ours)])
    return numbers


def zero_shot(
    run: Run,
    prompts: str | Path | Mapping[str, Any],
    sources: Sequence[Source[Any]],
    num_samples: int,
    *,
    by: By = "mean",
    skip_invalid: bool = False,
    data: str = "the data",
) -> Evaluated:
    """Return the metrics of zero-shot classification of labelled images, next to chance, class priors and images of noise.

    In float32; deterministic. prompts: see `read_prompts`; of built-in prompts only the classes of the data are used. data:
    name of the sources in messages. Rows without labels are left out and counted. The classes, and whether a row may have
    several, follow from all rows, whatever num_samples is. Raises UserError, also if prompts and data differ in classes.
    """
    texts, where = read_prompts(prompts)
    scorer = ZeroShot(run.task, run.tokenizer, texts, by)  # before all rows are read: it refuses runs that cannot do this
    kinds = {row.labels for source in sources for _, row in usable_rows(source)}
    classes, several = {name for given in kinds for name in given}, any(len(given) > 1 for given in kinds)
    if not classes:
        raise UserError(f"{data}: no row has a label to compare with")
    if str(prompts) in BUILT_IN:  # nobody in phantoms:test_novel is healthy
        texts = {name: given for name, given in texts.items() if name in classes}
    check_classes(texts, classes, where, data)
    scorer = ZeroShot(run.task, run.tokenizer, texts, by) if len(texts) < len(scorer.classes) else scorer
    values = dataclasses.replace(run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid)
    config = dataclasses.replace(run.config, data=values, task=ClassificationConfig())
    rows, skipped = LabeledRows(sources, config, run.tokenizer, training=False), [] if skip_invalid else None
    score_RC, labels, num_unlabelled = _scored(run, scorer, rows, skipped)
    if not labels:
        raise UserError(f"{data}: none of the {num_unlabelled} rows looked at has a label to compare with; raise --samples")
    of_noise_RC, *_ = _scored(run, scorer, AblatedRows(rows, "noise"), [] if skip_invalid else None)
    given = [*labels.values()]
    numbers, of_noise = (scorer.metrics(each_RC, given, several=several) for each_RC in (score_RC, of_noise_RC))
    right_R, of_noise_R = (scorer.right(each_RC, given) for each_RC in (score_RC, of_noise_RC))
    intervals.over(numbers.get("acc", 0.0), "acc_noise", (right_R - of_noise_R) / len(given))
    numbers |= {f"{name}_noise": of_noise[name] for name in ("acc", "balanced_acc", "mean_ap") if name in of_noise}
    numbers |= ({"num_unlabelled": num_unlabelled} if num_unlabelled else {}) | num_skipped(skipped)
    return Evaluated(numbers=numbers, row_scores=dict(zip(labels, right_R.tolist(), strict=True)))


def _scored(
    run: Run, scorer: ZeroShot, rows: SampleSet, skipped: list[UserError] | None
) -> tuple[np.ndarray, dict[str, tuple[str, ...]], int]:
    """Return the scores of labelled rows (R, C), their labels by name, and the number of rows without labels."""
    scores, labels, num_rows = [], {}, 0
    with evaluation_batches(run.task, eval_loader(rows, rank=0, world=1), run.device, torch.float32, skipped) as batches:
        for batch in batches:
            known = [row for row, given in enumerate(batch.labels) if given]
            scores.append(scorer.scores(batch.images_BCHW)[known])
            labels |= {batch.names[row]: batch.labels[row] for row in known}
            num_rows += len(batch.labels)
    return np.concatenate(scores), labels, num_rows - len(labels)


def warnings(run: Run, numbers: Mapping[str, float], sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return sentences on how to read a run's metrics on sources, by default its own validation sources.

    They say whether the run was trained or chosen on such rows, and all that the task's evaluator warns of.
    """
    return [*leaks(run, sources), *evaluator_of(run.task).warnings(numbers)]


def leaks(run: Run, sources: Sequence[Source[Any]] | None = None) -> list[str]:
    """Return a sentence for each known set of rows that sources, by default the run's validation sources, share.

    Known are the training rows of the run and of the runs that it started from (--init), and, for other sources, the
    rows that its weights were chosen on. Data that cannot be read are left out.
    """
    data, found = run.config.data, []
    with contextlib.suppress(UserError):
        train, val = open_train_and_val(run.config, run.task.dataset.kind_of(run.config))
        known: dict[str, tuple[Sequence[str], Sequence[Source[Any]]]] = {}
        if sources is not None or data.val != (HELD_OUT,):  # else both sides are disjoint by construction
            known["this run was trained on"] = (data.train, train)
        if sources is not None and data.val != (HELD_OUT,) and evaluator_of(run.task).main_metric:
            known["validation has chosen these weights by, so that they say too much"] = (data.val, val)
        for folder, config in _ancestors(run.config):
            with contextlib.suppress(UserError):
                rows, _ = open_train_and_val(config, task_class(type(config.task)).dataset.kind_of(config))
                known[f"{folder}, which this run started from, was trained on"] = (config.data.train, rows)
        for what, (names, rows) in known.items():
            num_seen, num_looked_at = _seen(names, rows, val if sources is None else sources)
            found += [f"of {num_looked_at:,} rows looked at, {num_seen:,} show what {what}"] if num_seen else []
    return found


def _ancestors(config: Config) -> Iterator[tuple[Path, Config]]:
    """Yield folder and config of the runs whose weights a run started from, as far as they can be read."""
    with contextlib.suppress(UserError):
        while config.init is not None and not config.scratch:
            folder = config.init
            path = chosen_checkpoint(folder) / "config.json"
            config = config_from_dict(read_json(path, dict), str(path))
            yield folder, config


def _seen(names: Sequence[str], known: Sequence[Source[Any]], sources: Sequence[Source[Any]]) -> tuple[int, int]:
    """Return how many rows of sources are also in known sources, and how many were compared.

    Rows are equal if they share an image (its file, or its bytes in tables) or, without images, a text. Of large sources only a
    part is compared, so that it takes seconds.
    """
    files = [source for name, source in zip(names, known, strict=True) if not generated(name)]
    keys = {key for row in eval_rows(files, NUM_KNOWN) for key in row_keys(row)}
    rows = [(source, row) for source in sources for row in eval_rows([source], NUM_LOOKED_AT)]
    # scenes of one split are equal
    return sum(source in known or not keys.isdisjoint(row_keys(row)) for source, row in rows), len(rows)
