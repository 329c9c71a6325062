"""A run's numbers of record on any data: metrics, baselines beside them, and the files that official servers take."""

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.config import Config, RetrievalConfig, TaskConfig
from eve_vl.data.downstream import SearchSet
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.records import Source
from eve_vl.data.scenes import SceneQuestions
from eve_vl.errors import BadSampleError, UserError
from eve_vl.files import write_file
from eve_vl.metrics import vqa as vqa_metrics
from eve_vl.run import EVAL_BATCH, LoadedRun, eval_dataset
from eve_vl.tasks import TASKS
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2, Judged
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.vqa import VQA, Answered
from eve_vl.train.trainer import evaluation_batches

GENERATED_ROWS = 10_000  # of a generated source, whose rows cost time, the blind baseline looks at so many, spread evenly


def evaluate_run(
    run: LoadedRun,
    num_samples: int,
    sources: Sequence[Source[Any]] | None = None,
    *,
    search: Mapping[str, int | bool] | None = None,
    predictions: Path | None = None,
) -> dict[str, float]:
    """Return the task's numbers for a loaded run on other sources, or on its own validation sources; deterministic.

    In float32, so that no number depends on the size of a batch. VQA gets the baselines `vqa_acc_blind` and
    `vqa_acc_majority` beside it, if the run's training questions can be read.
    search: for retrieval, values of the run's task section to search with instead, as `rerank`. predictions: where to write
    the file that the official server takes.
    Raises UserError.
    """
    data = dataclasses.replace(run.config.data, val_samples=num_samples)
    config = dataclasses.replace(run.config, data=data, task=_searching(run.config.task, search or {}))
    if sources is None:
        sources = open_train_and_val(config, TASKS[config.task.name].dataset.kind)[1]
    num_rows = sum(map(len, sources))
    if predictions is not None and num_samples < num_rows:
        raise UserError(f"--predictions: the server wants all {num_rows} rows, but --samples is {num_samples}; leave it out")
    dataset = eval_dataset(config, sources, run.tokenizer)
    rerank = (search or {}).get("rerank", 0)
    if isinstance(dataset, SearchSet) and rerank > dataset.num_candidates:
        raise UserError(f"--rerank {rerank}: a query has only {dataset.num_candidates} candidates; give at most that many")
    loader = eval_loader(dataset, batch_size=EVAL_BATCH, rank=0, world=1)
    device = next(run.task.parameters()).device
    if predictions is not None and not isinstance(run.task, VQA | NLVR2):
        raise UserError(f"--predictions: a {config.task.name} run has no official prediction file")
    with evaluation_batches(run.task, loader, device, torch.float32) as batches:
        if isinstance(run.task, Retrieval):
            assert isinstance(config.task, RetrievalConfig)
            return run.task.evaluate(batches, config.task.rerank)
        if isinstance(run.task, MaskedSignal):
            return run.task.evaluate(batches)
        if isinstance(run.task, VQA):
            rows = run.task.answer(batches)
            numbers = run.task.numbers(rows) | _vqa_baselines(config, rows)
            text = answers_file(rows)
        else:
            rows = run.task.judge(batches)
            numbers = run.task.numbers(rows)
            text = verdicts_file(rows)
    if predictions is not None:
        predictions.parent.mkdir(parents=True, exist_ok=True)
        write_file(predictions, text)
    return numbers


def answers_file(rows: Sequence[Answered]) -> str:
    """Return the JSON that the VQA server takes: a list of question_id and answer."""
    return json.dumps([{"question_id": row.question_id, "answer": row.answer} for row in rows], indent=0) + "\n"


def verdicts_file(rows: Sequence[Judged]) -> str:
    """Return the CSV that NLVR2's evaluation takes: identifier and True or False, no header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((row.identifier, row.verdict) for row in rows)
    return text.getvalue()


def _searching(task: TaskConfig, search: Mapping[str, int | bool]) -> TaskConfig:
    """Return a task section with other values for the search. Raises UserError if they do not fit the run."""
    if not search:
        return task
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in search)
    if not isinstance(task, RetrievalConfig):
        raise UserError(f"{flags}: for retrieval runs; this is a {task.name} run")
    changed = dataclasses.replace(task, **search)
    if problems := changed.problems():
        raise UserError(f"{flags}: {'; '.join(problems)}")
    return changed


def _vqa_baselines(config: Config, rows: Sequence[Answered]) -> dict[str, float]:
    """Return what can be had without looking at pictures; empty if training or evaluation has no answers to compare."""
    train = training_questions(config)
    if not train or not any(row.answers for row in rows):
        return {}
    answers = [row.answers for row in rows]
    return {
        "vqa_acc_blind": vqa_metrics.blind_baseline(train, [row.question for row in rows], answers),
        "vqa_acc_majority": vqa_metrics.majority_baseline((given for _, given in train), answers),
    }


def training_questions(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    """Return question and answers of a run's training rows, without held-out ones and those that have no answers.

    Empty where the training data is out of reach.
    """
    try:
        sources = open_train_and_val(config, "questions")[0]
    except UserError:
        return []
    found = []
    for source in sources:
        count = min(len(source), GENERATED_ROWS) if isinstance(source, SceneQuestions) else len(source)
        for row in np.linspace(0, len(source), count, endpoint=False).astype(int).tolist():
            with contextlib.suppress(BadSampleError):
                asked = source[row]
                if asked.answers:
                    found.append((asked.question, asked.answers))
    return found
