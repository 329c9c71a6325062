"""`eve plan`: the layouts of a training on GPUs, and the command of the best one."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eve_vl.config import Config, changed_flags
from eve_vl.run.flops import NUM_LABELS
from eve_vl.run.kept_memory import KeptBytes, kept_bytes
from eve_vl.run.loading import build_untrained
from eve_vl.run.resume_checks import check_batch_size
from eve_vl.run.step_memory import Layout, step_memory, step_traffic
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.freezing import freeze
from eve_vl.utils.errors import UserError

MOST_COUNTED_ROWS = 8192  # contrasts of more take minutes; from here on, memory grows linearly
PROBED_ROWS = 2  # of the small micro-batch whose memory tells what does not grow with the rows


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
        name = "shard" if self.layout.shards else "replicate"
        if self.recomputes:
            name += ", recomputed"
        return name

    @property
    def rank(self) -> tuple[bool, bool, int, bool]:
        """Sorting key, lowest first: fits, recomputes nothing, has few micro-batches,
        replicates."""
        return not self.fits, self.recomputes, self.accumulation, self.layout.shards

    def cells(self, unit: float) -> dict[str, str]:
        """Return the lines of a table: memory by kind, in the unit given, GB by sender."""
        memory = {**self.memory, "total": sum(self.memory.values())}
        cells = {"micro-batches × rows": f"{self.accumulation} × {self.rows}"}
        for kind, size in memory.items():
            cells[kind] = f"{size / unit:,.2f}"
        cells["fits"] = "yes" if self.fits else "no"
        for sender, size in self.sent.items():
            if size:
                cells[f"GB sent by a {sender}"] = f"{size / 1e9:,.2f}"
        return cells


@dataclass(frozen=True)
class Planner:
    """What all choices of a plan have in common."""

    config: Config
    sizes: Sizes
    task: Task[Any]
    num_gpus: int
    limit: float
    """Bytes of a GPU."""
    small: KeptBytes
    """Kept of PROBED_ROWS rows."""

    def choice(self, layout: Layout, recomputes: bool, accumulation: int) -> Choice:
        """Return a layout with its memory and traffic."""
        config = _with_train(self.config, accumulation=accumulation)
        num_rows = config.train.batch_size // accumulation
        kept_size = self.kept_size(num_rows, recomputes)
        small = self.small.of(recomputes)
        per_row = (kept_size - small) / max(num_rows - PROBED_ROWS, 1)
        fixed = max(0.0, small - PROBED_ROWS * per_row)  # copies of weights in half precision
        memory = step_memory(config, self.task, layout, fixed + (kept_size - fixed) / self.num_gpus)
        return Choice(
            layout=layout,
            recomputes=recomputes,
            accumulation=accumulation,
            rows=num_rows // self.num_gpus,
            memory=memory,
            sent=step_traffic(config, self.task, layout),
            fits=sum(memory.values()) <= self.limit,
        )

    def kept_size(self, num_rows: int, recomputes: bool) -> float:
        """Return the bytes that autograd keeps of a micro-batch."""
        if num_rows <= MOST_COUNTED_ROWS:
            config = _with_train(self.config, batch_size=num_rows, accumulation=1)
            return kept_bytes(config, self.sizes).of(recomputes)
        half = MOST_COUNTED_ROWS // 2
        size = self.kept_size(MOST_COUNTED_ROWS, recomputes)
        size_of_half = self.kept_size(half, recomputes)
        return size + (num_rows - MOST_COUNTED_ROWS) * (size - size_of_half) / half


def plan(config: Config, gpus: int, per_machine: int, limit: float) -> list[Choice]:
    """Return the layouts for GPUs with `limit` bytes each, the best one first.

    Best: fits, recomputes nothing, has the fewest micro-batches, replicates. Raises UserError.
    """
    machines, rest = divmod(gpus, min(gpus, per_machine))
    if rest:
        raise UserError(
            f"--gpus: {gpus} is not a multiple of {per_machine} per machine; give --per-machine N"
        )
    replicated = Layout(machines=machines, gpus=gpus // machines)
    dtype = config.train.dtype.replace("auto", "bfloat16")
    config = _with_train(config, accumulation=1, dtype=dtype)
    check_batch_size(config, gpus)
    planner = _planner(config, gpus, limit)
    layouts = [replicated]
    can_shard = replicated.gpus > 1 and not getattr(planner.task, "passes_vary", False)
    if can_shard:  # see train/shard.py
        layouts.append(dataclasses.replace(replicated, shards=True))

    choices: dict[tuple[Layout, bool], Choice] = {}
    accumulation = 1
    while config.train.batch_size % (gpus * accumulation) == 0:
        rows_per_gpu = config.train.batch_size // accumulation // gpus
        if config.task.problems_with_pairs(rows_per_gpu):
            break
        for key in itertools.product(layouts, (False, True)):
            if key not in choices or not choices[key].fits:
                choices[key] = planner.choice(*key, accumulation)
        if all(choice.fits for choice in choices.values()):
            break
        accumulation *= 2
    return sorted(choices.values(), key=lambda choice: choice.rank)


def _planner(config: Config, gpus: int, limit: float) -> Planner:
    """Return the common parts of a plan. Raises UserError for a task whose batches are unknown."""
    sizes = Sizes(vocab_size=config.tokenizer.vocab_size, labels=("",) * NUM_LABELS)
    with torch.device("meta"):
        task = build_untrained(config, sizes)
    freeze(task, config.train.freeze)
    small = kept_bytes(_with_train(config, batch_size=PROBED_ROWS), sizes)
    if small == KeptBytes():
        raise UserError(
            f"{config.recipe}: only tasks of this package can be planned, because their batches "
            "are known"
        )
    return Planner(config, sizes, task, gpus, limit, small)


def command(name: str, recipe: Config, config: Config, choices: Sequence[Choice]) -> str:
    """Return the command that trains a config in the best layout."""
    choice = choices[0]
    if not choice.fits:
        least = min(sum(layout.memory.values()) for layout in choices) / 2**30
        return (
            f"no layout fits, the least needs {least:,.1f} GiB; "
            "take a smaller model, or GPUs with more memory"
        )
    verb = "pretrain" if recipe.task.is_pretraining else "finetune"
    words = [verb, name]
    if recipe.init is not None:
        words += ["--init", str(recipe.init)]
    if choice.layout.shards:
        words += ["--train.layout", "shard"]
    chosen = _with_train(
        config, accumulation=choice.accumulation, checkpoint_activations=choice.recomputes
    )
    words += changed_flags(chosen, recipe)
    return f"{_launcher(choice.layout)} {shlex.join(words)}"


def _launcher(layout: Layout) -> str:
    """Return the beginning of a command that starts the processes of a layout."""
    if layout.gpus * layout.machines == 1:
        return "eve"
    machines = ""
    if layout.machines > 1:
        machines = f"--nnodes {layout.machines} --node-rank N --master-addr HOST "
    return f"torchrun {machines}--nproc-per-node {layout.gpus} -m eve_vl"


def _with_train(config: Config, **values: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))
