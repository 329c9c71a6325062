"""The log of a run: log.jsonl, tensorboard/ and lines on the console."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.utils.console import CONSOLE, PATIENCE, print_line
from eve_vl.utils.file_io import has_fields, write_file
from eve_vl.utils.json_lines import json_lines, read_json_lines
from eve_vl.utils.memory import peak_memory

LOG = "log.jsonl"
STOPPED_EARLY = "stopped early"  # start of the note of a run that train.patience ended
STEPS_TIMED = 4  # first steps, before the first estimate of the remaining time
DETAILS = ("core_seconds", "lr", "rsum", "rerank_k")  # numbers that the console leaves out


def read_log(run: Path) -> list[dict]:
    """Return the whole rows of a run's log, oldest first. Raises UserError.

    All have a `kind` and a `step`, notes a `text`. The other values of training and validation rows
    are numbers, MeasuredValue where they have an interval.
    """
    rows = []
    for json_row in read_json_lines(run / LOG, kind=str, step=int):
        row = from_json(json_row)
        if row["kind"] in ("train", "val"):
            row = {name: value for name, value in row.items() if _is_usable(row, name)}
        if row["kind"] != "note" or has_fields(row, text=str):
            rows.append(row)
    return rows


def _is_usable(row: Mapping[str, object], name: str) -> bool:
    """Return whether a value of a training or validation row is a number or its kind."""
    return name == "kind" or has_fields(row, **{name: float})


def _is_detail(name: str, values: Mapping[str, float]) -> bool:
    """Return whether the console leaves out a number: counts, parts, baselines."""
    stem = name
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if stem in values:
            return True
    is_count = name.startswith("num_") or "_per_" in name
    return is_count or "/" in name or name in DETAILS or name.startswith("r_mean_k")


class RunLog:
    """Log of one run; it drops rows after the first step, a new run's all."""

    def __init__(self, run: Path, *, first_step: int, num_steps: int, enabled: bool):
        self.enabled = enabled
        self.first_step = first_step
        self.num_steps = num_steps
        self.earlier_rows: list[dict] = []  # of a resumed run, in the process that writes the log
        if not enabled:
            return
        if first_step:
            self.earlier_rows = [row for row in read_log(run) if row["step"] <= first_step]
        write_file(run / LOG, json_lines(map(to_json, self.earlier_rows)))
        self.file = (run / LOG).open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.printed_at = time.monotonic()
        self.bar = Progress(
            TextColumn("[bold]steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=CONSOLE,
            disable=not CONSOLE.is_terminal,
            speed_estimate_period=math.inf,
        )
        self.bar.add_task("", total=num_steps, completed=first_step, note="")
        (self.steps,) = self.bar.tasks
        self.bar.start()

    def set_num_steps(self, num_steps: int) -> None:
        """Show another number of steps from now on."""
        self.num_steps = num_steps
        if self.enabled:
            self.bar.update(self.steps.id, total=num_steps)

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write one row of `kind` train or val to the file, TensorBoard and the console."""
        if not self.enabled:
            return
        self.file.write(json_lines([{"kind": kind, "step": step, **to_json(values)}]))
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train" and not self.bar.disable:  # more would leave no room for the bar
            self.bar.update(self.steps.id, note=f"loss {values['loss']:.4g}")
            return
        numbers = []
        for name, value in values.items():
            if not _is_detail(name, values):
                numbers.append(f"{name} {value:.4g}{getattr(value, 'spread', '')}")
        remaining = self._remaining_time() if kind == "train" else ""
        self.print_line(f"{kind:5} {self._position(step)}  {'  '.join(numbers)}{remaining}")

    def tick(self, step: int) -> None:
        """Show that a step is done on the bar or, sometimes, as a line.

        That is after STEPS_TIMED steps, and after PATIENCE seconds without a line.
        """
        if not self.enabled:
            return
        self.bar.update(self.steps.id, completed=step)
        if step == self.first_step + STEPS_TIMED and not self.steps.finished:
            seconds = 1 / (self.steps.speed or math.inf)
            memory = peak_memory() / 2**30
            remaining = self._remaining_time()
            self.print_line(f"{seconds:.2g} s a step{remaining}, {memory:.2f} GiB of memory so far")
        elif self.bar.disable and time.monotonic() - self.printed_at > PATIENCE:
            self.print_line(f"step  {self._position(step)}{self._remaining_time()}")

    def _position(self, step: int) -> str:
        width = len(str(self.num_steps))
        return f"{step:>{width}}/{self.num_steps}"

    def _remaining_time(self) -> str:
        seconds = self.steps.time_remaining  # None until two steps are done
        if seconds is None:
            return ""
        return f"  ETA {int(seconds) // 60}:{int(seconds) % 60:02}"

    def print_line(self, text: str) -> None:
        """Show one line."""
        if self.enabled:
            self.printed_at = time.monotonic()
            print_line(text)

    def note(self, step: int, text: str) -> None:
        """Print one line and add it to the log, once."""
        if not self.enabled:
            return
        # after a crash before the validation row it comes again
        is_new = all(row.get("text") != text for row in self.earlier_rows)
        if is_new:
            self.file.write(json_lines([{"kind": "note", "step": step, "text": text}]))
        self.print_line(text)

    def close(self) -> None:
        """Finish the progress bar and the files."""
        if not self.enabled:
            return
        if not self.bar.disable:
            with suppress(OSError):
                self.bar.stop()
        self.board.close()
        self.file.close()
