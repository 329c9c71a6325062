"""Whether losses and gradient norms are finite, kept where they are computed: to ask is to wait for the device, so the host
asks every few steps only. Until then the device withholds every update from the first value that is not finite on, so that what
is found is what was there before that step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.train import checkpoint, collectives
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.errors import SharedError

ASKED_EVERY = 16  # steps on a GPU, which runs behind the host; elsewhere, where asking costs little, each


@dataclass(kw_only=True, slots=True)
class PendingStep:
    """A step whose values the host has not seen."""

    step: int
    micro_batches: Sequence[Any]
    terms: Mapping[str, Tensor]
    num_bad_V: Tensor
    """In how many processes the loss of each micro-batch and, last, the gradient norm is not finite."""


class NanGuard:
    """What is known of the steps so far."""

    def __init__(self, task: nn.Module, run: Path, device: torch.device):
        self.task, self.run = task, run
        self.every = ASKED_EVERY if device.type == "cuda" else 1
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)
        self.unasked: list[PendingStep] = []
        self.buffers = [buffer for module in task.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
        self.before: list[Tensor] = []

    @property
    def allowed(self) -> Tensor | None:
        """Whether updates may be made, bool on the device; None: they may, the host knows."""
        return None if self.every == 1 else self.is_finite

    def begin(self) -> None:
        """Note what the forward pass of a step changes."""
        self.before = [buffer.clone() for buffer in self.buffers]

    def add(self, step: int, micro_batches: Sequence[Any], terms: Mapping[str, Tensor], values: Sequence[Tensor]) -> None:
        """Take in the losses of a step's micro-batches and its gradient norm. Raises as `ask`, if it is time to ask."""
        num_bad_V = collectives.sum_over_processes((~torch.stack([*values]).isfinite()).float())
        self.is_finite = self.is_finite & (num_bad_V == 0).all()
        self.unasked.append(PendingStep(step=step, micro_batches=micro_batches, terms=terms, num_bad_V=num_bad_V))
        if len(self.unasked) >= self.every:
            self.ask()

    def end(self) -> None:
        """Undo what the forward passes changed, if the step may not count."""
        if self.every > 1:  # else the host knows that it counts
            self.undo()

    def undo(self) -> None:
        """Take back what the forward passes changed, unless all has been finite."""
        for buffer, before in zip(self.buffers, self.before, strict=False):
            buffer.copy_(buffer.where(self.is_finite, before))

    def ask(self) -> None:
        """Raise SharedError, in all processes, if a value was not finite, and save what is needed to look into it."""
        unasked, self.unasked = self.unasked, []
        if not unasked or bool(self.is_finite):
            return
        self.undo()
        bad = next(each for each in unasked if each.num_bad_V.any())
        first = int(bad.num_bad_V.bool().int().argmax())
        is_loss = first < len(bad.micro_batches)
        batch = bad.micro_batches[first if is_loss else -1]
        folder = self.run / f"non_finite_step_{bad.step:08d}_rank_{collectives.rank()}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
        checkpoint.write_tensors(folder / "batch.safetensors", tensors)
        write_file(folder / "samples.txt", "\n".join(batch.where))
        if collectives.is_main():
            checkpoint.write_tensors(folder / "model.safetensors", self.task.state_dict())
        collectives.barrier()  # the first process to end would end the others
        numbers = ", ".join(f"{name} {number.item():.4g}" for name, number in bad.terms.items())
        what = "loss" if is_loss else "gradient norm"
        raise SharedError(
            f"{what} is not finite at step {bad.step} ({numbers}): stopped before the update; "
            f"weights, batch and sample names are in {folder}; a lower train.lr or train.dtype float32 often helps"
        )
