"""Paper Table 1 on this library: what a pre-training step of EVE and of its rivals costs.

All tasks share one model that holds every head, and take turns within one process, so that whatever else the machine does
hits all alike. Forward and backward are timed together; the optimiser apart, for its time does not depend on the batch.
"""

import dataclasses
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from eve_vl.config import Config
from eve_vl.data.batch import PairBatch
from eve_vl.model.pixel_decoder import PixelDecoder
from eve_vl.run import seed_everything, set_threads
from eve_vl.study.memory import (
    GIB,
    MAX_STEP_SECONDS,
    Largest,
    Measure,
    Memory,
    growth,
    largest_batch,
    subprocess_measure,
    synchronize,
    with_quick_weights,
)
from eve_vl.study.variants import Texts, Variant, gflop_per_sample, made_up_batch, variants, with_all_heads
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.train.device import autocast, pick_device, pick_dtype
from eve_vl.train.optim import build_optimizer

OPTIMIZER_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task: what it costs at the common batch and at the largest that fits."""

    variant: Variant
    gflop: float
    """Forward and backward, per sample."""
    seconds: tuple[float, ...]
    """Forward and backward per sample, one per round."""
    memory: Memory | None = None
    largest: Largest | None = None
    seconds_at_largest: tuple[float, ...] = ()
    """Empty where the largest batch is not known, or a step of it takes more than a minute."""

    @property
    def median(self) -> float:
        """Seconds per sample at the common batch."""
        return statistics.median(self.seconds)

    def whole_step_at_largest(self, optimizer_seconds: float) -> float | None:
        """Return seconds per sample at the largest batch, the optimiser's share included: what an epoch costs."""
        if not self.seconds_at_largest or self.largest is None:
            return None
        return statistics.median(self.seconds_at_largest) + optimizer_seconds / self.largest.batch


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The table."""

    config: Config
    batch: int
    texts: Texts
    text_length: int
    """Tokens that the texts of the common batch are padded to."""
    memory_cap: int | None
    """Bytes."""
    setting: dict[str, Any]
    """Machine, threads, type, clock."""
    optimizer_seconds: float
    """Clipping and AdamW, per step."""
    rows: tuple[Row, ...]

    @property
    def reference(self) -> Row:
        """EVE with the recipe's own decoder depth, else the first that was measured."""
        eves = [row for row in self.rows if row.variant.is_eve]
        own = getattr(self.config.task, "decoder_depth", None)
        return next((row for row in eves if row.variant.decoder_depth == own), eves[0])

    def ratios(self, row: Row, eve: Row) -> tuple[float, float, float]:
        """Return seconds per sample of a row over EVE's: median, least and largest of the rounds."""
        found = [a / b for a, b in zip(row.seconds, eve.seconds, strict=True)]
        return statistics.median(found), min(found), max(found)

    def epoch_ratio(self, row: Row, eve: Row) -> float | None:
        """Return the cost of an epoch over EVE's, each at its largest batch, optimiser included: what paper Table 1 gives."""
        ours, theirs = (each.whole_step_at_largest(self.optimizer_seconds) for each in (row, eve))
        return ours / theirs if ours is not None and theirs is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        eve = self.reference
        rows = []
        for row in self.rows:
            median, low, high = self.ratios(row, eve)
            values: dict[str, Any] = {
                "name": row.variant.name,
                "decoder_depth": row.variant.decoder_depth,
                "gflop_per_sample": row.gflop,
                "seconds_per_sample": row.median,
                "seconds_per_sample_rounds": list(row.seconds),
                "gflop_over_eve": row.gflop / eve.gflop,
                "seconds_over_eve": median,
                "seconds_over_eve_range": [low, high],
                "paper_hours_per_epoch": row.variant.paper_hours,
            }
            if row.memory is not None:
                values["peak_memory_gib"] = row.memory.at(self.batch) / GIB
                values["peaks"] = [dataclasses.asdict(peak) for peak in row.memory.peaks]
            if row.largest is not None:
                values["largest_batch"] = row.largest.batch
                values["largest_batch_verified"] = row.largest.is_verified
                values["seconds_per_sample_at_largest_rounds"] = list(row.seconds_at_largest)
                values["whole_step_per_sample_at_largest"] = row.whole_step_at_largest(self.optimizer_seconds)
                values["epoch_over_eve"] = self.epoch_ratio(row, eve)
            rows.append(values)
        return {
            "recipe": self.config.recipe,
            "batch": self.batch,
            "texts": self.texts,
            "text_length": self.text_length,
            "memory_cap_gib": self.memory_cap / GIB if self.memory_cap else None,
            "setting": self.setting,
            "optimizer_seconds_per_step": self.optimizer_seconds,
            "reference": eve.variant.name,
            "rows": rows,
        }


