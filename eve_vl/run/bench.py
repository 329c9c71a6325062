"""Measurement of a training step: time, memory, FLOP/s.

MFU is the share of a large matrix product's FLOP/s.
"""

import dataclasses
import itertools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.batches import RowBatch
from eve_vl.data.loader import train_loader
from eve_vl.data.opening import open_sources
from eve_vl.run.flops import forward_flops
from eve_vl.run.loading import build_untrained
from eve_vl.run.run_tokenizer import obtain_tokenizer, with_init_tokenizer
from eve_vl.run.startup_summary import expected_memory, machine_line
from eve_vl.run.thread_count import choose_threads
from eve_vl.tasks.task import Sizes, task_class
from eve_vl.train import processes
from eve_vl.train.devices import pick_device, pick_dtype
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import progress
from eve_vl.utils.cores import core_seconds
from eve_vl.utils.errors import UserError
from eve_vl.utils.memory import peak_memory
from eve_vl.utils.seeds import seed_everything
from eve_vl.utils.threads import set_threads

WARM_UP_STEPS = 3  # they allocate memory and compile kernels, and do not count
MAX_TOKENIZER_ROWS = 2000  # of each source, to train a tokenizer on
FIX_FOR_MEMORY = "give a smaller --train.batch-size or a larger --train.accumulation"
MATRIX_SIDE_ON_CPU = 2048
MATRIX_SIDE = 8192
MATRIX_PRODUCTS = 20


def bench(config: Config, num_steps: int) -> dict[str, Any]:
    """Run training steps of a recipe from random weights, on loaded batches.

    Raises UserError. The values are JSON-ready medians over steps. seconds: of a step and of its
    parts by the `clock` of the device. rows: per step. text_length: mean tokens of a text without
    padding, 0 without texts. rows_per_second, tokens_per_second: of wall time; each token counts
    once per step, padding does not. flops_per_row: forward and backward at the mean text length.
    peak: FLOP/s of a large matrix product here. mfu: flops_per_second / peak. memory: peak bytes of
    the process or of the GPU. loader_share: core-seconds of loading a step's rows over the step's
    core-seconds (on a GPU, its seconds).
    """
    trainer, loader = _start(config, num_steps)
    config = trainer.task.config
    train = trainer.config
    device = trainer.device
    dtype = pick_dtype(train.dtype, device)

    micro_batches = [next(loader)]  # its time does not count: it draws the order of an epoch
    start = time.process_time()
    num_micro_batches = (WARM_UP_STEPS + num_steps) * train.accumulation
    micro_batches += itertools.islice(loader, num_micro_batches - 1)
    loading_seconds = (time.process_time() - start) / (len(micro_batches) - 1)
    try:
        times = _time_steps(trainer, micro_batches)
    except torch.OutOfMemoryError:
        raise UserError(f"a step does not fit the memory of {device}; {FIX_FOR_MEMORY}") from None
    memory = peak_memory()
    peak, peak_of = reachable(device, dtype)

    tokens_per_row, text_length = _count_tokens(micro_batches, config)
    mean_texts = dataclasses.replace(
        config.input, text_length=max(1, round(text_length)), padded_text_length=0
    )
    flops_by_part = forward_flops(dataclasses.replace(config, input=mean_texts), trainer.task.sizes)
    flops_per_row = 3 * sum(flops_by_part.values())
    rows = train.batch_size
    flops_per_second = flops_per_row * rows / times.parts["step"]
    step_seconds = times.core_seconds if device.type == "cpu" else times.wall_seconds
    return {
        "recipe": config.recipe,
        "machine": machine_line(device, dtype).removeprefix("machine: "),
        "clock": "processor time" if has_processor_clock(device) else "wall time",
        "steps": num_steps,
        "rows": rows,
        "text_length": text_length,
        "seconds": times.parts,
        "rows_per_second": rows / times.wall_seconds,
        "rows_per_core_second": rows / times.core_seconds,
        "tokens_per_second": rows * tokens_per_row / times.wall_seconds,
        "flops_per_row": flops_per_row,
        "peak": peak,
        "peak_of": peak_of,
        "memory": memory,
        "flops_per_second": flops_per_second,
        "mfu": flops_per_second / peak,
        "loader_rows_per_core_second": len(micro_batches[0].where) / loading_seconds,
        "loader_share": loading_seconds * train.accumulation / step_seconds,
    }


