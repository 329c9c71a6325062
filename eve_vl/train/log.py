"""What a run tells: JSON lines and TensorBoard for programs, a console for people, a list of bad samples for both."""

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from eve_vl.config import TrainConfig
from eve_vl.metrics.intervals import CERTAINTY, from_json, to_json
from eve_vl.train import collectives
from eve_vl.train.checkpoint import COUNTS
from eve_vl.train.device import peak_memory
from eve_vl.train.optim import learning_rate
from eve_vl.utils.atomic_io import write_file
from eve_vl.utils.console import CONSOLE, PATIENCE, print_line
from eve_vl.utils.errors import BadSampleError, SharedError
from eve_vl.utils.runtime import core_seconds
from eve_vl.utils.safe_io import has_fields, parse_json, read_bytes, read_json, reading

LOG = "log.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
STOPPED_EARLY = "stopped early"  # how the note of a run that its patience has ended begins
TIMING = ("samples_per_second", "loader_share", "core_seconds")
"""Numbers of training that differ from one time to the next."""
NUM_TOLD = 5  # rows that cannot be used are shown so often, afterwards only listed
STEPS_TIMED = 4  # of a start, before the duration of the rest is told


def read_log(run: Path) -> list[dict]:
    """Return the rows of a run's log, oldest first: all have a `kind` and a `step`, notes a `text`, and all else in those of
    training and validation are numbers, Estimates where they know how sure they are. Other rows are damaged and left out.

    Raises UserError.
    """
    rows = _read_rows(run / LOG, kind=str, step=int)
    return [from_json(row) for row in rows if row["step"] >= 0 and _is_sound(**row)]


def read_numbers(path: Path) -> dict[str, float]:
    """Return the numbers of a file such as metrics.json by name; what else it holds is left out. Raises UserError."""
    values = read_json(path, dict)
    return from_json(
        {name: value for name, value in values.items() if name == CERTAINTY or has_fields(values, **{name: float})}
    )


def read_bad_samples(run: Path) -> dict[str, dict[str, str]]:
    """Return the rows that could not be used, each with `where` and `reason`, and `row` but of earlier versions; by what no
    other row is called. Raises UserError."""
    return {_name(**row): row for row in _read_rows(run / BAD_SAMPLES, where=str, reason=str)}


def _name(*, where: str, row: object = "", **_: object) -> str:
    return f"{row} {where}".lstrip()


def _is_sound(*, kind: str, text: object = None, certainty: object = None, **values: Any) -> bool:
    """Whether a row of the log has values of the types that were written; certainty looks after itself."""
    if kind not in ("train", "val"):
        return kind != "note" or isinstance(text, str)
    return has_fields(values, **dict.fromkeys(values, float))


def _read_rows(path: Path, **kinds: type) -> list[dict]:
    """Return the rows of a JSON-lines file that have values of these kinds; one that a crash cut short is left out."""
    rows = []
    with reading(path):
        lines = read_bytes(path).split(b"\n") if path.exists() else ()
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if has_fields(row, **kinds)]


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class RunLog:
    """The log of one run; a resumed run drops rows later than the step it resumes from, one that starts anew all."""

    def __init__(self, run: Path, *, first_step: int, num_steps: int, enabled: bool):
        self.enabled, self.first_step, self.num_steps = enabled, first_step, num_steps
        self.old: list[dict] = []
        if not enabled:
            return
        if first_step:
            self.old = [row for row in read_log(run) if row["step"] <= first_step]
        write_file(run / LOG, _json_lines(map(to_json, self.old)))
        self.file = (run / LOG).open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.said = time.monotonic()
        name, note = TextColumn("[bold]steps"), TextColumn("{task.fields[note]}")
        columns = name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note
        self.bar = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal, speed_estimate_period=math.inf)
        self.bar.add_task("", total=num_steps, completed=first_step, note="")
        (self.steps,) = self.bar.tasks
        self.bar.start()

    def has_row(self, kind: str, step: int) -> bool:
        """Whether there was such a row when the run went on; only the process that writes the log knows."""
        return any((row["kind"], row["step"]) == (kind, step) for row in self.old)

    def values(self, name: str | None) -> list[float]:
        """Return a number of all validations so far; only the process that writes the log knows."""
        return [row[name] for row in self.old if row["kind"] == "val" and name in row]

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write one row of `kind` train or val everywhere."""
        if not self.enabled:
            return
        self.file.write(_json_lines([{"kind": kind, "step": step, **to_json(values)}]))
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        hidden = ("core_seconds", "lr")
        shown = {name: value for name, value in values.items() if "/" not in name and name not in hidden}
        text = "  ".join(f"{name} {value:.4g}{getattr(value, 'spread', '')}" for name, value in shown.items())
        if not self.bar.disable and kind == "train":
            self.bar.update(self.steps.id, note=f"loss {values['loss']:.4g}")  # more would leave no bar
        else:
            self.print_line(f"{kind:5} {self._at(step)}  {text}{self._eta() * (kind == 'train')}")

    def show(self, step: int, shown: Mapping[str, np.ndarray | str]) -> None:
        """Show images, uint8 (H, W, 3), and texts in TensorBoard."""
        for name, value in shown.items():
            if isinstance(value, str):
                self.board.add_text(name, value, step)
            else:
                self.board.add_image(name, value, step, dataformats="HWC")

    def hparams(self, config: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        """Keep the config's numbers, texts and switches beside the numbers of the end in TensorBoard."""
        if self.enabled:
            plain = {name: value for name, value in config.items() if isinstance(value, str | int | float)}
            self.board.add_hparams(plain, {f"hparams/{name}": value for name, value in numbers.items()}, run_name=".")

    def tick(self, step: int) -> None:
        """Show that a step is done: on the bar; as a line when the first few are timed, or if none was shown for long."""
        if not self.enabled:
            return
        self.bar.update(self.steps.id, completed=step)
        if step == self.first_step + STEPS_TIMED and not self.steps.finished:
            seconds = 1 / (self.steps.speed or math.inf)
            self.print_line(f"{seconds:.2g} s a step{self._eta()}, {peak_memory() / 2**30:.2f} GiB of memory so far")
        elif self.bar.disable and time.monotonic() - self.said > PATIENCE:
            self.print_line(f"step  {self._at(step)}{self._eta()}")

    def _at(self, step: int) -> str:
        return f"{step:>{len(str(self.num_steps))}}/{self.num_steps}"

    def _eta(self) -> str:
        left = self.steps.time_remaining  # None until two steps are done
        return "" if left is None else f"  ETA {int(left) // 60}:{int(left) % 60:02}"

    def print_line(self, text: str) -> None:
        """Show one line."""
        if self.enabled:
            self.said = time.monotonic()
            print_line(text)

    def note(self, step: int, text: str) -> None:
        """Show one line and keep it in the log, once."""
        if self.enabled:
            if all(row.get("text") != text for row in self.old):  # a crash before the row of validation has this said again
                self.file.write(_json_lines([{"kind": "note", "step": step, "text": text}]))
            self.print_line(text)

    def close(self) -> None:
        """Finish the progress bar and the files."""
        if not self.enabled:
            return
        if not self.bar.disable:
            with contextlib.suppress(OSError):
                self.bar.stop()
        self.board.close()
        self.file.close()


