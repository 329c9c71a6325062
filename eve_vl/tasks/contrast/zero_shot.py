"""Evaluation of zero-shot classification on labelled images.

Letters: R rows, C classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.data import fingerprint
from eve_vl.data.kinds.labels import LabeledRows
from eve_vl.data.loader import eval_loader
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.sample_set import SampleSet
from eve_vl.metrics import intervals
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.contrast.prompt_scorer import By, PromptScorer
from eve_vl.tasks.contrast.prompts import Prompts, built_in_prompts, read_prompts
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.run import Run
from eve_vl.train.evaluation_batches import evaluation_batches, num_skipped
from eve_vl.utils.errors import UserError

BASELINES = (
    Baseline(
        "acc",
        "row",
        "acc_majority",
        "always giving the most frequent class",
        further_baselines={"acc_noise": "looking at noise"},
    ),
    Baseline(
        "mean_ap",
        "row",
        "mean_ap_chance",
        "a constant score",
        further_baselines={"mean_ap_noise": "looking at noise"},
    ),
)


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
    """Return the metrics of zero-shot classification of labelled images.

    They stand next to chance, class priors and images of noise. In float32; deterministic. prompts:
    see `read_prompts`; of built-in prompts only the classes of the data are used. data: name of the
    sources in messages. Rows without labels are left out and counted. The classes, and whether a
    row may have several, follow from all rows, for any num_samples. Raises UserError, also if
    prompts and data differ in classes.
    """
    label_sets = {row.labels for source in sources for _, row in usable_rows(source)}
    several = any(len(labels) > 1 for labels in label_sets)
    classes = {name for labels in label_sets for name in labels}
    scorer = PromptScorer(run.task, run.tokenizer, prompts_of_classes(prompts, classes, data), by)
    rows = labeled_rows(run, sources, num_samples, skip_invalid=skip_invalid)
    skipped = [] if skip_invalid else None
    scored = score_rows(run, scorer, rows, skipped)
    if not scored.labels:
        raise UserError(
            f"{data}: none of the {scored.num_unlabelled} rows read has a label to compare with; "
            "raise --samples"
        )
    noise = AblatedRows(rows, "noise")
    scored_noise = score_rows(run, scorer, noise, [] if skip_invalid else None)

    labels = list(scored.labels.values())
    numbers, right_R = scorer.metrics(scored.score_RC, labels, several=several)
    noise_numbers, noise_right_R = scorer.metrics(scored_noise.score_RC, labels, several=several)
    gain_R = (right_R - noise_right_R) / len(labels)
    intervals.with_difference(numbers.get("acc", 0.0), "acc_noise", gain_R)
    for name in ("acc", "balanced_acc", "mean_ap"):
        if name in noise_numbers:
            numbers[f"{name}_noise"] = noise_numbers[name]
    if scored.num_unlabelled:
        numbers["num_unlabelled"] = scored.num_unlabelled
    return Evaluated(
        numbers=numbers | num_skipped(skipped),
        row_scores=dict(zip(scored.labels, right_R.tolist(), strict=True)),
        data=fingerprint.short(fingerprint.of_sources(enumerate(sources))),
    )


def prompts_of_classes(
    source: str | Path | Mapping[str, Any], classes: set[str], data: str
) -> Prompts:
    """Return prompts of exactly the classes of the data. Raises UserError."""
    prompts, where = read_prompts(source)
    if not classes:
        raise UserError(f"{data}: no row has a label to compare with")
    if built_in_prompts(source) is not None:  # nobody in phantoms:test_novel is healthy
        prompts = {name: texts for name, texts in prompts.items() if name in classes}
    different = sorted(prompts.keys() ^ classes)
    if different:
        has, lacks = (where, data) if different[0] in prompts else (data, where)
        raise UserError(
            f"{has} has the class {different[0]!r}, {lacks} does not; "
            "give prompts of the same classes"
        )
    return prompts


def labeled_rows(
    run: Run, sources: Sequence[Source[Any]], num_samples: int, *, skip_invalid: bool
) -> LabeledRows:
    """Return the rows to classify, as the run sees images."""
    data = dataclasses.replace(
        run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid
    )
    config = dataclasses.replace(run.config, data=data, task=ClassificationConfig())
    return LabeledRows(sources, config, run.tokenizer, training=False)


@dataclasses.dataclass
class ScoredRows:
    """The scores of labelled rows."""

    score_RC: np.ndarray
    labels: dict[str, tuple[str, ...]]
    """By name of the row."""
    num_unlabelled: int


def score_rows(
    run: Run, scorer: PromptScorer, rows: SampleSet, skipped: list[UserError] | None
) -> ScoredRows:
    """Return the scores of labelled rows; the others are counted."""
    loader = eval_loader(rows, rank=0, world=1)
    scores = []
    labels = {}
    num_rows = 0
    with evaluation_batches(run.task, loader, run.device, torch.float32, skipped) as batches:
        for batch in batches:
            labelled = [row for row, row_labels in enumerate(batch.labels) if row_labels]
            scores.append(scorer.scores(batch.images_BCHW)[labelled])
            for row in labelled:
                labels[batch.names[row]] = batch.labels[row]
            num_rows += len(batch.labels)
    return ScoredRows(np.concatenate(scores), labels, num_rows - len(labels))