@dataclass(frozen=True)
class StepSeconds:
    """Wall seconds of a training step with its loading."""

    median: float
    fastest: float
    """Of the steps that other work on the machine disturbed least."""
    total: float
    """Of all steps, also those of the warm-up."""
    num_threads: int


def step_seconds(config: Config, num_steps: int) -> StepSeconds:
    """Return the wall seconds of a training step, measured on several. Raises UserError."""
    trainer, loader = _start(config, num_steps)
    start = time.perf_counter()
    batches: list[RowBatch] = []
    loading_seconds: list[float] = []
    for _ in range((WARM_UP_STEPS + num_steps) * config.train.accumulation):
        loading_start = time.perf_counter()
        batches.append(next(loader))
        loading_seconds.append(time.perf_counter() - loading_start)
    times = _time_steps(trainer, batches)
    return StepSeconds(
        median=times.wall_seconds + config.train.accumulation * statistics.median(loading_seconds),
        fastest=times.fastest_wall_seconds + config.train.accumulation * min(loading_seconds),
        total=time.perf_counter() - start,
        num_threads=torch.get_num_threads(),
    )


def has_processor_clock(device: torch.device) -> bool:
    """Return whether `now` is processor time; several threads would spin in waits."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def now(device: torch.device) -> float:
    """Return seconds after a GPU sync.

    Processor time with one CPU thread, else wall time. Other work on the core does not lengthen
    processor time.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    if has_processor_clock(device):
        return time.process_time()
    return time.perf_counter()


def _start(config: Config, num_steps: int) -> tuple[Trainer, Iterator[RowBatch]]:
    """Return the trainer of an untrained run, and its micro-batches. Raises UserError."""
    steps = max(config.train.steps, WARM_UP_STEPS + num_steps)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, num_workers=0),
        train=dataclasses.replace(config.train, steps=steps),
    )
    config = with_init_tokenizer(config)
    device = pick_device(config.train.device)
    task_type = task_class(type(config.task))
    set_threads(config.train.threads)
    seed_everything(config.train.seed)
    kind = task_type.dataset.kind_of(config)
    sources = open_sources(config.data.train, config.data, config.input.image_size, kind)
    first_rows: Any = [
        Subset(source, range(min(len(source), MAX_TOKENIZER_ROWS)))  # pyright: ignore[reportArgumentType]
        for source in sources
    ]
    tokenizer = obtain_tokenizer(config, first_rows)
    prepared = task_type.prepare(config, sources, None)
    vocab_size = config.tokenizer.vocab_size
    if config.init is not None or config.tokenizer.path is not None:
        vocab_size = tokenizer.vocab_size
    sizes = Sizes(vocab_size=vocab_size, mask_id=tokenizer.mask_id, labels=prepared.labels)
    with device:
        task = build_untrained(config, sizes)
    if device.type == "cpu":
        _require_memory(expected_memory(config, task))
    trainer = Trainer(config.train, config.out, task, device=device, texts={})
    dataset = task_type.dataset(prepared.sources, config, tokenizer, training=True)
    choose_threads(task, device)
    loader = train_loader(dataset, consumed=0, rank=processes.rank(), world=processes.world_size())
    return trainer, iter(loader)


