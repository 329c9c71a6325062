"""Records of a run: log, TensorBoard, console, unusable rows, environment.

The files are log.jsonl, tensorboard/, bad_samples.jsonl and environment.json (machine, versions).
"""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import eve_vl
from eve_vl.config import TrainConfig
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.train import processes
from eve_vl.train.checkpoint import COUNTS
from eve_vl.train.optim import learning_rate
from eve_vl.train.processes import peak_memory
from eve_vl.utils.console import CONSOLE, PATIENCE, print_line
from eve_vl.utils.errors import BadSampleError, SharedError, UserError
from eve_vl.utils.file_io import has_fields, parse_json, read_bytes, read_json, reading, write_file
from eve_vl.utils.runtime import core_seconds, usable_cores

LOG = "log.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
STOPPED_EARLY = "stopped early"  # start of the note of a run that train.patience ended
TIMING = ("samples_per_second", "loader_share", "core_seconds")
"""Numbers of training that differ between equal runs."""
NUM_SHOWN = 5  # unusable rows on the console; the file lists all
STEPS_TIMED = 4  # first steps, before the first estimate of the remaining time


def read_log(run: Path) -> list[dict]:
    """Return the whole rows of a run's log, oldest first. Raises UserError.

    All have a `kind` and a `step`, notes a `text`. The other values of training and validation rows are numbers, MeasuredValue
    where they have an interval.
    """
    rows = [from_json(row) for row in _read_rows(run / LOG, kind=str, step=int)]
    for row in rows:
        is_measured = row["kind"] in ("train", "val")
        for name in [
            name
            for name in row
            if is_measured and name != "kind" and not has_fields(row, **{name: float})
        ]:
            del row[name]
    return [row for row in rows if row["kind"] != "note" or has_fields(row, text=str)]


def read_bad_samples(run: Path) -> dict[str, dict[str, str]]:
    """Return the unusable rows by unique name. Raises UserError.

    Each has `where`, `reason` and `row`.
    """
    rows = _read_rows(run / BAD_SAMPLES, where=str, reason=str)
    return {f"{row.get('row', '')} {row['where']}".lstrip(): row for row in rows}


def _read_rows(path: Path, **kinds: type) -> list[dict]:
    """Return the rows of a JSON-lines file with values of these types.

    A crash may have cut a row short.
    """
    rows = []
    with reading(path):
        lines = read_bytes(path).split(b"\n") if path.exists() else ()
    for line in lines:
        with suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if has_fields(row, **kinds)]


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _is_detail(name: str, values: Mapping[str, float]) -> bool:
    """Return whether the console leaves out a number: counts, parts, baselines."""
    stem, is_count = name, name.startswith("num_") or "_per_" in name
    while "_" in stem:
        stem = stem.rpartition("_")[0]
        if stem in values:
            return True
    return (
        is_count
        or "/" in name
        or name in ("core_seconds", "lr", "rsum", "rerank_k")
        or name.startswith("r_mean_k")
    )