class BadSamples:
    """Rows that could not be used: each is logged once; too many of them stop the run."""

    def __init__(self, run: Path, *, num_rows: int, max_share: float, writes: bool):
        self.path = run / BAD_SAMPLES
        self.num_rows, self.max_share, self.writes = num_rows, max_share, writes
        self.known = {*(before := read_bad_samples(run))}
        if writes and before:  # without the half of a row that a crash may have left
            write_file(self.path, _json_lines(before.values()))

    def add(self, errors: Iterable[BadSampleError], num_seen: int) -> None:
        """Note unusable rows. Raises UserError when there are more than max_share of the rows seen so far (of at least
        1,000, or of all there are)."""
        new = {
            name: error for error in errors if not self.known & {error.where, name := _name(where=error.where, row=error.row)}
        }
        if not new:
            return
        self.known |= new.keys()
        if self.writes:
            with self.path.open("a") as file:
                file.write(_json_lines({"where": e.where, "reason": e.reason, "row": e.row} for e in new.values()))
            if len(self.known) <= NUM_TOLD:
                print_line("\n".join(f"row left out: {error}" for error in new.values()))
        seen = min(self.num_rows, max(num_seen, 1000))
        if len(self.known) > self.max_share * seen:
            last = next(reversed(new.values()))
            raise SharedError(
                f"{len(self.known)} of {seen} rows to train on cannot be used, "
                f"more than data.max_invalid_fraction {self.max_share:g}; "
                f"all so far are in {self.path}; the last: {last}; "
                "repair them (eve data check lists all, of rows held out too) or allow more with --data.max-invalid-fraction"
            )


class Meter:
    """Averages terms and measures speed from one log line to the next; time spent on validation and saving does not count, but
    as work of the cores."""

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        self.num_steps = 0
        self.loading_seconds = 0.0
        self.cores_start = core_seconds()
        self.seconds = self.cores = 0.0
        self.start = time.perf_counter()

    def resume(self) -> None:
        """Let both clocks go on from now, after the time that this window has had: what was done before is no training."""
        self.start = time.perf_counter() - self.seconds
        self.cores_start = core_seconds() - self.cores

    def state(self) -> dict[str, Tensor]:
        """Return the sums of this window, for `restore`; empty if it has no steps yet."""
        if not self.num_steps:
            return {}
        seconds = time.perf_counter() - self.start
        counts = [self.num_steps, seconds, self.loading_seconds, core_seconds() - self.cores_start]
        return {name: value.cpu() for name, value in self.terms.items()} | {COUNTS: torch.tensor(counts, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Undo `state`."""
        if COUNTS in state:
            steps, self.seconds, self.loading_seconds, *cores = state[COUNTS].tolist()
            self.num_steps, self.cores = int(steps), sum(cores)  # older states have none
            self.terms = {name: value.to(device) for name, value in state.items() if name != COUNTS}

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Time spent waiting for data."""
        start = time.perf_counter()
        yield
        self.loading_seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's terms."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.num_steps += 1

    def result(self, config: TrainConfig, step: int) -> dict[str, float]:
        """Return the averages of this window over all processes, and how long all of their cores worked for it."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        names = sorted(self.terms)
        means = collectives.sum_over_processes(torch.stack([self.terms[name] for name in names]))
        cores = torch.tensor(core_seconds() - self.cores_start, dtype=torch.float64)
        means = (means / (self.num_steps * collectives.world_size())).tolist()
        return dict(zip(names, means, strict=True)) | {
            "lr": learning_rate(step - 1, config),
            "samples_per_second": self.num_steps * config.batch_size / seconds,
            "loader_share": self.loading_seconds / seconds,
            "core_seconds": collectives.sum_over_processes(cores).item(),
        }
