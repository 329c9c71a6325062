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
from typing import Any

import torch
from torch.utils.data import Subset

from eve_vl.config import Config
from eve_vl.data.batches import RowBatch
from eve_vl.data.loader import train_loader
from eve_vl.data.opening import open_sources
from eve_vl.run.inspect import forward_flops
from eve_vl.run.loading import build_untrained
from eve_vl.run.summary import expected_memory, machine_line
from eve_vl.run.training import obtain_tokenizer, tune_threads, with_init_tokenizer
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Sizes
from eve_vl.train import processes
from eve_vl.train.processes import peak_memory, pick_device, pick_dtype
from eve_vl.train.trainer import Trainer
from eve_vl.utils.console import progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.runtime import core_seconds, seed_everything, set_threads

WARM = 3  # first steps, which allocate memory and compile kernels, do not count
NUM_TEXTS = 2000  # rows of each source to train a tokenizer on
LESS = "give a smaller --train.batch-size or a larger --train.accumulation"
GEMM = {"cpu": 2048}  # side of the matrices, by device
GEMM_SIDE, GEMM_ROUNDS = 8192, 20


def bench(config: Config, num_steps: int) -> dict[str, Any]:
    """Run training steps of a recipe from random weights, on loaded batches.

    Raises UserError. The values are JSON-ready medians over steps. seconds: of a step and of its parts by the `clock` of the
    device. rows: per step. text_length: mean tokens of a text without padding, 0 without texts. rows_per_second,
    tokens_per_second: of wall time; each token counts once per step, padding does not. flops_per_row: forward and backward at
    the mean text length. peak: FLOP/s of a large matrix product here. mfu: flops_per_second / peak. memory: peak bytes of the
    process or of the GPU. loader_share: core-seconds of loading a step's rows over the step's core-seconds (on a GPU, its
    seconds).
    """
    trainer, loader = _started(config, num_steps)
    config, train = trainer.task.config, trainer.config
    device, dtype = trainer.device, pick_dtype(train.dtype, trainer.device)
    micro_batches, start = (
        [next(loader)],
        time.process_time(),
    )  # the first draws the order of an epoch
    micro_batches += itertools.islice(loader, (WARM + num_steps) * train.accumulation - 1)
    loading = (time.process_time() - start) / (len(micro_batches) - 1)
    try:
        seconds, wall, cores = _time_steps(trainer, micro_batches)
    except torch.OutOfMemoryError:
        raise UserError(f"a step does not fit the memory of {device}; {LESS}") from None
    memory, (peak, peak_of) = peak_memory(), reachable(device, dtype)
    tokens, text_length = _tokens(micro_batches, config)
    texts = dataclasses.replace(
        config.input, text_length=max(1, round(text_length)), padded_text_length=0
    )
    flops = 3 * sum(
        forward_flops(dataclasses.replace(config, input=texts), trainer.task.sizes).values()
    )
    rows, speed = train.batch_size, flops * train.batch_size / seconds["step"]
    found: dict[str, Any] = {
        "recipe": config.recipe,
        "machine": machine_line(device, dtype).removeprefix("machine: "),
    }
    found |= {
        "clock": "processor time" if has_processor_clock(device) else "wall time",
        "steps": num_steps,
    }
    found |= {
        "rows": rows,
        "text_length": text_length,
        "seconds": seconds,
        "rows_per_second": rows / wall,
    }
    found |= {
        "rows_per_core_second": rows / cores,
        "tokens_per_second": rows * tokens / wall,
        "flops_per_row": flops,
    }
    found |= {
        "peak": peak,
        "peak_of": peak_of,
        "memory": memory,
        "flops_per_second": speed,
        "mfu": speed / peak,
    }
    share = loading * train.accumulation / (cores if device.type == "cpu" else wall)
    return found | {
        "loader_rows_per_core_second": len(micro_batches[0].where) / loading,
        "loader_share": share,
    }


def step_seconds(config: Config, num_steps: int) -> tuple[float, int]:
    """Return the median wall seconds of a step with its loading, and the threads.

    Raises UserError.
    """
    trainer, loader = _started(config, num_steps)
    start = time.perf_counter()
    batches = list(itertools.islice(loader, (WARM + num_steps) * config.train.accumulation))
    loading = (time.perf_counter() - start) / (WARM + num_steps)
    return _time_steps(trainer, batches)[1] + loading, torch.get_num_threads()


