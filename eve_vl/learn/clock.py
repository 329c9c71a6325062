"""Measured times of `eve learn`, and times as text."""

import statistics
import time

from eve_vl.config import Config
from eve_vl.learn import settings
from eve_vl.run.bench import StepSeconds, step_seconds
from eve_vl.train.run_log import read_log


class Clock:
    """Measured times; tests replace it."""

    def __init__(self, start: float):
        self.start = start

    def now(self) -> float:
        """Return the wall seconds since the start."""
        return time.monotonic() - self.start

    def measure_step(self, config: Config) -> StepSeconds:
        """Return the measured seconds of a training step."""
        return step_seconds(config, settings.NUM_TIMED_STEPS)

    def logged_step(self, config: Config) -> float:
        """Return the seconds of a step that a run has logged; 0 if unknown."""
        speeds = [
            row["samples_per_second"] for row in read_log(config.out) if row["kind"] == "train"
        ]
        if not speeds:
            return 0.0
        return config.train.batch_size / statistics.median(speeds)


def time_text(seconds: float) -> str:
    """Return a time as text: 45s, 12m, 1h05m."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes}m"
    return f"{hours}h{minutes:02}m"