class RunLog:
    """Log of one run; it drops rows after the first step, a new run's all."""

    def __init__(self, run: Path, *, first_step: int, num_steps: int, enabled: bool):
        self.enabled, self.first_step, self.num_steps = enabled, first_step, num_steps
        self.old: list[dict] = []  # rows of a resumed run, in the process that writes the log
        if not enabled:
            return
        if first_step:
            self.old = [row for row in read_log(run) if row["step"] <= first_step]
        write_file(run / LOG, _json_lines(map(to_json, self.old)))
        self.file = (run / LOG).open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self.printed_at = time.monotonic()
        name, note = TextColumn("[bold]steps"), TextColumn("{task.fields[note]}")
        columns = name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note
        self.bar = Progress(
            *columns,
            console=CONSOLE,
            disable=not CONSOLE.is_terminal,
            speed_estimate_period=math.inf,
        )
        self.bar.add_task("", total=num_steps, completed=first_step, note="")
        (self.steps,) = self.bar.tasks
        self.bar.start()

    def row(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write one row of `kind` train or val to the file, TensorBoard and the console."""
        if not self.enabled:
            return
        self.file.write(_json_lines([{"kind": kind, "step": step, **to_json(values)}]))
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        shown = {name: value for name, value in values.items() if not _is_detail(name, values)}
        text = "  ".join(
            f"{name} {value:.4g}{getattr(value, 'spread', '')}" for name, value in shown.items()
        )
        if not self.bar.disable and kind == "train":
            self.bar.update(
                self.steps.id, note=f"loss {values['loss']:.4g}"
            )  # more would leave no room for the bar
        else:
            self.print_line(f"{kind:5} {self._at(step)}  {text}{self._eta() * (kind == 'train')}")

    def tick(self, step: int) -> None:
        """Show that a step is done on the bar or, sometimes, as a line.

        That is after STEPS_TIMED steps, and after PATIENCE seconds without a line.
        """
        if not self.enabled:
            return
        self.bar.update(self.steps.id, completed=step)
        if step == self.first_step + STEPS_TIMED and not self.steps.finished:
            seconds = 1 / (self.steps.speed or math.inf)
            self.print_line(
                f"{seconds:.2g} s a step{self._eta()}, {peak_memory() / 2**30:.2f} GiB of memory so far"
            )
        elif self.bar.disable and time.monotonic() - self.printed_at > PATIENCE:
            self.print_line(f"step  {self._at(step)}{self._eta()}")

    def _at(self, step: int) -> str:
        return f"{step:>{len(str(self.num_steps))}}/{self.num_steps}"

    def _eta(self) -> str:
        left = self.steps.time_remaining  # None until two steps are done
        return "" if left is None else f"  ETA {int(left) // 60}:{int(left) % 60:02}"

    def print_line(self, text: str) -> None:
        """Show one line."""
        if self.enabled:
            self.printed_at = time.monotonic()
            print_line(text)

    def note(self, step: int, text: str) -> None:
        """Print one line and add it to the log, once."""
        if self.enabled:
            if all(
                row.get("text") != text for row in self.old
            ):  # after a crash before the validation row it comes again
                self.file.write(_json_lines([{"kind": "note", "step": step, "text": text}]))
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


class BadSamples:
    """Unusable rows: each is listed once, and too many stop the run."""

    def __init__(self, run: Path, *, num_rows: int, max_share: float, writes: bool):
        self.path = run / BAD_SAMPLES
        self.num_rows, self.max_share, self.writes = num_rows, max_share, writes
        self.known = {*(before := read_bad_samples(run))}
        if writes and before:  # without a row that a crash cut short
            write_file(self.path, _json_lines(before.values()))

    def add(self, errors: Iterable[BadSampleError], num_seen: int) -> None:
        """List unusable rows.

        Raises SharedError above max_share of the rows seen so far, counted as at least 1,000.
        """
        named = {f"{error.row} {error.where}".lstrip(): error for error in errors}
        new = {name: error for name, error in named.items() if not self.known & {error.where, name}}
        if not new:
            return
        self.known |= new.keys()
        if self.writes:
            with self.path.open("a") as file:
                file.write(
                    _json_lines(
                        {"where": e.where, "reason": e.reason, "row": e.row} for e in new.values()
                    )
                )
            if len(self.known) <= NUM_SHOWN:
                print_line(*(f"row left out: {error}" for error in new.values()))
        seen = min(self.num_rows, max(num_seen, 1000))
        if len(self.known) > self.max_share * seen:
            last = next(reversed(new.values()))
            raise SharedError(
                f"{len(self.known)} of {seen} rows to train on cannot be used, "
                f"more than data.max_invalid_fraction {self.max_share:g}; "
                f"all so far are in {self.path}; the last: {last}; "
                "repair them (eve data check lists all, of held-out rows too) or allow more with --data.max-invalid-fraction"
            )


class Meter:
    """Averages of terms, and speed, between two log lines.

    Validation and saving count as CPU core-seconds, not as seconds.
    """

    def __init__(self, state: Mapping[str, Tensor] | None = None):
        """Start a window, or continue one from the sums that `state` returned."""
        counts = state[COUNTS].tolist() if state else [0.0] * 4
        self.terms = {name: value for name, value in (state or {}).items() if name != COUNTS}
        self.num_steps, self.loading_seconds = int(counts[0]), counts[2]
        self.start, self.cores_start = time.perf_counter() - counts[1], core_seconds() - counts[3]

    def state(self) -> dict[str, Tensor]:
        """Return the sums of this window; empty without steps."""
        if not self.num_steps:
            return {}
        counts = [
            self.num_steps,
            time.perf_counter() - self.start,
            self.loading_seconds,
            core_seconds() - self.cores_start,
        ]
        return {name: value.cpu() for name, value in self.terms.items()} | {
            COUNTS: torch.tensor(counts, dtype=torch.float64)
        }

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add one step's terms."""
        for name, value in terms.items():
            self.terms[name] = self.terms[name] + value if name in self.terms else value
        self.num_steps += 1

    def result(self, config: TrainConfig, step: int) -> dict[str, float]:
        """Return the averages of this window and the CPU core-seconds, over all processes."""
        seconds, names = max(time.perf_counter() - self.start, 1e-9), sorted(self.terms)
        means = processes.sum_over_processes(torch.stack([self.terms[name] for name in names]))
        cores = torch.tensor(core_seconds() - self.cores_start, dtype=torch.float64)
        means = (means / (self.num_steps * processes.world_size())).tolist()
        return dict(zip(names, means, strict=True)) | {
            "lr": learning_rate(step - 1, config),
            "samples_per_second": self.num_steps * config.batch_size / seconds,
            "loader_share": self.loading_seconds / seconds,
            "core_seconds": processes.sum_over_processes(cores).item(),
        }


ENVIRONMENT = "environment.json"
PACKAGE = Path(eve_vl.__file__).parent


def facts(device: torch.device) -> dict[str, Any]:
    """Return machine, versions and command of this process.

    commit: "" unless the package lies in its own git working tree; it ends in -dirty if that has changes.
    """
    program, memory = (
        Path(sys.argv[0]).name,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    command = shlex.join(["eve" if program == "__main__.py" else program, *sys.argv[1:]])
    start = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    machine = {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "device": name,
    }
    versions = {
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    versions |= {"eve_vl": eve_vl.__version__, "commit": _commit()}
    return start | machine | {"processes": processes.world_size()} | versions


def record(run: Path, device: torch.device) -> None:
    """Add the facts of this start to a run folder."""
    write_file(
        run / ENVIRONMENT, json.dumps([*read_environment(run), facts(device)], indent=1) + "\n"
    )


def read_environment(run: Path) -> list[dict[str, Any]]:
    """Return the facts of each start of a run, oldest first.

    Damaged ones are left out; empty if the file is missing or damaged.
    """
    with suppress(UserError):
        return [start for start in read_json(run / ENVIRONMENT, list) if isinstance(start, dict)]
    return []


def _processor() -> str:
    with suppress(OSError):  # Linux
        if found := re.search(
            r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        ):
            return found[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        if (
            PACKAGE.parent / ".git"
        ).exists():  # not the repository of a folder that the package is installed in
            return subprocess.run(
                command, cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
    return ""
