"""Measure a training step of a recipe on this machine: time, memory, FLOP/s, and their share of a matrix product's (MFU)."""

import dataclasses
import itertools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.dataset import RowBatch
from eve_vl.data.loader import open_sources, train_loader
from eve_vl.run.inspect import inspect_config
from eve_vl.run.loading import build_untrained
from eve_vl.run.summary import expected_memory, machine_line
from eve_vl.run.training import obtain_tokenizer, tune_threads, with_init_tokenizer
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Sizes
from eve_vl.train.processes import has_processor_clock, now, peak_memory, pick_device, pick_dtype
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import core_seconds, seed_everything, set_threads

WARM = 3  # first steps, which allocate memory and compile kernels, do not count
NUM_TEXTS = 2000  # rows of each source to train a tokenizer on
GEMM = {"cpu": 2048}  # side of the matrices, by device
GEMM_SIDE, GEMM_ROUNDS = 8192, 20


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measurements of a recipe's training step, medians over steps."""

    recipe: str
    machine: str
    clock: str
    """Clock of the steps' seconds: processor time or wall time."""
    steps: int
    rows: int
    """Rows per step."""
    text_length: float
    """Mean tokens per text without padding; 0 without texts."""
    seconds: dict[str, float]
    """Seconds of a step and of its parts."""
    rows_per_second: float
    """In wall time."""
    rows_per_core_second: float
    tokens_per_second: float
    """Tokens of images and texts in wall time, without padding, each counted once per step."""
    flops_per_row: float
    """Forward and backward FLOPs at the mean text length; padding and recomputed activations do not count."""
    peak: float
    """FLOP/s of a large matrix product on this machine."""
    peak_of: str
    memory: int
    """Peak bytes of the process, of the GPU if there is one."""
    loader_rows_per_core_second: float
    loader_share: float
    """Core-seconds of loading a step's rows, divided by the step's core-seconds (on a GPU, its seconds)."""

    @property
    def flops_per_second(self) -> float:
        """FLOP/s of the step."""
        return self.flops_per_row * self.rows / self.seconds["step"]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self) | {
            "flops_per_second": self.flops_per_second,
            "mfu": self.flops_per_second / self.peak,
        }

    def lines(self) -> list[str]:
        """Return lines to print."""
        step, *parts = self.seconds.items()
        shown = ", ".join(f"{name} {1000 * seconds:,.1f}" for name, seconds in parts)
        return [
            f"step: {1000 * step[1]:,.1f} ms of {self.clock} ({shown}), median of {self.steps} steps of {self.rows:,} rows",
            f"speed: {self.rows_per_second:,.4g} rows a second, {self.rows_per_core_second:,.4g} a core-second, "
            f"{self.tokens_per_second:,.4g} tokens a second, texts of {self.text_length:.1f} tokens",
            f"arithmetic: {self.flops_per_row / 1e9:,.3g} GFLOP a row, {self.flops_per_second / 1e9:,.4g} GFLOP/s, "
            f"MFU {self.flops_per_second / self.peak:.3f} of {self.peak / 1e9:,.4g} GFLOP/s, {self.peak_of}",
            f"memory: {self.memory / 2**30:.2f} GiB at most",
            f"loader: {self.loader_rows_per_core_second:,.4g} rows a core-second, "
            f"{self.loader_share:.1%} of what the steps take",
        ]


