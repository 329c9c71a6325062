"""The interface of evaluators to the training loop, and the batches that they evaluate."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from eve_vl.train.devices import autocast
from eve_vl.train.processes import gather_objects, world_size
from eve_vl.utils.errors import UserError


class Evaluator(Protocol):
    """The metrics of a task, for validation."""

    main_metric: str | None
    """The metric that may choose earlier weights, higher is better; None: the last weights
    count."""
    main_loss: str | None
    """Without a main metric, the loss that early stopping watches, lower is better."""

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics over the batches of all processes, and a score for each row.

        The mean score is the main metric or stands for it; without scores the highest metric
        counts.
        """
        ...

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Return sentences on how to read metrics."""
        ...

    def comparison(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence that compares metrics with their baselines; may be empty."""
        ...


@contextlib.contextmanager
def evaluation_batches(
    task: nn.Module,
    loader: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype,
    skipped: list[Any] | None = None,
) -> Iterator[Iterator[Any]]:
    """Yield the batches of a loader on the device, the task in evaluation mode.

    skipped: list that takes the errors of unusable rows. None: the first raises UserError, because
    numbers of part of a set compare with nothing.
    """
    was_training = task.training
    task.eval()
    try:
        with autocast(device, dtype):
            yield _usable_batches(loader, device, skipped)
    finally:
        task.train(was_training)


def _usable_batches(
    loader: Iterable[Any], device: torch.device, skipped: list[Any] | None
) -> Iterator[Any]:
    num_batches = 0
    for batch in loader:
        if skipped is not None:
            skipped.extend(batch.skipped)
        elif batch.skipped:
            raise unusable_row_error(batch.skipped[0])
        if batch.where:
            num_batches += 1
            yield batch.to(device)
    if skipped and num_batches == 0 and world_size() == 1:
        raise UserError(f"no row to evaluate on can be used; the last: {skipped[-1]}")


def num_skipped(skipped: list[Any] | None) -> dict[str, float]:
    """Return the number of rows that all processes skipped in evaluation.

    Empty without any.
    """
    if skipped is None:
        return {}
    num_rows = sum(gather_objects(len(skipped)))
    return {"num_skipped": num_rows} if num_rows else {}


def unusable_row_error(error: UserError) -> UserError:
    """Return the error of a row that evaluation may not skip."""
    flags = "--skip-invalid in eve evaluate, --data.skip-invalid-val in training"
    fix = f"repair such rows (eve data check lists them) or leave them out: {flags}"
    return UserError(f"a row to evaluate on cannot be used, {error}; {fix}")
