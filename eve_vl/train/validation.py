"""Validation of a task in training, by all processes."""

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from eve_vl.train import processes
from eve_vl.train.evaluation_batches import (
    Evaluator,
    evaluation_batches,
    num_skipped,
    unusable_row_error,
)
from eve_vl.train.shard import unsharded
from eve_vl.utils.console import progress
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.frozen import Frozen


class Validation(Frozen):
    """The numbers of an evaluator, and a score for each row."""

    numbers: dict[str, float]
    rows: Mapping[str, float]


def validate(
    task: nn.Module,
    evaluator: Evaluator,
    loader: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype,
    *,
    skip_invalid: bool,
) -> Validation:
    """Evaluate a task on a loader.

    Raises UserError in all processes for an unusable row, unless skip_invalid.
    """
    # an error in one process only would leave the others waiting
    has_to_go_on = skip_invalid or processes.world_size() > 1
    skipped: list[Any] | None = [] if has_to_go_on else None
    errors: list[UserError] = []
    total = operator.length_hint(loader) or None
    readable = progress(_until_error(loader, errors), "validating", total)
    with (
        unsharded(task),
        evaluation_batches(task, readable, device, dtype, skipped) as batches,
    ):
        numbers, rows = evaluator.validate(batches)
    if skipped and not skip_invalid:
        errors.extend(unusable_row_error(error) for error in skipped)
    messages = [str(error) for error in errors]
    all_messages = list(itertools.chain.from_iterable(processes.gather_objects(messages)))
    if all_messages:
        raise SharedError(all_messages[0])
    return Validation(numbers=numbers | num_skipped(skipped), rows=rows)


def _until_error(loader: Iterable[Any], errors: list[UserError]) -> Iterator[Any]:
    """Yield batches; list a UserError if other processes wait in sums over all."""
    try:
        yield from loader
    except UserError as error:
        if processes.world_size() == 1:
            raise
        errors.append(error)
