"""Evaluation of a loaded run on any data.

Metrics, baselines, ablations and prediction files.
"""

import copy
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import Config, TaskConfig
from eve_vl.data import fingerprint
from eve_vl.data.batches import Sample
from eve_vl.data.loader import eval_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.random_streams import NOISE, generator
from eve_vl.data.records import Place, Source, usable_rows
from eve_vl.data.row_dataset import EVAL_SEED, RowDataset, eval_positions
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.sample_set import Position, SampleSet
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluator import AnyTask, Evaluated, Evaluator, How, evaluator_of
from eve_vl.metrics import intervals
from eve_vl.tasks.task import Task
from eve_vl.train import evaluation_batches, num_skipped
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import write_file


class Run(Protocol):
    """A loaded run (`run.loading.LoadedRun`)."""

    config: Config
    tokenizer: Tokenizer
    task: Task[Any]

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        ...


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
            intervals.over(
                whole.numbers[score_name],
                f"{score_name}_{how}",
                gain_R,
                [*map(intervals.group_of, ours)],
            )
    return numbers


def eval_rows(sources: Sequence[Source[Any]], num_samples: int) -> list[Any]:
    """Return the usable rows at `eval_positions`."""
    positions = eval_positions([len(source) for source in sources], num_samples)
    rows = []
    for source_index, source in enumerate(sources):
        row_indices = [row for _, at, row in positions if at == source_index]
        rows += [row for _, row in usable_rows(source, row_indices)]
    return rows


MAX_OTHERS = 20  # tries to find a different image


class AblatedRows(SampleSet):
    """Evaluation rows of a dataset without their image, right image or text.

    `noise`: noise of equal histogram replaces the image. `wrong_image`: the image of another row replaces it. `image_only`: the
    text is empty. The other row is of the same group (such as one patient), else one with the same text (such as the same
    question), else any. Its image differs.
    """

    def __init__(self, rows: RowDataset, how: How):
        """Read the rows' groups and texts for `wrong_image`, but no images."""
        super().__init__(rows.config, rows.tokenizer)
        self.rows, self.how = rows, how
        self.positions: list[Position] = [
            position for batch in rows.eval_batches(1, 0, 1) for position in batch
        ]
        self.place = {position: place for place, position in enumerate(self.positions)}
        self.alike = [self._alike(number) for number in (0, 1)] if how == "wrong_image" else []

    def _alike(self, number: int) -> dict[Position, list[int]]:
        """Return the places of rows with the same group (0) or text (1), by row.

        Rows without one are left out.
        """
        members: dict[tuple[str, ...], list[int]] = defaultdict(list)
        keys: dict[Position, tuple[str, ...]] = {}
        for at, source in enumerate(self.rows.sources):
            for index, row in usable_rows(
                source, [row for _, each, row in self.positions if each == at]
            ):
                if any(key := (getattr(row, "group", ""),) if number == 0 else row.texts):
                    keys[0, at, index] = key
                    members[key].append(self.place[0, at, index])
        return {position: members[key] for position, key in keys.items()}

    def eval_batches(self, batch_size: int, rank: int, world: int) -> list[list[Position]]:
        """Return the batches of the rows."""
        return self.rows.eval_batches(batch_size, rank, world)

    def places(self, position: Position) -> list[Place]:
        """Return its row and, for a wrong image, the first other one."""
        others = itertools.islice(self._others(position), self.how == "wrong_image")
        return [place for each in (position, *others) for place in self.rows.places(each)]

    def __getitem__(self, position: Position) -> Sample:
        sample = self.rows[position]
        if sample.skipped:
            return sample
        if self.how == "image_only":
            sample.ids_T = self.tokens("")
        elif self.how == "noise":
            sample.image = noise_like(sample.image, sample.name)
        else:
            others = (self.rows[other] for other in self._others(position))
            images = (other.image for other in others if not other.skipped)
            sample.image = next(
                (image for image in images if not torch.equal(image, sample.image)), sample.image
            )
        return sample

    def _others(self, position: Position) -> Iterator[Position]:
        """Yield other rows whose image may replace a row's own."""
        lists: list[Sequence[int]] = [alike.get(position, ()) for alike in self.alike]
        for places in (*lists, range(len(self.positions))):
            here = places.index(self.place[position]) if places else 0
            for step in range(min(MAX_OTHERS, len(places) - 1)):
                yield self.positions[places[(here + len(places) // 2 + step) % len(places)]]


def noise_like(image_CHW: Tensor, name: str) -> Tensor:
    """Return the pixels of an image in random order, which depends only on a name."""
    rng = generator(EVAL_SEED, NOISE, hash_of(name.encode()) % 2**63)
    order = torch.from_numpy(rng.permutation(image_CHW[0].numel()).astype(np.int64)).to(
        image_CHW.device
    )
    return image_CHW.flatten(1)[:, order].view_as(image_CHW)
