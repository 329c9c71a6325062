"""Kill trainings at random moments, resume with the same command, compare with undisturbed runs.

    PYTHONPATH=. python tests/kills.py --kills 100 --seed 0

Most trainings are forks of this process, whose imports are done; a quarter are the true command line. Weights, optimiser,
generators, best weights, metrics.json, bad_samples.jsonl and all rows of the log but their timing must be equal to the bit.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import eve_vl.report.page
import eve_vl.run.training  # all of it here, not in every fork
import eve_vl.tasks.masked_signal.task
import eve_vl.tasks.vqa.task
from eve_vl.cli import main as eve

SIGNALS = (
    "KILL",
    "TERM",
    "INT",
    "HUP",
    "INT TERM",
)  # the last as a terminal and a parent process send them
MOMENTS = ("start-up", "step", "save", "validation")
TIMING = ("samples_per_second", "loader_share", "seconds", "core_seconds")
STEPS = 12
OFTEN = (
    "--train.steps",
    STEPS,
    "--train.save-every",
    3,
    "--train.val-every",
    4,
    "--train.log-every",
    2,
)
NOISE = ("--model.dropout", 0.1, "--model.drop-path", 0.2, "--data.flip", "--data.augment", "color")
SMALL = ("--train.batch-size", 8, "--train.accumulation", 2)
PATIENCE = 120  # seconds until a training counts as one that does not end


@dataclass(kw_only=True)
class Kill:
    """One kill: what was sent, when, and what was seen of it."""

    signal: str
    moment: str
    is_command: bool
    status: int | None = None
    odd: str = ""
    """What should not have been on the console, or a status that is not the signal's."""

    def __str__(self) -> str:
        return f"{self.signal} at {self.moment}{' of the command' * self.is_command}"


