"""Bytes that autograd keeps between the forward and the backward pass."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from eve_vl.config import Config
from eve_vl.run.example_batch import (
    CPU,
    essential,
    example_batch,
    has_known_batches,
    task_without_values,
)
from eve_vl.tasks.task import Sizes
from eve_vl.train.block_wrapping import transformer_blocks
from eve_vl.train.devices import autocast


@dataclass(frozen=True)
class KeptBytes:
    """Bytes that autograd keeps of a micro-batch's forward pass."""

    plain: int = 0
    recomputed: int = 0
    """With train.checkpoint_activations, while the largest block is there again."""

    def of(self, recomputes: bool) -> int:
        """Return the bytes with or without recomputed blocks."""
        return self.recomputed if recomputes else self.plain


def kept_bytes(config: Config, sizes: Sizes) -> KeptBytes:
    """Return the bytes that autograd keeps of a micro-batch's forward pass.

    Texts have full length. 0 for a task whose batches are unknown (`has_known_batches`).
    """
    if not has_known_batches(config):
        return KeptBytes()
    return _kept_bytes(*essential(config, sizes))


@lru_cache
def _kept_bytes(config: Config, sizes: Sizes) -> KeptBytes:
    task = task_without_values(config, sizes)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        # fake tensors know autocast, meta tensors do not
        batch = example_batch(task)
        recorder = _Recorder(task.to_empty(device="cpu"))
        precision = autocast(CPU, getattr(torch, config.train.dtype))
        with saved_tensors_hooks(recorder.add, lambda tensor: tensor), precision:
            task(batch)
    return recorder.total()


class _Recorder:
    """Adds up the tensors that autograd saves, by call of a block."""

    def __init__(self, task: nn.Module):
        self.counted = {
            StorageWeakRef(parameter.untyped_storage()) for parameter in task.parameters()
        }
        self.bytes_of_calls = [0]  # the first: outside of blocks
        self.input_bytes = 0
        self.current_call = 0
        for block in transformer_blocks(task):
            block.register_forward_pre_hook(self._enter_block)
            block.register_forward_hook(self._leave_block)

    def add(self, tensor: Tensor) -> Tensor:
        """Count a saved tensor, once for all tensors that share its memory."""
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self.counted:
            self.counted.add(reference)
            self.bytes_of_calls[self.current_call] += storage.nbytes()
        return tensor

    def _enter_block(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.current_call = len(self.bytes_of_calls)
        self.bytes_of_calls.append(0)
        self.input_bytes += sum(arg.nbytes for arg in args if isinstance(arg, Tensor))

    def _leave_block(self, *_: Any) -> None:
        self.current_call = 0

    def total(self) -> KeptBytes:
        outside, *blocks = self.bytes_of_calls
        return KeptBytes(
            plain=sum(self.bytes_of_calls),
            recomputed=outside + self.input_bytes + max([0, *blocks]),
        )