class Switchboard:
    """One model with every head, that can be any of the tasks."""

    def __init__(self, rows: Sequence[Variant], device: torch.device, dtype: torch.dtype):
        config = with_all_heads(rows)
        task = with_quick_weights(config, device)
        assert isinstance(task, MaskedSignal)
        self.task, self.config, self.device, self.dtype = task, config, device, dtype
        self.decoder: PixelDecoder = task.pixel_decoder
        self.decoder_blocks = self.decoder.blocks
        self.match_head = task.contrast.match_head
        self.seconds = clock(device)

    def step(self, variant: Variant, batch: PairBatch) -> float:
        """Run forward and backward of one task and return its seconds per sample."""
        self.task.zero_grad(set_to_none=True)
        self.task.settings = variant.task
        self.decoder.blocks = self.decoder_blocks[: variant.decoder_depth]
        self.task.contrast.match_head = self.match_head if variant.task.itm_weight else None

        def run() -> None:
            with autocast(self.device, self.dtype):
                loss: Tensor = self.task(batch).loss
            loss.backward()

        seconds = self.seconds(run)
        self.decoder.blocks, self.task.contrast.match_head = self.decoder_blocks, self.match_head
        return seconds / len(batch.where)

    def optimizer(self) -> float:
        """Return the seconds of clipping and one optimiser step, on the gradients of the last task."""
        optimizer = build_optimizer(self.task.named_parameters(), self.config.train, products=self.dtype)

        def run() -> None:
            nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
            optimizer.step()

        run()  # makes the state
        return statistics.median(self.seconds(run) for _ in range(OPTIMIZER_STEPS))


def clock(device: torch.device) -> Callable[[Callable[[], None]], float]:
    """Return a function that times another: events on CUDA; on CPU the processor's time of one thread, which other work on
    the machine does not lengthen, and the wall's with several threads, which spin while they wait."""
    if device.type == "cuda":

        def events(run: Callable[[], None]) -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            synchronize(device)
            start.record()
            run()
            end.record()
            synchronize(device)
            return start.elapsed_time(end) / 1000

        return events
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def timed(run: Callable[[], None]) -> float:
        start = now()
        run()
        return now() - start

    return timed


def measure_speed(
    config: Config,
    *,
    batch: int = 8,
    decoder_depths: Sequence[int] = (1, 2, 4, 8),
    repeats: int = 3,
    texts: Texts = "captions",
    memory: bool = True,
    memory_cap: float | None = None,
    console: Console,
) -> Speed:
    """Measure a recipe's table; device, type and threads are those of config.train.

    memory_cap: GiB; default: all that a GPU has, on CPU no largest batch is looked for. Raises UserError.
    """
    set_threads(config)
    seed_everything(config.train.seed)
    device = pick_device(config.train.device)
    dtype = pick_dtype(config.train.dtype, device)
    chosen = variants(config, decoder_depths)
    cap = None if memory_cap is None else round(memory_cap * GIB)
    if cap is None and device.type == "cuda":
        cap = torch.cuda.get_device_properties(device).total_memory
    with _progress(console) as progress:
        found = list(_memories(chosen, batch, texts, cap if memory else None, device, progress)) if memory else []
        board = Switchboard(chosen, device, dtype)
        batches = [made_up_batch(config, batch, texts).to(device)] * len(chosen)
        seconds = _rounds(board, chosen, batches, repeats, progress, f"steps of {batch}")
        at_largest: list[tuple[float, ...]] = [()] * len(chosen)
        fitting = [
            index
            for index, (variant_memory, largest) in enumerate(found)
            if largest and largest.batch > 0 and variant_memory.at(largest.batch, "seconds") <= MAX_STEP_SECONDS
        ]
        if fitting:
            sizes = [largest.batch for _, largest in found if largest]
            batches = [made_up_batch(config, sizes[index], texts) for index in fitting]
            times = _rounds(board, [chosen[i] for i in fitting], batches, repeats, progress, "steps of the largest batch")
            for index, each in zip(fitting, times, strict=True):
                at_largest[index] = each
        optimizer_seconds = board.optimizer()
    text_length = made_up_batch(config, batch, texts).ids_BT.shape[1]
    rows = []
    for index, variant in enumerate(chosen):
        variant_memory, largest = found[index] if found else (None, None)
        rows.append(
            Row(
                variant=variant,
                gflop=gflop_per_sample(variant, text_length),
                seconds=seconds[index],
                memory=variant_memory if largest is None else largest.memory,
                largest=largest,
                seconds_at_largest=at_largest[index],
            )
        )
    return Speed(
        config=config,
        batch=batch,
        texts=texts,
        text_length=text_length,
        memory_cap=cap if memory else None,
        setting=setting(device, dtype),
        optimizer_seconds=optimizer_seconds,
        rows=tuple(rows),
    )


def setting(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the times depend on."""
    on_cuda, threads = device.type == "cuda", torch.get_num_threads()
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.processor() or platform.machine(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "clock": "CUDA events" if on_cuda else "processor time" if threads == 1 else "wall clock",
        "torch": torch.__version__,
    }


def _memories(
    chosen: Sequence[Variant], batch: int, texts: Texts, cap: int | None, device: torch.device, progress: Progress
) -> Iterator[tuple[Memory, Largest | None]]:
    measure: Measure = subprocess_measure(device, torch.get_num_threads())
    for variant in progress.track(chosen, description="memory"):
        memory = growth(variant.config, batch, texts, measure)
        yield memory, None if cap is None else largest_batch(variant.config, memory, cap, texts, measure)


def _rounds(
    board: Switchboard,
    chosen: Sequence[Variant],
    batches: Sequence[PairBatch],
    repeats: int,
    progress: Progress,
    description: str,
) -> list[tuple[float, ...]]:
    """Let the tasks take turns; the first round, in which kernels are compiled and memory is got, does not count."""
    seconds: list[list[float]] = [[] for _ in chosen]
    turns = list(itertools.product(range(1 + repeats), range(len(chosen))))
    for round_number, index in progress.track(turns, description=description):
        found = board.step(chosen[index], batches[index].to(board.device))
        if round_number:
            seconds[index].append(found)
    return [tuple(each) for each in seconds]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
