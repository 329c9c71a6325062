"""Measure the cost of pre-training steps: EVE and baselines (the paper's Table 1).

    python benchmarks/step_cost.py --recipe base --batch 4 --repeats 2 --threads 1 --memory-cap 12 --json FILE

All tasks share the weights of one model and take turns within one process, so other work on the
machine affects all equally. Forward and backward are timed together. The optimiser is timed
separately, because its time does not depend on the batch. With one thread, times are processor
time; with more threads or on a GPU, wall time. Ratios are medians (least–largest) of the rounds.
All tasks run the same code: ITM's three fusion passes are one pass of three times the batch, tokens
are predicted only where they are masked, and no encoder pass is computed twice.

Memory is that of a training step with the optimiser's state, in a separate process; for batches
that were not run, a line through the two largest measured batches gives the estimate. An epoch uses
each task's largest batch (~: estimated, not run), optimiser included, as in the paper. ITC uses the
other pairs of its own batch as negatives, so the largest batch shows its cost, not its quality.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from eve_vl.utils.memory import keep_memory
from eve_vl.utils.threads import yield_cores

yield_cores()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from step_variants import (  # noqa: E402
    BASELINE,
    MAX_STEP_SECONDS,
    Peak,
    Variant,
    at,
    growth,
    in_own_process,
    largest_batch,
    made_up_batch,
    tasks_of_one_model,
    variants,
)
from timing import machine, ratio  # noqa: E402
from torch import nn  # noqa: E402

from eve_vl.config import Config  # noqa: E402
from eve_vl.data.masked_batches import PairBatch  # noqa: E402
from eve_vl.recipes import get_recipe  # noqa: E402
from eve_vl.run.bench import has_processor_clock, now  # noqa: E402
from eve_vl.run.flops import inspect_config  # noqa: E402
from eve_vl.train.devices import autocast, pick_device, pick_dtype  # noqa: E402
from eve_vl.train.optimizer import build_optimizer  # noqa: E402
from eve_vl.utils.errors import UserError  # noqa: E402
from eve_vl.utils.seeds import seed_everything  # noqa: E402
from eve_vl.utils.threads import set_threads  # noqa: E402

GIB = 2**30
OPTIMIZER_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cost of one task at the common batch and, if searched, the largest that fits."""

    name: str
    decoder_depth: int
    paper_hours_per_epoch: float
    gflop_per_sample: float
    """Forward and backward."""
    seconds_per_sample: float
    seconds_per_sample_rounds: list[float]
    """Seconds of forward and backward, one per round."""
    peak_memory_gib: float | None
    peaks: list[Peak]
    largest_batch: int | None
    largest_batch_verified: bool
    seconds_per_sample_at_largest_rounds: list[float]
    """Empty if the largest batch is unknown or takes more than a minute per step."""
    whole_step_per_sample_at_largest: float | None
    """Seconds per pair of an epoch, with the optimiser's share."""

    def over(self, eve: "Row") -> dict[str, Any]:
        """Return this task's costs over another's."""
        median, low, high = ratio(self.seconds_per_sample_rounds, eve.seconds_per_sample_rounds)
        epochs = self.whole_step_per_sample_at_largest, eve.whole_step_per_sample_at_largest
        return {
            "gflop_over_eve": self.gflop_per_sample / eve.gflop_per_sample,
            "seconds_over_eve": median,
            "seconds_over_eve_range": [low, high],
            "epoch_over_eve": epochs[0] / epochs[1] if epochs[0] and epochs[1] else None,
            "paper_over_eve": self.paper_hours_per_epoch / eve.paper_hours_per_epoch,
        }


class Steps:
    """Tasks, ready to run."""

    def __init__(self, chosen: Sequence[Variant], device: torch.device):
        self.train, self.device = chosen[0].config.train, device
        self.dtype = pick_dtype(self.train.dtype, device)
        self.tasks, self.shared = tasks_of_one_model([variant.config for variant in chosen], device)

    def run(self, index: int, batch: PairBatch) -> float:
        """Run forward and backward of one task and return its seconds per sample."""
        for parameter in self.shared.values():
            parameter.grad = None

        def step() -> None:
            with autocast(self.device, self.dtype):
                loss = self.tasks[index](batch).loss
            loss.backward()

        return self.seconds(step) / len(batch.where)

    def rounds(
        self, batches: Mapping[int, PairBatch], repeats: int, what: str
    ) -> dict[int, list[float]]:
        """Run the tasks in turn; return seconds per sample by round, after a warm-up."""
        seconds: dict[int, list[float]] = {index: [] for index in batches}
        for _, index in progress(list(product(range(1 + repeats), batches)), what):
            seconds[index].append(self.run(index, batches[index].to(self.device)))
        return {index: found[1:] for index, found in seconds.items()}

    def optimizer(self) -> float:
        """Return seconds of clipping and an optimiser step on the last task's gradients."""
        optimizer = build_optimizer(self.shared.items(), self.train, products=self.dtype)

        def step() -> None:
            nn.utils.clip_grad_norm_(self.shared.values(), 1.0)
            optimizer.step()

        step()  # creates the optimiser's state
        return statistics.median(self.seconds(step) for _ in range(OPTIMIZER_STEPS))

    def seconds(self, step: Callable[[], None]) -> float:
        """Return the seconds of a call."""
        start = now(self.device)
        step()
        return now(self.device) - start