def _require_memory(needed: float) -> None:
    """Raise UserError if this machine has less memory than a step needs."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"a step needs about {needed / 2**30:.0f} GiB of memory, "
            f"and there are {available / 2**30:.0f}; {FIX_FOR_MEMORY}"
        )


def lines(measured: Mapping[str, Any]) -> list[str]:
    """Return lines to print of the values that `bench` returns."""
    (_, step_seconds), *parts = measured["seconds"].items()
    parts_text = ", ".join(f"{name} {1000 * seconds:,.1f}" for name, seconds in parts)
    values = {
        **measured,
        "flops_per_row": measured["flops_per_row"] / 1e9,
        "flops_per_second": measured["flops_per_second"] / 1e9,
        "peak": measured["peak"] / 1e9,
        "step_milliseconds": 1000 * step_seconds,
        "parts": parts_text,
        "gib": measured["memory"] / 2**30,
    }
    texts = (
        "step: {step_milliseconds:,.1f} ms of {clock} ({parts}), median of {steps} steps of "
        "{rows:,} rows",
        "speed: {rows_per_second:,.4g} rows a second, {rows_per_core_second:,.4g} a core-second, "
        "{tokens_per_second:,.4g} tokens a second, texts of {text_length:.1f} tokens",
        "arithmetic: {flops_per_row:,.3g} GFLOP a row, {flops_per_second:,.4g} GFLOP/s, "
        "MFU {mfu:.3f} of {peak:,.4g} GFLOP/s, {peak_of}",
        "memory: {gib:.2f} GiB at most",
        "loader: {loader_rows_per_core_second:,.4g} rows a core-second, "
        "{loader_share:.1%} of the core-seconds of the steps",
    )
    return [text.format_map(values) for text in texts]


@dataclass
class StepTimes:
    """Medians over steps, in seconds."""

    parts: dict[str, float]
    """Of the step (its first entry) and of its parts, by the device's clock."""
    wall_seconds: float
    core_seconds: float
    fastest_wall_seconds: float


def _time_steps(trainer: Trainer, micro_batches: Sequence[RowBatch]) -> StepTimes:
    """Train on all micro-batches and return the times of the steps after the warm-up."""
    device = trainer.device
    accumulation = trainer.config.accumulation
    parts_of_steps: list[dict[str, float]] = []
    wall_seconds: list[float] = []
    core_seconds_of_steps: list[float] = []
    starts = range(0, len(micro_batches), accumulation)
    for first in progress(starts, "measuring steps", len(micro_batches) // accumulation):
        parts: dict[str, float] = defaultdict(float)
        last_mark = start = now(device)

        def mark(part: str, parts: dict[str, float] = parts) -> None:
            nonlocal last_mark
            previous_mark = last_mark
            last_mark = now(device)
            parts[part] += last_mark - previous_mark

        trainer.mark = mark
        wall_start = time.perf_counter()
        core_start = core_seconds()
        trainer.train_step([*micro_batches[first : first + accumulation]])
        trainer.step += 1
        parts_of_steps.append({"step": now(device) - start, **parts})
        wall_seconds.append(time.perf_counter() - wall_start)
        core_seconds_of_steps.append(core_seconds() - core_start)
    counted = parts_of_steps[WARM_UP_STEPS:]
    return StepTimes(
        parts={
            name: statistics.median(step[name] for step in counted) for name in parts_of_steps[-1]
        },
        wall_seconds=statistics.median(wall_seconds[WARM_UP_STEPS:]),
        core_seconds=statistics.median(core_seconds_of_steps[WARM_UP_STEPS:]),
        fastest_wall_seconds=min(wall_seconds[WARM_UP_STEPS:]),
    )


def _count_tokens(batches: Sequence[RowBatch], config: Config) -> tuple[float, float]:
    """Return the mean tokens per row and per text, padding left out."""
    num_images = 0
    text_lengths: list[int] = []
    for batch in batches:
        for part in batch.parts:
            for name in ("images_BCHW", "right_BCHW"):
                num_images += len(part.where) * hasattr(part, name)
            for name in ("is_padding_BT", "right_is_padding_BT"):
                is_padding_BT = getattr(part, name, None)
                if is_padding_BT is not None:
                    text_lengths += (~is_padding_BT).sum(1).tolist()
    num_rows = sum(len(batch.where) for batch in batches)
    num_tokens = num_images * (1 + config.input.num_patches) + sum(text_lengths)
    return num_tokens / num_rows, sum(text_lengths) / max(len(text_lengths), 1)


def reachable(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the FLOP/s of a large matrix product, and a description of it."""
    side = MATRIX_SIDE_ON_CPU if device.type == "cpu" else MATRIX_SIDE
    factor = torch.randn(side, side, device=device).to(dtype)
    other_factor = torch.randn(side, side, device=device).to(dtype)
    seconds: list[float] = []
    for _ in range(1 + MATRIX_PRODUCTS):
        start = now(device)
        torch.mm(factor, other_factor)
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds[1:]), f"a product of {side}² matrices here"
