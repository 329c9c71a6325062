"""Shared helpers of the benchmarks: timing in turns, ratios, goals, the machine."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Limit of a ratio."""

    limit: float
    at_least: bool = False

    def check(self, ratio: float) -> str:
        """Return `met` or `not met`."""
        is_met = ratio >= self.limit if self.at_least else ratio <= self.limit
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}  {'met' if is_met else 'NOT MET'}"


def machine() -> dict[str, str]:
    """Describe the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "clock": "processor time of the process",
    }


def interleaved(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Run the variants in turn and return processor seconds per round.

    repeats: rounds after a warm-up round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, variant in variants.items():
            start = time.process_time()
            variant()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Return median, least and largest of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def spread(values: Sequence[float]) -> str:
    """Format values as median (least–largest)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
