"""Memory and traffic of a training step by layout, without weights: `eve plan`.

replicate: each process has all weights (DDP). shard: processes of a machine share them (FSDP2); they gather whole weights for a
step, and machines hold copies (HSDP).
"""

import dataclasses
import itertools
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eve_vl.config import Config, changed_flags
from eve_vl.run.inspect import NUM_LABELS, kept_bytes
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.optim import freeze, muon_parts
from eve_vl.train.processes import transformer_blocks
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen

MUON_COPIES = 3  # of the matrices of one shape, while they are made orthogonal


class Layout(Frozen):
    """How processes share a training step."""

    gpus: int
    """Processes per machine."""
    machines: int = 1
    shards: bool = False
    """train.layout shard, over the processes of a machine."""


def step_memory(config: Config, task: Task[Any], layout: Layout, kept: float) -> dict[str, float]:
    """Return the bytes of a process at the peak of a step, by kind.

    Weights, gradients, moments and averages are float32. kept: by autograd in a micro-batch of the process.
    """
    train, parts = config.train, layout.gpus if layout.shards else 1
    trained = {name: each for name, each in task.named_parameters() if each.requires_grad}
    total, num = (
        4 * sum(each.numel() for each in them) for them in (task.parameters(), trained.values())
    )
    of_shape = Counter[torch.Size]()  # of Muon's matrices, which have one moment
    for name, each in trained.items():
        of_shape[each.shape[-2:]] += (
            4 * each.numel() * (muon_parts(name, each, train.optimizer) > 0)
        )
    copies = (
        MUON_COPIES * max(of_shape.values(), default=0) / (1 if train.dtype == "float32" else 2)
    )
    whole = [
        4 * sum(each.numel() for each in block.parameters()) for block in transformer_blocks(task)
    ]
    unit = max([total - sum(whole), *whole])  # gradients are whole until those of a unit are summed
    return {
        "weights": total / parts + total * layout.shards,
        "gradients": num / parts + 2 * unit * layout.shards,
        "optimizer": (2 * num - of_shape.total() + num * (train.ema_decay > 0)) / parts,
        "activations": max(kept, copies / parts),
    }


def step_traffic(config: Config, task: Task[Any], layout: Layout) -> dict[str, float]:
    """Return the bytes that a process sends in a step, and a machine to others.

    These are weights and gradients. Left out are Muon's matrices, features of contrast and sums for the log. A ring over n
    processes sends (n - 1) / n of a tensor to gather or scatter it, and twice that to sum it.
    """
    accumulation, machines, gpus = config.train.accumulation, layout.machines, layout.gpus
    weights = 4 * sum(each.numel() for each in task.parameters())
    gradients = 4 * sum(each.numel() for each in task.parameters() if each.requires_grad)
    if layout.shards:
        between = 2 * gradients * (machines - 1) / machines
        return {
            "process": (weights + accumulation * gradients) * (gpus - 1) / gpus + between / gpus,
            "machine": between,
        }
    times = accumulation if task.find_unused_parameters else 1  # see processes.without_sharing
    sent = 2 * times * gradients * (1 - 1 / (machines * gpus))
    return {"process": sent, "machine": sent * (machines > 1)}


@dataclass(frozen=True)
class Choice:
    """A layout at the fewest micro-batches that fit, else at the most."""

    layout: Layout
    recomputes: bool
    """train.checkpoint_activations."""
    accumulation: int
    rows: int
    """Per micro-batch of a process."""
    memory: dict[str, float]
    """Bytes of a process by kind."""
    sent: dict[str, float]
    """Bytes in a step by sender."""
    fits: bool

    @property
    def name(self) -> str:
        """Layout in words."""
        return ("shard" if self.layout.shards else "replicate") + ", recomputed" * self.recomputes

    def cells(self) -> dict[str, str]:
        """Return the lines of a table: GiB by kind, GB by sender."""
        memory = {**self.memory, "total": sum(self.memory.values())}
        return {
            "micro-batches × rows": f"{self.accumulation} × {self.rows}",
            **{kind: f"{value / 2**30:,.2f}" for kind, value in memory.items()},
            "fits": "yes" if self.fits else "no",
            **{
                f"GB sent by a {who}": f"{value / 1e9:,.2f}"
                for who, value in self.sent.items()
                if value
            },
        }


