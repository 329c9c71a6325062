"""What the demo prints: progress, a line per finished run, and the table of results."""

import time
from collections.abc import Mapping, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eve_vl.config import Config
from eve_vl.demo.scores import Result, ResultTable
from eve_vl.demo.train_and_test import SPLITS
from eve_vl.train.run_log import read_log
from eve_vl.utils.console import CONSOLE, print_line

SUMMARY_NUMBERS = ("mlm_acc", "mlm_acc_wrong_image", "vqa_acc", "nlvr2_acc", "tr1", "ir1")


class ProgressBars:
    """A bar per run on a terminal; other outputs get a line when a run starts."""

    def __init__(self, configs: Mapping[str, Config]):
        self.configs = configs
        self.start = time.perf_counter()
        self.finished: set[str] = set()
        self.progress = Progress(
            TextColumn("{task.description:18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=CONSOLE,
            disable=not CONSOLE.is_terminal,
        )
        self.bars = {}
        for name, config in configs.items():
            self.bars[name] = self.progress.add_task(name, total=config.train.steps, start=False)

    def started(self, name: str, log: object) -> None:
        """Print that a run starts, where no bar shows it."""
        if not CONSOLE.is_terminal:
            steps = self.configs[name].train.steps
            print_line(f"{name}: {steps:,} steps start; progress is in {log}")

    def succeeded(self, name: str, numbers: Mapping[str, float]) -> None:
        """Print the numbers of a finished run."""
        self.finished.add(name)
        seconds = time.perf_counter() - self.start
        print_line(f"{seconds:5.0f} s  {name:18} {summary(numbers)}")

    def update(self) -> None:
        """Move the bars to the logged steps."""
        for name, bar in self.bars.items():
            num_done = self._num_done(name)
            if num_done:
                self.progress.start_task(bar)
            self.progress.update(bar, completed=num_done)

    def _num_done(self, name: str) -> int:
        config = self.configs[name]
        if name in self.finished:
            return config.train.steps
        steps = [row["step"] for row in read_log(config.out) if row["kind"] == "train"]
        return max(steps, default=0)


def summary(numbers: Mapping[str, float]) -> str:
    """Return the main numbers of a run as text."""
    parts = []
    for split in SPLITS:
        for name in SUMMARY_NUMBERS:
            full_name = name + split.suffix
            if full_name in numbers:
                parts.append(f"{full_name} {numbers[full_name]:.3f}")
    return "  ".join(parts)


def table_lines(tables: Sequence[ResultTable]) -> list[str]:
    """Return the tables as lines, each number's splits below each other."""
    lines = [f"{'':32}{'pre-trained':>12}{'from scratch':>14}{'baseline':>10}  gain, 95 % interval"]
    of_splits = zip(*(table.results for table in tables), strict=True)
    for results in of_splits:
        for split, result in zip(SPLITS, results, strict=True):
            title = f"  {split.name}" if split.suffix else result.title
            lines.append(table_line(title, result))
    return lines


def table_line(title: str, result: Result) -> str:
    """Return a result as a line."""
    line = f"{title:32}{result.pretrained:12.3f}{result.scratch:14.3f}{result.baseline:10.3f}"
    gain = result.gain
    if gain is not None:
        line += f"  {gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), n {gain.n:,}"
    return line
