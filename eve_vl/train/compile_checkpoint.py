"""What is done to each Transformer block of a task while it trains: it is compiled, or forgets its activations."""

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
from eve_vl.utils.errors import UserError


def wrap_blocks(task: nn.Module, config: TrainConfig) -> None:
    """Do what train.compile and train.checkpoint_activations say to all modules named `…blocks.N`; evaluation stays as it is.

    Dropout and drop-path draw the same numbers when a block computes anew. Raises UserError if there is no block or compiler.
    """
    if not (config.compile or config.checkpoint_activations):
        return
    blocks = [module for name, module in task.named_modules() if re.search(r"(^|\.)blocks\.\d+$", name)]
    if not blocks:
        raise UserError("train.compile and train.checkpoint_activations work on Transformer blocks, and this model has none")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and not shutil.which(compiler):
        raise UserError(f"train.compile needs a C++ compiler, and there is no {compiler}; install one, or leave it out")
    for block in blocks:
        block.forward = _wrapped(block, block.forward, config)


def _wrapped(block: nn.Module, plain: Callable[..., Any], config: TrainConfig) -> Callable[..., Any]:
    forward = torch.compile(plain, dynamic=True) if config.compile else plain
    if config.checkpoint_activations:
        forward = partial(checkpoint, forward, use_reentrant=False)
    return lambda *args: forward(*args) if block.training else plain(*args)
