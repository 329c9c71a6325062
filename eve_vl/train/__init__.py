"""Training: what a task and its evaluator are to the training loop.

A task is an nn.Module with `forward(batch) → StepOutput`. Optional members: `before_step(micro_batches) → micro_batches`, with
counts over all micro-batches of a step, and `find_unused_parameters`, passed to DDP. A batch has `to(device)`, `where` (the
names of its rows) and `skipped` (the errors of unusable rows).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from eve_vl.utils.errors import SharedError


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
    """The metric that chooses the best weights, higher is better; None: the last weights count."""
    main_loss: str | None
    """Without a main metric, the loss that early stopping watches, lower is better."""

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the metrics over the batches of all processes."""
        ...

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Return sentences on how to read metrics."""
        ...

    def comparison(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence that compares metrics with their baselines; may be empty."""
        ...

    def log_samples(self, batch: Any) -> Mapping[str, Any]:
        """Return images or texts, by name, that show the model at work on a batch."""
        ...


class StoppedError(SharedError):
    """A signal stopped the run after a checkpoint."""

    code: int
    """Exit status of the shell."""
