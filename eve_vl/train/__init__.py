"""Training: the interface of tasks and evaluators to the training loop.

A task is an nn.Module with `forward(batch) → StepOutput`. Optional members: `before_step(micro_batches) → micro_batches`, with
counts over all micro-batches of a step; `after_step(progress)`, called after each update with the share of steps done;
`memory`, a dict of the tensors that `after_step` changes, saved in checkpoints; `find_unused_parameters`, passed to DDP; and
`passes_vary`, whether processes may run the blocks a different number of times in a step, which excludes train.layout shard. A
batch has `to(device)`, `where` (the names of its rows) and `skipped` (the errors of unusable rows).
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eve_vl.train.processes import autocast, gather_objects, world_size
from eve_vl.utils.errors import SharedError, UserError


@dataclass(kw_only=True, slots=True)
class StepOutput:
    """Result of one forward pass of a task."""

    loss: Tensor
    """Scalar to minimise."""
    terms: dict[str, Tensor]
    """Scalars to log, without a gradient."""


class Evaluator(Protocol):
    """The metrics of a task, for validation."""

    main_metric: str | None
    """The metric that may choose earlier weights, higher is better; None: the last weights count."""
    main_loss: str | None
    """Without a main metric, the loss that early stopping watches, lower is better."""

    def validate(self, loader: Iterable[Any]) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics over the batches of all processes, and a score for each row.

        The mean score is the main metric or stands for it; without scores the highest metric counts.
        """
        ...

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Return sentences on how to read metrics."""
        ...

    def comparison(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence that compares metrics with their baselines; may be empty."""
        ...


class StoppedError(SharedError):
    """A signal stopped the run after a checkpoint."""

    code: int
    """Exit status of the shell."""


def num_skipped(skipped: list[Any] | None) -> dict[str, float]:
    """Return the number of rows that all processes skipped in evaluation.

    Empty without any.
    """
    num = sum(map(len, gather_objects(skipped))) if skipped is not None else 0
    return {"num_skipped": num} if num else {}


@contextlib.contextmanager
def evaluation_batches(
    task: nn.Module,
    loader: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype,
    skipped: list[Any] | None = None,
) -> Iterator[Iterator[Any]]:
    """Yield the batches of a loader on the device, the task in evaluation mode.

    skipped: list that takes the errors of unusable rows. None: the first raises UserError, because numbers of part of a set
    compare with nothing.
    """
    was_training = task.training
    task.eval()

    def batches() -> Iterator[Any]:
        num = 0
        for batch in loader:
            if skipped is not None:
                skipped.extend(batch.skipped)
            elif batch.skipped:
                raise unusable(batch.skipped[0])
            if batch.where:
                num += 1
                yield batch.to(device)
        if skipped and not num and world_size() == 1:
            raise UserError(f"no row to evaluate on can be used; the last: {skipped[-1]}")

    try:
        with autocast(device, dtype):
            yield batches()
    finally:
        task.train(was_training)


def unusable(error: UserError) -> UserError:
    """Return the error of a row that evaluation may not skip."""
    flags = "--skip-invalid in eve evaluate, --data.skip-invalid-val in training"
    fix = f"repair such rows (eve data check lists them) or leave them out: {flags}"
    return UserError(f"a row to evaluate on cannot be used, {error}; {fix}")