def measured_memory(
    chosen: Sequence[Variant], args: argparse.Namespace, cap: float | None
) -> tuple[list[list[Peak]], list[tuple[int | None, bool]]]:
    """Return the peaks of each variant and its largest batch within a cap.

    The batch comes with True if a run has verified it. Without --memory there are neither peaks nor
    batches.
    """
    peaks: list[list[Peak]] = [[] for _ in chosen]
    largest: list[tuple[int | None, bool]] = [(None, False)] * len(chosen)
    for index in progress(range(len(chosen)) if args.memory else (), "memory"):
        run = partial(in_own_process, chosen[index].config, texts=args.texts)
        peaks[index] = growth(run, args.batch)
        if cap is not None:
            largest[index] = largest_batch(run, peaks[index], cap)
    return peaks, largest


def measure(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Return the table, ready for JSON. Raises UserError."""
    seed_everything(config.train.seed)
    device = pick_device(config.train.device)
    chosen = variants(config, args.decoder_depths)
    cap = args.memory_cap and args.memory_cap * GIB
    if args.memory and cap is None and device.type == "cuda":
        cap = torch.cuda.get_device_properties(device).total_memory
    peaks, largest = measured_memory(chosen, args, cap)
    steps = Steps(chosen, device)
    batch = made_up_batch(config, args.batch, args.texts)
    seconds = steps.rounds(
        dict.fromkeys(range(len(chosen)), batch), args.repeats, f"steps of {args.batch}"
    )
    fitting = {
        index: made_up_batch(config, size, args.texts)
        for index, (size, _) in enumerate(largest)
        if size and at(peaks[index], size, "seconds") <= MAX_STEP_SECONDS
    }
    at_largest = steps.rounds(fitting, args.repeats, "steps of the largest batch")
    optimizer_seconds = steps.optimizer()
    text_length = batch.ids_BT.shape[1]
    rows = []
    for index, variant in enumerate(chosen):
        size, is_verified = largest[index]
        there = at_largest.get(index, [])
        padded = replace(
            variant.config,
            input=replace(config.input, text_length=text_length, padded_text_length=0),
        )
        row = Row(
            name=variant.name,
            decoder_depth=variant.decoder_depth,
            paper_hours_per_epoch=variant.paper_hours,
            gflop_per_sample=inspect_config(padded).flops_per_step / 1e9,
            seconds_per_sample=statistics.median(seconds[index]),
            seconds_per_sample_rounds=seconds[index],
            peak_memory_gib=at(peaks[index], args.batch) / GIB if peaks[index] else None,
            peaks=peaks[index],
            largest_batch=size,
            largest_batch_verified=is_verified,
            seconds_per_sample_at_largest_rounds=there,
            whole_step_per_sample_at_largest=statistics.median(there) + optimizer_seconds / size
            if there and size
            else None,
        )
        rows.append(row)
    eves = [row for row, variant in zip(rows, chosen, strict=True) if variant.is_eve]
    own = getattr(config.task, "decoder_depth", None)
    reference = next((row for row in eves if row.decoder_depth == own), eves[0])
    baseline = next(row for row in rows if row.name == BASELINE)
    return {
        "recipe": config.recipe,
        "batch": args.batch,
        "texts": args.texts,
        "text_length": text_length,
        "memory_cap_gib": cap and cap / GIB,
        "setting": setting(steps),
        "optimizer_seconds_per_step": optimizer_seconds,
        "reference": reference.name,
        "rows": [asdict(row) | row.over(reference) for row in rows],
        "baseline_by_decoder": [
            {"decoder_depth": eve.decoder_depth} | baseline.over(eve) for eve in eves
        ],
    }


def setting(steps: Steps) -> dict[str, str]:
    """Return the settings that the times depend on."""
    on_gpu = {"processor": torch.cuda.get_device_name()} if steps.device.type == "cuda" else {}
    clock = "processor time" if has_processor_clock(steps.device) else "wall clock"
    return machine() | on_gpu | {"clock": clock, "dtype": str(steps.dtype).removeprefix("torch.")}


def progress(turns: Sequence[Any], what: str) -> Any:
    """Iterate with a progress bar on stderr."""
    return track(turns, what, console=Console(stderr=True), transient=True)


# What people see


def headline(result: Mapping[str, Any]) -> str:
    """Return the settings and the machine in words."""
    texts = (
        "texts of full length"
        if result["texts"] == "full"
        else f"captions padded to {result['text_length']} tokens"
    )
    words = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    return f"{result['recipe']}: {result['batch']} made-up pairs a step, {texts}; {words}"


def spread(row: Mapping[str, Any]) -> str:
    """Format a ratio of times with least and largest."""
    return "{:.2f} ({:.2f}–{:.2f})".format(row["seconds_over_eve"], *row["seconds_over_eve_range"])


def number(value: float | None, form: str = ".2f") -> str:
    """Format a number that may be None."""
    return "" if value is None else format(value, form)


def print_table(header: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table without its empty columns.

    header: names of all columns, separated by |.
    """
    columns = [column for column in zip(header.split("|"), *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for first, *cells in zip(*columns, strict=True):
        print(
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)),
            sep="  ",
        )


def print_result(result: Mapping[str, Any]) -> None:
    """Print the cost of the tasks, and the baseline over EVE by decoder depth."""
    print(headline(result))
    print(
        f"optimiser: {result['optimizer_seconds_per_step']:.3g} s a step; per pair, ×: over "
        f"{result['reference']}"
    )
    rows = [
        [
            row["name"],
            number(row["gflop_per_sample"], ".3g"),
            number(row["seconds_per_sample"], ".3g"),
            number(row["gflop_over_eve"]),
            spread(row),
            number(row["peak_memory_gib"]),
            "~" * (row["largest_batch"] is not None and not row["largest_batch_verified"])
            + number(row["largest_batch"], "d"),
            number(row["whole_step_per_sample_at_largest"], ".3g"),
            number(row["epoch_over_eve"]),
            number(row["paper_over_eve"]),
        ]
        for row in result["rows"]
    ]
    fits = f"batch in {number(result['memory_cap_gib'], '.4g')} GiB"
    print_table(
        f"task|GFLOP|s|× GFLOP|× s|GiB at {result['batch']}|{fits}|s there|× epoch|× paper", rows
    )
    by_decoder = [
        [
            f"decoder of {row['decoder_depth']}",
            number(row["gflop_over_eve"]),
            spread(row),
            number(row["epoch_over_eve"]),
            number(row["paper_over_eve"]),
        ]
        for row in result["baseline_by_decoder"]
    ]
    print_table(f"{BASELINE} over EVE|× GFLOP|× s|× epoch|× paper", by_decoder)


def parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """Return the flags and the recipe's config. Exits with one line on errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--recipe",
        default="base",
        help="recipe whose shapes to measure (random images and texts, no training)",
    )
    add("--batch", type=int, default=8, help="pairs per step, the same for every task")
    add(
        "--decoder-depths",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="blocks of EVE's pixel decoder, a row each",
    )
    add("--repeats", type=int, default=3, help="rounds after the warm-up")
    lengths = "14 ± 4 tokens, padded to the longest, or as long as the model takes"
    add("--texts", choices=("captions", "full"), default="captions", help=lengths)
    add(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure memory, in separate processes",
    )
    cap = "GiB for the search for the largest batch; default: all of a GPU, and no search on CPU"
    add("--memory-cap", type=float, help=cap)
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="autocast type, as for --train.dtype",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=0, help="0: OMP_NUM_THREADS if set, else all cores")
    add("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(argv)
    for name in ("batch", "repeats", "memory_cap"):
        if (value := getattr(args, name)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} {value} is not positive")
    if args.threads < 0:
        parser.error(f"--threads {args.threads} is negative")
    if args.memory_cap and not args.memory:
        parser.error("--memory-cap has no use with --no-memory")
    try:
        config = get_recipe(args.recipe)
        variants(config, args.decoder_depths)
    except UserError as error:
        parser.error(str(error))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    return args, replace(
        config,
        train=replace(config.train, dtype=args.dtype, device=args.device, threads=args.threads),
    )


def main() -> None:
    """Measure, print tables and write the numbers on request."""
    args, config = parsed(sys.argv[1:])
    keep_memory()
    set_threads(args.threads)
    try:
        result = measure(config, args)
    except UserError as error:
        sys.exit(str(error))
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
