"""Transformer blocks, compiled or recomputed in the backward pass."""

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from eve_vl.config import TrainConfig
from eve_vl.model.experts import Experts
from eve_vl.utils.errors import UserError


def transformer_blocks(task: nn.Module) -> list[nn.Module]:
    """Return the modules `…blocks.N`."""
    is_block = re.compile(r"(^|\.)blocks\.\d+$")
    return [module for name, module in task.named_modules() if is_block.search(name)]


def wrap_blocks(task: nn.Module, config: TrainConfig) -> None:
    """Apply train.compile and train.checkpoint_activations to `…blocks.N`.

    Evaluation stays as it is. A recomputed block draws the same dropout and drop-path. Raises
    UserError without a block or a compiler.
    """
    if not (config.compile or config.checkpoint_activations):
        return
    blocks = transformer_blocks(task)
    if not blocks:
        raise UserError(
            "train.compile and train.checkpoint_activations work on Transformer blocks, "
            "and this model has none"
        )
    compiler = os.environ.get("CXX", "g++")
    if config.compile and not shutil.which(compiler):
        raise UserError(
            f"train.compile needs a C++ compiler, and there is no {compiler}; "
            "install one, or leave it out"
        )
    if config.compile:
        _leave_out_experts(task)
    for block in blocks:
        block.forward = _training_forward(block, block.forward, config)


def _leave_out_experts(task: nn.Module) -> None:
    """Exclude the experts from compilation.

    grouped_mm compiles for bfloat16 only, and sizes that follow from the counts would not gain. As
    a decorator of their class, `disable` would import torch's compiler with every command, which
    takes as long as torch itself.
    """
    for module in task.modules():
        if isinstance(module, Experts):
            module.forward = torch.compiler.disable(module.forward)  # pyright: ignore


def _training_forward(
    block: nn.Module, plain_forward: Callable[..., Any], config: TrainConfig
) -> Callable[..., Any]:
    wrapped_forward = plain_forward
    if config.compile:
        wrapped_forward = torch.compile(plain_forward, dynamic=True)
    if config.checkpoint_activations:
        wrapped_forward = partial(checkpoint, wrapped_forward, use_reentrant=False)

    def forward(*args: Any) -> Any:
        return wrapped_forward(*args) if block.training else plain_forward(*args)

    return forward