@dataclass(kw_only=True)
class Training:
    """A training as a process of its own."""

    folder: Path
    command: tuple[str, ...]
    is_command: bool
    process: Any = None
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.console = self.folder / "console.txt"
        self.console.touch()  # a signal may come before the process has opened it
        if self.is_command:
            with self.console.open("w") as out:
                full = [sys.executable, "-m", "eve_vl", *self.command]
                self.process = subprocess.Popen(
                    full, cwd=self.folder, stdout=out, stderr=out, start_new_session=True
                )
        else:
            self.process = multiprocessing.get_context("fork").Process(target=self._run)
            self.process.start()

    def _run(self) -> None:
        os.setsid()
        os.chdir(self.folder)
        out = os.open(self.console, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(out, stream)
        try:
            eve(self.command)
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self.process.poll() if self.is_command else self.process.exitcode

    def wait(self, until: Callable[[], bool] = lambda: False, pause: float = 0.001) -> bool:
        """Wait for something; return whether it came before the training's end."""
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            if until():
                return True
            if self.status is not None:
                return False
            time.sleep(pause)
        raise TimeoutError(f"{self.folder}: {' '.join(self.command)} does not end")

    def rows(self, kind: str) -> list[int]:
        """The steps of which the log has a row."""
        log = self.folder / "run/log.jsonl"
        text = log.read_text() if log.is_file() else ""
        return [int(step) for step in re.findall(rf'"kind": "{kind}", "step": (\d+), ', text)]

    def saves(self) -> bool:
        """Whether a checkpoint or best weights are being written."""
        names = [*_inside(self.folder / "run"), *_inside(self.folder / "run/checkpoints")]
        return any(
            re.fullmatch(r"\.(step_\d+|best)\.(eve-\w+\.)?(tmp|old)", name) for name in names
        )


def _inside(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def aim(rng: Random, training: Training, moment: str, durations: Mapping[str, float]) -> bool:
    """Wait for a moment of a training; return whether it came."""
    reached = max([0, *training.rows("train")])
    match moment:
        case "start-up":
            delay = (
                rng.random()
                * rng.choice((0.2, 1))
                * durations["start command" if training.is_command else "start fork"]
            )
            return (
                not training.wait(lambda: time.perf_counter() - training.start > delay)
                or training.status is None
            )
        case "save":
            skipped = rng.randrange(3)
            for _ in range(skipped):
                if not training.wait(training.saves, 0.0002) or not training.wait(
                    lambda: not training.saves(), 0.0002
                ):
                    return False
            hit = training.wait(training.saves, 0.0002)
            time.sleep(rng.choice((0, rng.random() * 0.02)))
            return hit
        case "validation":  # between the row of the training step and that of the validation
            step = rng.choice([step for step in (4, 8, 12) if step > reached] or [STEPS])
            hit = training.wait(lambda: step in training.rows("train"))
            time.sleep(rng.random() * durations["validation"])
            return hit
    step = rng.choice([step for step in range(2, STEPS, 2) if step > reached] or [STEPS])
    hit = training.wait(lambda: step in training.rows("train"))
    time.sleep(rng.random() * durations["step"] * 2)
    return hit


def kill(rng: Random, training: Training, one: Kill, durations: Mapping[str, float]) -> bool:
    """Send a signal at a moment; return whether the training was still there to get it."""
    if not aim(rng, training, one.moment, durations) or training.status is not None:
        training.wait()
        return False
    if one.moment == "validation" and training.rows("val")[-1:] == training.rows("train")[-1:]:
        one.moment = "step"  # too late
    numbers = [signal.Signals[f"SIG{name}"] for name in one.signal.split()]
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):  # it took the first at once
            os.kill(training.process.pid, number)
        time.sleep(rng.random() * 0.05 * (number != numbers[-1]))
    try:
        training.wait()
    except TimeoutError:
        os.killpg(training.process.pid, signal.SIGKILL)
        one.odd = "does not end"
    one.status = training.status
    text = training.console.read_text(errors="replace")
    if (
        "Traceback" in text and not one.odd and one.signal != "KILL"
    ):  # loader workers of a killed run say that it is gone
        one.odd = f"traceback: {text.strip().splitlines()[-1][:150]}"
    elif (
        one.status not in {0, *(status for number in numbers for status in (-number, 128 + number))}
        and not one.odd
    ):
        one.odd = f"status {one.status}: {text.strip().splitlines()[-1:]}"
    return True


def differences(one: Path, two: Path) -> Iterator[str]:
    """Yield in what two finished runs differ."""
    for run in (one, two):
        for path in run.rglob("*"):
            if path.suffix in (".tmp", ".old") or path.name == ".lock":
                yield f"{path.name} left behind"
    last = (
        f"checkpoints/step_{STEPS:08d}",
        "best",
    )  # a signal that saves at once leaves other earlier checkpoints
    names = [
        {f"{part}/{path.name}" for part in last for path in (run / part).glob("*.safetensors")}
        for run in (one, two)
    ]
    if names[0] != names[1]:
        yield f"files {sorted(names[0] ^ names[1])}"
    for name in sorted(names[0] & names[1]):
        a, b = (load_file(run / name) for run in (one, two))
        if a.keys() != b.keys():
            yield f"names in {name}"
        for key in a.keys() & b.keys():
            if key == "meter./counts":
                a[key], b[key] = a[key][:1], b[key][:1]  # steps; seconds follow
            if a[key].numpy().tobytes() != b[key].numpy().tobytes():
                yield f"{key} in {name}"
                break
    for name in (
        "metrics.json",
        "best/state.json",
        "answers.json",
        "tokenizer.json",
        "config.json",
    ):
        a, b = ((run / name).read_bytes() if (run / name).is_file() else b"" for run in (one, two))
        if a != b:
            yield name
    for name in ("log.jsonl", "bad_samples.jsonl"):
        a, b = (_rows(run / name) for run in (one, two))
        if a != b:
            first = next(
                (pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), (len(a), len(b))
            )
            yield f"{name}: {str(first)[:300]}"


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [{key: value for key, value in row.items() if not key.endswith(TIMING)} for row in rows]


def make_data(folder: Path) -> None:
    """Write pairs, some of whose images are broken, and questions."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        image = Image.fromarray(rng.integers(0, 256, (32, 32 + number, 3), dtype=np.uint8))
        image.save(folder / f"{number}.png")
        if number % 9 == 5:
            (folder / f"{number}.png").write_bytes(b"no image")
        rows.append({"image": f"{number}.png", "caption": f"an image of noise, number {number}"})
    good = [row for number, row in enumerate(rows) if number % 9 != 5]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))


def recipes(base: Path) -> dict[str, tuple[str, ...]]:
    """Return the commands whose runs are killed, by name."""
    data = (
        "--data.train",
        base / "train.jsonl",
        "--data.val",
        base / "val.jsonl",
        "--data.max-invalid-fraction",
        1,
    )
    pretrain = ("pretrain", "tiny", "--out", "run", *OFTEN, *NOISE, *SMALL, *data)
    tuned = (
        "finetune",
        "scenes_vqa",
        "--init",
        base / "alone pretrain/run",
        "--out",
        "run",
        *OFTEN,
        *NOISE,
        *SMALL,
    )
    tuned = (
        *tuned,
        "--data.train",
        "scenes:val",
        "--data.val-samples",
        48,
        "--data.num-workers",
        0,
    )
    commands: dict[str, Sequence[object]] = {
        "pretrain": (*pretrain, "--data.num-workers", 0),
        "workers": (*pretrain, "--data.num-workers", 2),
        "finetune": tuned,
    }
    return {name: tuple(map(str, command)) for name, command in commands.items()}


def run_alone(base: Path, name: str, command: tuple[str, ...]) -> None:
    """Run a command to its end. Raises RuntimeError."""
    (base / f"alone {name}").mkdir()
    training = Training(folder=base / f"alone {name}", command=command, is_command=False)
    training.wait()
    if training.status:
        raise RuntimeError(training.console.read_text())


def trial(
    rng: Random, folder: Path, command: tuple[str, ...], durations: Mapping[str, float]
) -> tuple[list[Kill], str]:
    """Kill a run one to three times, let it go on to its end; return the kills, and how it failed to end if it did."""
    folder.mkdir()
    kills = []
    for _ in range(rng.choice((1, 2, 3))):
        is_command = rng.random() < 0.25
        one = Kill(signal=rng.choice(SIGNALS), moment=rng.choice(MOMENTS), is_command=is_command)
        training = Training(folder=folder, command=command, is_command=is_command)
        if not kill(rng, training, one, durations):
            break  # it had ended
        kills.append(one)
    training = Training(folder=folder, command=command, is_command=False)
    training.wait()
    failed = (
        f"status {training.status}: {training.console.read_text()[-1000:]}"
        if training.status
        else ""
    )
    return kills, failed


def main() -> int:
    """Kill runs; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="empty folder to work in; default: a new temporary one"
    )
    options = parser.parse_args()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="eve_kills_"))
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"--out {options.out}: is not empty")
    print(f"works in {options.out}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    make_data(options.out)
    commands = recipes(options.out)
    for name, command in commands.items():
        run_alone(options.out, name, command)
    durations = measure(options.out / "measured", commands["pretrain"])
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in durations.items()), flush=True)
    table: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    faults, number, done, start = [], 0, 0, time.perf_counter()
    while done < options.kills:
        name = list(commands)[number % len(commands)]
        folder, rng = options.out / f"{number} {name}", Random(f"{options.seed}/{number}")
        kills, failed = trial(rng, folder, commands[name], durations)
        problems = (
            [failed]
            if failed
            else list(differences(options.out / f"alone {name}/run", folder / "run"))
        )
        shown = ", ".join(map(str, kills))
        faults += [f"{folder.name} ({shown}): {problem}" for problem in problems]
        for one in kills:
            row = table[one.signal, one.moment]
            row.update(kills=1, unequal=bool(problems), odd=bool(one.odd), commands=one.is_command)
            faults += [f"{folder.name} ({one}): {one.odd}"] * bool(one.odd)
        number, done = number + 1, done + len(kills)
        if not problems and not any(one.odd for one in kills):
            shutil.rmtree(folder)
    print(
        f"{'signal':10}{'moment':12}{'kills':>7}{'equal':>7}{'unequal':>9}{'odd end':>9}{'command line':>14}"
    )
    for (name, moment), row in sorted(
        table.items(), key=lambda item: (SIGNALS.index(item[0][0]), MOMENTS.index(item[0][1]))
    ):
        counts = f"{row['kills']:7}{row['kills'] - row['unequal']:7}{row['unequal']:9}{row['odd']:9}{row['commands']:14}"
        print(f"{name:10}{moment:12}{counts}")
    print("\n".join(faults))
    print(
        f"{done} kills of {number} runs in {time.perf_counter() - start:.0f} s, {len(faults)} faults; {eve_vl.__file__}"
    )
    return bool(faults)


def measure(folder: Path, command: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds that a start, a step and a validation take here."""
    folder.mkdir()
    durations = {}
    for name, is_command in (("start fork", False), ("start command", True)):
        shutil.rmtree(folder / "run", ignore_errors=True)
        training = Training(folder=folder, command=command, is_command=is_command)
        training.wait(lambda one=training: bool(one.rows("train")))
        durations[name] = time.perf_counter() - training.start
        training.wait(lambda one=training: 4 in one.rows("train"))
        start = time.perf_counter()
        training.wait(lambda one=training: 4 in one.rows("val"))
        durations["validation"] = time.perf_counter() - start
        training.wait(lambda one=training: 6 in one.rows("train"))
        start = time.perf_counter()
        training.wait(lambda one=training: 8 in one.rows("train"))
        durations["step"] = (time.perf_counter() - start) / 2
        training.wait()
    return durations


if __name__ == "__main__":
    sys.exit(main())
