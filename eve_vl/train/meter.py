"""Averages of a step's terms, and throughput, between two log lines."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from eve_vl.config import TrainConfig
from eve_vl.train import processes
from eve_vl.train.learning_rate import learning_rate
from eve_vl.utils.cores import core_seconds

COUNTS = "/counts"  # name in a meter's state of: steps, seconds, loading seconds, CPU core-seconds
TIMING = ("samples_per_second", "loader_share", "core_seconds")
"""Numbers of training that differ between equal runs."""


class Meter:
    """Averages of terms, and speed, between two log lines.

    Validation and saving count as CPU core-seconds, not as seconds.
    """

    def __init__(self, state: Mapping[str, Tensor] | None = None):
        """Start a window, or continue one from the sums that `state` returned."""
        self.terms = dict(state or {})
        counts = self.terms.pop(COUNTS, None)
        num_steps = 0.0
        seconds = 0.0
        loading_seconds = 0.0
        cores = 0.0
        if counts is not None:
            num_steps, seconds, loading_seconds, cores = counts.tolist()
        self.num_steps = int(num_steps)
        self.loading_seconds = loading_seconds
        self.start = time.perf_counter() - seconds
        self.cores_start = core_seconds() - cores

    def state(self) -> dict[str, Tensor]:
        """Return the sums of this window; empty without steps."""
        if self.num_steps == 0:
            return {}
        counts = [
            self.num_steps,
            time.perf_counter() - self.start,
            self.loading_seconds,
            core_seconds() - self.cores_start,
        ]
        state = {name: value.cpu() for name, value in self.terms.items()}
        state[COUNTS] = torch.tensor(counts, dtype=torch.float64)
        return state

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's terms."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.num_steps += 1

    def result(self, config: TrainConfig, step: int) -> dict[str, float]:
        """Return the averages of this window and the CPU core-seconds, over all processes."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        names = sorted(self.terms)
        sums = processes.sum_over_processes(torch.stack([self.terms[name] for name in names]))
        cores = torch.tensor(core_seconds() - self.cores_start, dtype=torch.float64)
        means = (sums / (self.num_steps * processes.world_size())).tolist()
        return {
            **dict(zip(names, means, strict=True)),
            "lr": learning_rate(step - 1, config),
            "samples_per_second": self.num_steps * config.batch_size / seconds,
            "loader_share": self.loading_seconds / seconds,
            "core_seconds": processes.sum_over_processes(cores).item(),
        }
