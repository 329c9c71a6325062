"""Parameters and FLOPs of a run by part, without building its weights."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eve_vl.config import Config
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.moe import MoE
from eve_vl.run.example_batch import (
    essential,
    example_batch,
    has_known_batches,
    task_without_values,
)
from eve_vl.run.loading import build_untrained, read_config, read_labels
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.frozen import Frozen

NUM_LABELS = 3129  # VQA v2's usual answer list
WRAPPERS = {"", "encoder", "contrast"}  # modules whose parts are counted one by one


class Inspection(Frozen):
    """Counts of one run."""

    config: Config
    parameters: dict[str, int]
    """By part of the task."""
    active_parameters: int
    """Parameters that one pair uses: in blocks with experts, only the K chosen per token."""
    flops: dict[str, float]
    """Forward FLOPs per row with texts of full length, by part of the task; a multiply-add counts
    as two."""

    @property
    def flops_per_step(self) -> float:
        """Forward and backward FLOPs per row; the latter cost twice as much."""
        return 3 * sum(self.flops.values())


def inspect_run(path: Path) -> Inspection:
    """Count a run folder, with its tokenizer's vocabulary. Raises UserError."""
    folder = chosen_checkpoint(path)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", ends=config.model.reads_text_end)
    return inspect_config(config, tokenizer.vocab_size, read_labels(folder, config))


def inspect_config(
    config: Config, vocab_size: int | None = None, labels: Sequence[str] = ()
) -> Inspection:
    """Count a config.

    Defaults: a vocabulary of tokenizer.vocab_size and NUM_LABELS labels.
    """
    sizes = Sizes(
        vocab_size=vocab_size or config.tokenizer.vocab_size,
        labels=tuple(labels) or ("",) * NUM_LABELS,
    )
    with torch.device("meta"):
        task = build_untrained(config, sizes)
    parameters = Counter[str]()
    for name, parameter in task.named_parameters():
        parameters[_part(task, name)] += parameter.numel()
    layers = [module for module in task.modules() if isinstance(module, MoE)]
    num_idle = sum(layer.num_idle_parameters for layer in layers)
    return Inspection(
        config=config,
        parameters=parameters,
        active_parameters=parameters.total() - num_idle,
        flops=forward_flops(config, sizes),
    )


def _part(task: Task[Any], name: str) -> str:
    """Return the part of a task that one of its parameters or modules belongs to."""
    top, *rest = name.split(".")
    if top == "encoder":
        return task.encoder.parts.get(rest[0], "blocks")
    return top.replace("_", " ")


def forward_flops(config: Config, sizes: Sizes) -> dict[str, float]:
    """Return the forward FLOPs per row of a training step, by part of the task.

    Texts have full length. torch counts the matrix products and convolutions of one micro-batch.
    Empty for a task whose batches are unknown (`has_known_batches`).
    """
    if not has_known_batches(config):
        return {}
    return _forward_flops(*essential(config, sizes))


@lru_cache
def _forward_flops(config: Config, sizes: Sizes) -> dict[str, float]:
    task = task_without_values(config, sizes)
    counter = FlopCounterMode(display=False)
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        _without_autocast(),
        sdpa_kernel(SDPBackend.MATH),  # torch does not count the fused attention of CPUs
        counter,
    ):
        batch = example_batch(task)
        task(batch)
    flops_by_module = {
        name.partition(".")[2]: sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
    }
    modules = [name for name in flops_by_module if name not in WRAPPERS]
    flops = Counter[str]()
    for name in modules:
        is_inside_another = any(name.startswith(f"{outer}.") for outer in modules)
        if not is_inside_another:
            flops[_part(task, name)] += flops_by_module[name]
    flops["losses"] = counter.get_total_flops() - flops.total()
    num_rows = len(batch.where)
    return {part: count / num_rows for part, count in flops.items() if count}


def _without_autocast() -> Any:
    """Return a context in which torch.autocast does nothing: the meta device knows none."""
    return mock.patch.multiple(
        torch,
        autocast=lambda *_, **__: contextlib.nullcontext(),
        is_autocast_enabled=lambda *_: False,
    )