def bench(config: Config, num_steps: int) -> Bench:
    """Run training steps of a recipe from random weights, on batches loaded before. Raises UserError."""
    config = with_init_tokenizer(config)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, num_workers=0),
        train=dataclasses.replace(config.train, steps=max(config.train.steps, WARM + num_steps)),
    )
    device, kind = pick_device(config.train.device), task_class(type(config.task))
    set_threads(config.train.threads)
    seed_everything(config.train.seed)
    dtype = pick_dtype(config.train.dtype, device)
    sources = open_sources(config.data.train, config.data, config.input.image_size, kind.dataset.kind_of(config))
    few: Any = [Subset(source, range(min(len(source), NUM_TEXTS))) for source in sources]  # pyright: ignore[reportArgumentType]
    tokenizer = obtain_tokenizer(config, few)
    is_known = config.init is not None or config.tokenizer.path is not None
    prepared = kind.prepare(config, sources, None)
    vocab_size = tokenizer.vocab_size if is_known else config.tokenizer.vocab_size
    sizes = Sizes(vocab_size=vocab_size, mask_id=tokenizer.mask_id, labels=prepared.labels)
    with device:
        task = build_untrained(config, sizes)
    needed, there = expected_memory(config, task), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    less = "give a smaller --train.batch-size or a larger --train.accumulation"
    if device.type == "cpu" and needed > there:
        raise UserError(f"a step needs about {needed / 2**30:.0f} GiB of memory, and there are {there / 2**30:.0f}; {less}")
    trainer = Trainer(config.train, config.out, task, device=device, texts={})
    dataset = kind.dataset(prepared.sources, config, tokenizer, training=True)
    tune_threads(trainer, dataset)
    loader = iter(train_loader(dataset, consumed=0, rank=0, world=1))
    micro_batches, start = [next(loader)], time.process_time()  # the first draws the order of an epoch
    micro_batches += itertools.islice(loader, (WARM + num_steps) * config.train.accumulation - 1)
    loading = (time.process_time() - start) / (len(micro_batches) - 1)
    try:
        seconds, wall, cores = _time_steps(trainer, micro_batches)
    except torch.OutOfMemoryError:
        raise UserError(f"a step does not fit the memory of {device}; {less}") from None
    memory = peak_memory()
    peak, peak_of = reachable(device, dtype)
    rows = config.train.batch_size
    tokens, text_length = _tokens(micro_batches, config)
    texts = dataclasses.replace(config.input, text_length=max(1, round(text_length)), padded_text_length=0)
    counted = inspect_config(dataclasses.replace(config, input=texts), vocab_size, prepared.labels)
    return Bench(
        recipe=config.recipe,
        machine=machine_line(device, dtype).removeprefix("machine: "),
        clock="processor time" if has_processor_clock(device) else "wall time",
        steps=num_steps,
        rows=rows,
        text_length=text_length,
        seconds=seconds,
        rows_per_second=rows / wall,
        rows_per_core_second=rows / cores,
        tokens_per_second=rows * tokens / wall,
        flops_per_row=counted.flops_per_step,
        peak=peak,
        peak_of=peak_of,
        memory=memory,
        loader_rows_per_core_second=len(micro_batches[0].where) / loading,
        loader_share=loading * config.train.accumulation / (cores if device.type == "cpu" else wall),
    )


def _time_steps(trainer: Trainer, micro_batches: Sequence[RowBatch]) -> tuple[dict[str, float], float, float]:
    """Return medians over steps: seconds of the step and of its parts, wall seconds, CPU core-seconds."""
    device, num, found, wall, cores = trainer.device, trainer.config.accumulation, [], [], []
    for first in progress(range(0, len(micro_batches), num), "measuring steps", len(micro_batches) // num):
        parts: dict[str, float] = defaultdict(float)
        last = start = now(device)

        def mark(part: str, parts: dict[str, float] = parts) -> None:
            nonlocal last
            before, last = last, now(device)
            parts[part] += last - before

        trainer.mark = mark
        clocks = time.perf_counter(), core_seconds()
        trainer.train_step([*micro_batches[first : first + num]])
        trainer.step += 1
        found.append({"step": now(device) - start, **parts})
        wall.append(time.perf_counter() - clocks[0])
        cores.append(core_seconds() - clocks[1])
    medians = {name: statistics.median(step[name] for step in found[WARM:]) for name in found[-1]}
    return medians, statistics.median(wall[WARM:]), statistics.median(cores[WARM:])


def _tokens(batches: Sequence[RowBatch], config: Config) -> tuple[float, float]:
    """Return the mean tokens per row and per text."""
    parts = [part for batch in batches for part in batch.parts]
    num_images = sum(len(part.where) * hasattr(part, name) for part in parts for name in ("images_BCHW", "right_BCHW"))
    masks = (getattr(part, name, None) for part in parts for name in ("is_padding_BT", "right_is_padding_BT"))
    lengths = [int(length) for is_padding_BT in masks if is_padding_BT is not None for length in (~is_padding_BT).sum(1)]
    tokens = num_images * (1 + config.input.num_patches) + sum(lengths)
    return tokens / sum(len(batch.where) for batch in batches), sum(lengths) / max(len(lengths), 1)


def reachable(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the FLOP/s that a device reaches in a large matrix product of a type, and a description of it."""
    side = GEMM.get(device.type, GEMM_SIDE)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + GEMM_ROUNDS):
        start = now(device)
        torch.mm(one, other)
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds[1:]), f"a product of {side}² matrices here"
