"""Stop a run at a loss or gradient norm that is not finite, with the weights from before that step.

Reading a value waits for the device, so the host asks every few steps. From the first bad value on, the device itself skips all
updates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl.train import checkpoint, processes
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError
from eve_vl.utils.file_io import write_file

ASKED_EVERY = 16  # steps on a GPU, which runs behind the host; 1 elsewhere, where asking costs little
MAX_BYTES = 2**28  # of batches kept until the host asks; steps that large take so long that asking costs nothing


@dataclass(kw_only=True, slots=True)
class PendingStep:
    """A step whose values the host has not read."""

    step: int
    micro_batches: Sequence[Any]
    terms: Mapping[str, Tensor]
    num_bad_V: Tensor
    """Number of processes with a bad loss, per micro-batch, and last with a bad gradient norm."""


def _num_bytes(step: PendingStep) -> int:
    parts = (part for batch in step.micro_batches for part in getattr(batch, "parts", (batch,)))
    tensors = (getattr(part, field.name) for part in parts for field in fields(part))
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


class NanGuard:
    """Check of all steps so far."""

    def __init__(self, task: nn.Module, run: Path, device: torch.device):
        self.task, self.run = task, run
        self.every = ASKED_EVERY if device.type == "cuda" else 1
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)
        self.unasked: list[PendingStep] = []
        self.buffers = [buffer for module in task.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
        self.before: list[Tensor] = []

    @property
    def allowed(self) -> Tensor | None:
        """Whether updates may be made, bool on the device; None if the host has already checked."""
        return None if self.every == 1 else self.is_finite

    def begin(self) -> None:
        """Save the buffers that the forward pass of a step changes."""
        self.before = [buffer.clone() for buffer in self.buffers]

    def add(self, step: int, micro_batches: Sequence[Any], terms: Mapping[str, Tensor], values: Sequence[Tensor]) -> None:
        """Add the losses of a step's micro-batches and its gradient norm. Raises as `ask`, when that is due."""
        num_bad_V = processes.sum_over_processes((~torch.stack([*values]).isfinite()).float())
        self.is_finite = self.is_finite & (num_bad_V == 0).all()
        self.unasked.append(PendingStep(step=step, micro_batches=micro_batches, terms=terms, num_bad_V=num_bad_V))
        if len(self.unasked) >= self.every or sum(map(_num_bytes, self.unasked)) > MAX_BYTES:
            self.ask()

    def end(self) -> None:
        """Undo the forward passes' changes if the step must not count."""
        if self.every > 1:  # else the host has already checked
            self.undo()

    def undo(self) -> None:
        """Restore the buffers from before the step, unless all values were finite."""
        for buffer, before in zip(self.buffers, self.before, strict=False):
            buffer.copy_(buffer.where(self.is_finite, before))

    def ask(self) -> None:
        """Raise SharedError in all processes for a value that is not finite; save batch, rows and weights."""
        unasked, self.unasked = self.unasked, []
        if not unasked or bool(self.is_finite):
            return
        self.undo()
        bad = next(each for each in unasked if each.num_bad_V.any())
        first = int(bad.num_bad_V.bool().int().argmax())
        is_loss = first < len(bad.micro_batches)
        batch = bad.micro_batches[first if is_loss else -1]
        folder = self.run / f"non_finite_step_{bad.step:08d}_rank_{processes.rank()}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
        checkpoint.write_tensors(folder / "batch.safetensors", tensors)
        write_file(folder / "samples.txt", "\n".join(batch.where))
        if is_main():
            checkpoint.write_tensors(folder / "model.safetensors", self.task.state_dict())
        processes.barrier()  # the first process that ends would end the others
        numbers = ", ".join(f"{name} {number.item():.4g}" for name, number in bad.terms.items())
        what = "loss" if is_loss else "gradient norm"
        raise SharedError(
            f"{what} is not finite at step {bad.step} ({numbers}): stopped before the update; "
            f"weights, batch and sample names are in {folder}; a lower train.lr or train.dtype float32 often helps"
        )
