"""The check that losses and gradients are finite before they reach the weights.

A CPU reads the values at once. Reading them on a GPU would wait for all its queued work in each
step. There the update itself does nothing if the gradient norm is not finite (`found_inf` of the
optimisers), and the host reads that a step later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.train import processes
from eve_vl.train.running_averages import restore_running_averages
from eve_vl.train.shard import gathered
from eve_vl.train.tensor_files import write_tensors
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError
from eve_vl.utils.file_io import write_file


@dataclass(kw_only=True)
class StepToCheck:
    """Losses and gradient norm of a step, and what to save if one of them is not finite."""

    step: int
    micro_batches: list[Any]
    losses: list[Tensor]
    """Of the micro-batches."""
    grad_norm: Tensor
    terms: Mapping[str, Tensor]
    running_averages: Sequence[Tensor]
    """From before the step."""


@dataclass
class DelayedCheck:
    """A step whose update did nothing if the flag is set."""

    step: StepToCheck
    is_bad: Tensor  # on its way to the host
    copied: torch.cuda.Event | None


class FiniteCheck:
    """Stop a run in all processes at a step that is not finite, before it changes the weights."""

    def __init__(self, run: Path, task: nn.Module, device: torch.device):
        self.run = run
        self.task = task
        self.is_delayed = device.type == "cuda"
        self.delayed: DelayedCheck | None = None

    def loss_gradient(self, loss: Tensor) -> Tensor | None:
        """Return the gradient that the backward pass starts from; None: 1.

        In a delayed check it is NaN for a loss that is not finite. Averaged gradients and their
        norm then are NaN in all processes, without a further exchange.
        """
        if not self.is_delayed:
            return None
        return torch.ones_like(loss).masked_fill(~loss.detach().isfinite(), torch.nan)

    def before_update(self, step: StepToCheck) -> Tensor | None:
        """Check a step, or the one before; return `found_inf` for the optimiser.

        Raises SharedError, and saves batch, rows and weights.
        """
        if not self.is_delayed:
            self._require_finite(step)
            return None
        self.finish()  # the device has this step's work in its queue while the host waits
        is_bad = (~step.grad_norm.isfinite()).float()
        host_flag = is_bad.to("cpu", non_blocking=True)
        copied = None
        if is_bad.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self.delayed = DelayedCheck(step, host_flag, copied)
        return is_bad

    def finish(self) -> None:
        """Check the step whose check is delayed, if any.

        Every process must call this. Raises SharedError.
        """
        delayed = self.delayed
        self.delayed = None
        if delayed is None:
            return
        if delayed.copied is not None:
            delayed.copied.synchronize()
        if delayed.is_bad.item():  # equal in all processes, as the gradients are
            self._require_finite(delayed.step)

    def _require_finite(self, step: StepToCheck) -> None:
        values = torch.stack([*step.losses, step.grad_norm])
        num_bad_V = processes.sum_over_processes((~values.isfinite()).float())
        if not num_bad_V.any():
            return
        restore_running_averages(self.task, step.running_averages)
        first = int(num_bad_V.bool().int().argmax())
        is_loss = first < len(step.micro_batches)
        batch = step.micro_batches[first if is_loss else -1]
        folder = self.run / f"non_finite_step_{step.step:08d}_rank_{processes.rank()}"
        self._save(folder, batch)
        processes.barrier()  # the first process that ends would end the others
        numbers = ", ".join(f"{name} {value.item():.4g}" for name, value in step.terms.items())
        name = "loss" if is_loss else "gradient norm"
        raise SharedError(
            f"{name} is not finite at step {step.step} ({numbers}): "
            f"stopped before the update; weights, batch and sample names are in {folder}; "
            "a lower train.lr or train.dtype float32 often helps"
        )

    def _save(self, folder: Path, batch: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for batch_field in fields(batch):
            value = getattr(batch, batch_field.name)
            if isinstance(value, Tensor):
                tensors[batch_field.name] = value
        write_tensors(folder / "batch.safetensors", tensors)
        write_file(folder / "samples.txt", "\n".join(batch.where))
        weights = gathered(self.task.state_dict())
        if is_main():
            write_tensors(folder / "model.safetensors", weights)
