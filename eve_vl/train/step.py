"""The interface of tasks to the training loop.

A task is an nn.Module with `forward(batch) → StepOutput`. Optional members:
`before_step(micro_batches) → micro_batches`, with counts over all micro-batches of a step;
`after_step(progress)`, called after each update with the share of steps done; `memory`, a dict of
the tensors that `after_step` changes, saved in checkpoints; `find_unused_parameters`, passed to
DDP; and `passes_vary`, whether processes may run the blocks a different number of times in a step,
which excludes train.layout shard. A batch has `to(device)`, `where` (the names of its rows) and
`skipped` (the errors of unusable rows).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(kw_only=True, slots=True)
class StepOutput:
    """Result of one forward pass of a task."""

    loss: Tensor
    """Scalar to minimise."""
    terms: dict[str, Tensor]
    """Scalars to log, without a gradient."""