def has_processor_clock(device: torch.device) -> bool:
    """Return whether `now` is processor time; several threads would spin in waits."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def now(device: torch.device) -> float:
    """Return seconds after a GPU sync.

    Processor time with one CPU thread, else wall time. Other work on the core does not lengthen processor time.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time() if has_processor_clock(device) else time.perf_counter()


def _started(config: Config, num_steps: int) -> tuple[Trainer, Iterator[RowBatch]]:
    """Return the trainer of an untrained run, and its micro-batches. Raises UserError."""
    train = dataclasses.replace(config.train, steps=max(config.train.steps, WARM + num_steps))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, num_workers=0), train=train
    )
    config = with_init_tokenizer(config)
    device, kind = pick_device(config.train.device), task_class(type(config.task))
    set_threads(config.train.threads)
    seed_everything(config.train.seed)
    sources = open_sources(
        config.data.train, config.data, config.input.image_size, kind.dataset.kind_of(config)
    )
    few: Any = [Subset(source, range(min(len(source), NUM_TEXTS))) for source in sources]  # pyright: ignore[reportArgumentType]
    tokenizer = obtain_tokenizer(config, few)
    is_known = config.init is not None or config.tokenizer.path is not None
    prepared = kind.prepare(config, sources, None)
    vocab_size = tokenizer.vocab_size if is_known else config.tokenizer.vocab_size
    with device:
        task = build_untrained(
            config, Sizes(vocab_size=vocab_size, mask_id=tokenizer.mask_id, labels=prepared.labels)
        )
    needed, there = (
        expected_memory(config, task),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    if device.type == "cpu" and needed > there:
        raise UserError(
            f"a step needs about {needed / 2**30:.0f} GiB of memory, and there are {there / 2**30:.0f}; {LESS}"
        )
    trainer = Trainer(config.train, config.out, task, device=device, texts={})
    dataset = kind.dataset(prepared.sources, config, tokenizer, training=True)
    tune_threads(trainer, dataset)
    return trainer, iter(
        train_loader(dataset, consumed=0, rank=processes.rank(), world=processes.world_size())
    )


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return lines to print of the values that `bench` returns."""
    (_, step), *parts = found["seconds"].items()
    shown = ", ".join(f"{name} {1000 * seconds:,.1f}" for name, seconds in parts)
    giga = {name: found[name] / 1e9 for name in ("flops_per_row", "flops_per_second", "peak")}
    texts = (
        "step: {ms:,.1f} ms of {clock} ({shown}), median of {steps} steps of {rows:,} rows",
        "speed: {rows_per_second:,.4g} rows a second, {rows_per_core_second:,.4g} a core-second, "
        "{tokens_per_second:,.4g} tokens a second, texts of {text_length:.1f} tokens",
        "arithmetic: {flops_per_row:,.3g} GFLOP a row, {flops_per_second:,.4g} GFLOP/s, MFU {mfu:.3f} of {peak:,.4g} GFLOP/s, "
        "{peak_of}",
        "memory: {gib:.2f} GiB at most",
        "loader: {loader_rows_per_core_second:,.4g} rows a core-second, {loader_share:.1%} of the core-seconds of the steps",
    )
    values = {**found, **giga, "ms": 1000 * step, "shown": shown, "gib": found["memory"] / 2**30}
    return [text.format_map(values) for text in texts]


def _time_steps(
    trainer: Trainer, micro_batches: Sequence[RowBatch]
) -> tuple[dict[str, float], float, float]:
    """Return medians over steps.

    These are seconds of the step and of its parts, wall seconds, CPU core-seconds.
    """
    device, num, found, wall, cores = trainer.device, trainer.config.accumulation, [], [], []
    for first in progress(
        range(0, len(micro_batches), num), "measuring steps", len(micro_batches) // num
    ):
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
    num_images = sum(
        len(part.where) * hasattr(part, name)
        for part in parts
        for name in ("images_BCHW", "right_BCHW")
    )
    masks = (
        getattr(part, name, None)
        for part in parts
        for name in ("is_padding_BT", "right_is_padding_BT")
    )
    lengths = [
        int(length)
        for is_padding_BT in masks
        if is_padding_BT is not None
        for length in (~is_padding_BT).sum(1)
    ]
    tokens = num_images * (1 + config.input.num_patches) + sum(lengths)
    return tokens / sum(len(batch.where) for batch in batches), sum(lengths) / max(len(lengths), 1)


def reachable(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the FLOP/s of a large matrix product, and a description of it."""
    side = GEMM.get(device.type, GEMM_SIDE)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(1 + GEMM_ROUNDS):
        start = now(device)
        torch.mm(one, other)
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds[1:]), f"a product of {side}² matrices here"
