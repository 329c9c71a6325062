"""Kill trainings at random moments, resume with the same command, compare with undisturbed runs.

    PYTHONPATH=. python tests/kills.py --kills 100 --seed 0

Most trainings are forks of this process, whose imports are done; a quarter are the true command
line. Weights, optimiser, generators, best weights, metrics.json, bad_samples.jsonl and all rows of
the log but their timing must be equal to the bit.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

import eve_vl.report.page
import eve_vl.run.training  # all of it here, not in every fork
import eve_vl.tasks.masked_signal.task
import eve_vl.tasks.vqa.task
from helpers.killed_trainings import (
    MOMENTS,
    SIGNALS,
    STEPS,
    Kill,
    Training,
    kill,
    measure_durations,
)
from helpers.run_comparison import run_differences

FLAGS = (
    f"--out run --train.steps {STEPS} --train.save-every 3 --train.val-every 4 --train.log-every 2 "
    "--train.batch-size 8 --train.accumulation 2 "
    "--model.dropout 0.1 --model.drop-path 0.2 --data.flip --data.augment color"
).split()
SHARE_OF_COMMANDS = 0.25


def make_data(folder: Path) -> None:
    """Write pairs, some of whose images are broken."""
    rng = np.random.default_rng(0)
    train_rows = []
    val_rows = []
    for number in range(40):
        path = folder / f"{number}.png"
        pixels = rng.integers(0, 256, (32, 32 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        row = {"image": path.name, "caption": f"an image of noise, number {number}"}
        train_rows.append(json.dumps(row))
        if number % 9 == 5:
            path.write_bytes(b"no image")
        else:
            val_rows.append(json.dumps(row))
    (folder / "train.jsonl").write_text("\n".join(train_rows) + "\n")
    (folder / "val.jsonl").write_text("\n".join(val_rows) + "\n")


def undisturbed(base: Path, name: str) -> Path:
    """Return the folder of a command that is not killed."""
    return base / f"alone {name}"


def commands_of(base: Path) -> dict[str, tuple[str, ...]]:
    """Return the commands whose runs are killed, by name."""
    data = ("--data.train", str(base / "train.jsonl"), "--data.val", str(base / "val.jsonl"))
    pretrain = ("pretrain", "tiny", *FLAGS, *data, "--data.max-invalid-fraction", "1")
    start = str(undisturbed(base, "pretrain") / "run")
    scenes = ["--data.train", "scenes:val", "--data.val-samples", "48", "--data.num-workers", "0"]
    return {
        "pretrain": (*pretrain, "--data.num-workers", "0"),
        "workers": (*pretrain, "--data.num-workers", "2"),
        "finetune": ("finetune", "scenes_vqa", "--init", start, *FLAGS, *scenes),
    }


def run_undisturbed(folder: Path, command: tuple[str, ...]) -> None:
    """Run a command to its end. Raises RuntimeError."""
    folder.mkdir()
    training = Training(folder=folder, command=command, is_command=False)
    training.wait()
    if training.status:
        raise RuntimeError(training.console.read_text())


@dataclass
class Trial:
    """A run that was killed one to three times and then resumed to its end."""

    folder: Path
    kills: list[Kill]
    problems: list[str]
    """Differences from the undisturbed run, or how it failed to end."""

    @property
    def faults(self) -> list[str]:
        kills = ", ".join(map(str, self.kills))
        faults = [f"{self.folder.name} ({kills}): {problem}" for problem in self.problems]
        for each_kill in self.kills:
            if each_kill.fault:
                faults.append(f"{self.folder.name} ({each_kill}): {each_kill.fault}")
        return faults


def run_trial(
    rng: Random,
    folder: Path,
    command: tuple[str, ...],
    expected_run: Path,
    durations: Mapping[str, float],
) -> Trial:
    folder.mkdir()
    kills = []
    for _ in range(rng.choice((1, 2, 3))):
        is_command = rng.random() < SHARE_OF_COMMANDS
        plan = Kill(signal=rng.choice(SIGNALS), moment=rng.choice(MOMENTS), is_command=is_command)
        training = Training(folder=folder, command=command, is_command=is_command)
        if not kill(rng, training, plan, durations):
            break  # it had ended
        kills.append(plan)
    training = Training(folder=folder, command=command, is_command=False)
    training.wait()
    if training.status:
        problem = f"status {training.status}: {training.console.read_text()[-1000:]}"
        return Trial(folder, kills, [problem])
    return Trial(folder, kills, list(run_differences(folder / "run", expected_run, STEPS)))


def print_table(trials: Sequence[Trial]) -> None:
    """Print the number of kills by signal and moment, and how they ended."""
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for trial in trials:
        for each_kill in trial.kills:
            counts[each_kill.signal, each_kill.moment].update(
                kills=1,
                unequal=bool(trial.problems),
                faults=bool(each_kill.fault),
                commands=each_kill.is_command,
            )
    print(
        f"{'signal':10}{'moment':12}"
        f"{'kills':>7}{'equal':>7}{'unequal':>9}{'odd end':>9}{'command line':>14}"
    )
    for name in SIGNALS:
        for moment in MOMENTS:
            row = counts[name, moment]
            if row:
                num_equal = row["kills"] - row["unequal"]
                print(
                    f"{name:10}{moment:12}{row['kills']:7}{num_equal:7}"
                    f"{row['unequal']:9}{row['faults']:9}{row['commands']:14}"
                )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="empty folder; default: a new temporary one")
    options = parser.parse_args()
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="eve_kills_"))
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"--out {options.out}: is not empty")
    return options


def main() -> int:
    """Kill runs; return the exit status."""
    options = parse_options()
    base = options.out
    print(f"works in {base}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    make_data(base)
    commands = commands_of(base)
    for name, command in commands.items():
        run_undisturbed(undisturbed(base, name), command)
    durations = measure_durations(base / "measured", commands["pretrain"])
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in durations.items()), flush=True)

    trials: list[Trial] = []
    num_kills = 0
    start = time.perf_counter()
    while num_kills < options.kills:
        number = len(trials)
        name = list(commands)[number % len(commands)]
        rng = Random(f"{options.seed}/{number}")
        expected_run = undisturbed(base, name) / "run"
        trial = run_trial(rng, base / f"{number} {name}", commands[name], expected_run, durations)
        trials.append(trial)
        num_kills += len(trial.kills)
        if not trial.faults:
            shutil.rmtree(trial.folder)

    print_table(trials)
    faults = [fault for trial in trials for fault in trial.faults]
    print("\n".join(faults))
    seconds = time.perf_counter() - start
    print(
        f"{num_kills} kills of {len(trials)} runs in {seconds:.0f} s, "
        f"{len(faults)} faults; {eve_vl.__file__}"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