def plan(config: Config, gpus: int, per_machine: int, limit: float) -> list[Choice]:
    """Return the layouts for GPUs with `limit` bytes each, the best one first.

    Best: fits, recomputes nothing, has the fewest micro-batches, replicates. Raises UserError.
    """
    machines, rest = divmod(gpus, min(gpus, per_machine))
    if rest:
        raise UserError(
            f"--gpus: {gpus} is not a multiple of {per_machine} per machine; give --per-machine N"
        )
    world = Layout(machines=machines, gpus=gpus // machines)
    config = _with_train(
        config, accumulation=1, dtype=config.train.dtype.replace("auto", "bfloat16")
    )
    check_batch_size(config, gpus)
    sizes = Sizes(vocab_size=config.tokenizer.vocab_size, labels=("",) * NUM_LABELS)
    with torch.device("meta"):
        task = build_untrained(config, sizes)
    freeze(task, config.train.freeze)
    few = kept_bytes(_with_train(config, batch_size=2), sizes)
    if not any(few):
        raise UserError(
            f"{config.recipe}: only tasks of this package can be planned, because their batches are known"
        )
    can_shard = world.gpus > 1 and not getattr(task, "passes_vary", False)  # see train/shard.py
    found, accumulation = dict[tuple[bool, bool], Choice](), 1
    while config.train.batch_size % (gpus * accumulation) == 0 and not (
        found and all(each.fits for each in found.values())
    ):
        now, rows = (
            _with_train(config, accumulation=accumulation),
            config.train.batch_size // accumulation,
        )
        if config.task.problems_with_pairs(rows // gpus):
            break
        for shards, recomputes in itertools.product({False, can_shard}, (False, True)):
            if (last := found.get((shards, recomputes))) and last.fits:
                continue
            layout = dataclasses.replace(world, shards=shards)
            small, kept = few[recomputes], kept_bytes(now, sizes)[recomputes]
            fixed = max(
                0.0, small - 2 * (kept - small) / max(rows - 2, 1)
            )  # copies of weights in half precision
            memory = step_memory(now, task, layout, fixed + (kept - fixed) / gpus)
            sent, fits = step_traffic(now, task, layout), sum(memory.values()) <= limit
            found[shards, recomputes] = Choice(
                layout, recomputes, accumulation, rows // gpus, memory, sent, fits
            )
        accumulation *= 2
    return sorted(
        found.values(),
        key=lambda each: (not each.fits, each.recomputes, each.accumulation, each.layout.shards),
    )


def command(name: str, recipe: Config, config: Config, choices: Sequence[Choice]) -> str:
    """Return the command that trains a config in the best layout."""
    if not (choice := choices[0]).fits:
        least = min(sum(each.memory.values()) for each in choices) / 2**30
        return f"no layout fits, the least needs {least:,.1f} GiB; take a smaller model, or GPUs with more memory"
    layout, verb = choice.layout, "pretrain" if recipe.task.is_pretraining else "finetune"
    several = f"--nnodes {layout.machines} --node-rank N --master-addr HOST " * (
        layout.machines > 1
    )
    launch = (
        f"torchrun {several}--nproc-per-node {layout.gpus} -m eve_vl"
        if layout.gpus * layout.machines > 1
        else "eve"
    )
    chosen = _with_train(
        config, accumulation=choice.accumulation, checkpoint_activations=choice.recomputes
    )
    flags = ["--init", str(recipe.init)] * (recipe.init is not None) + [
        "--train.layout",
        "shard",
    ] * layout.shards
    flags += changed_flags(chosen, recipe)
    return f"{launch} {shlex.join([verb, name, *flags])}"


def _with_train(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


def check_batch_size(config: Config, world: int) -> None:
    """Raise UserError for a batch that does not divide into micro-batches.

    They must not be too small either.
    """
    train, count = config.train, config.train.accumulation * world
    if train.batch_size % count:
        where = f"train.batch_size {train.batch_size} is not divisible by train.accumulation"
        fix = f"give a batch size that is a multiple of {count}"
        raise UserError(f"{where} {train.accumulation} × {world} processes; {fix}")
    if problems := config.task.problems_with_pairs(train.batch_size // count):
        more = f"of each of {world} processes: raise train.batch_size or lower train.accumulation"
        raise UserError(f"task.{'; task.'.join(problems)} {more}")
