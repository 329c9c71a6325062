"""Kill trainings at random moments, resume with the same command, compare with undisturbed runs.

    PYTHONPATH=. python tests/kills.py --kills 100 --seed 0

Most trainings are forks of this process, whose imports are done; a quarter are the true command
line. Weights, optimiser, generators, best weights, metrics.json, bad_samples.jsonl and all rows of
the log but their timing must be equal to the bit.
"""

import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
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
from helpers.campaign_console import campaign_parser, empty_folder, table_of
from helpers.campaign_reader import lines
from helpers.killed_trainings import (
    AIMS,
    SIGNALS,
    STEPS,
    Durations,
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
COLUMNS = ("kills", "equal", "unequal", "odd end", "command")


@dataclass
class Trial:
    """A run that was killed one to three times and then resumed to its end."""

    folder: Path
    kills: list[Kill]
    problems: list[str]
    """Differences from the undisturbed run, or how it failed to end."""

    @property
    def faults(self) -> list[str]:
        """Lines about the run and about kills with an odd end."""
        kills = ", ".join(map(str, self.kills))
        faults = [f"{self.folder.name} ({kills}): {problem}" for problem in self.problems]
        for each_kill in self.kills:
            if each_kill.fault:
                faults.append(f"{self.folder.name} ({each_kill}): {each_kill.fault}")
        return faults


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
        train_rows.append(row)
        if number % 9 == 5:
            path.write_bytes(b"no image")
        else:
            val_rows.append(row)
    (folder / "train.jsonl").write_bytes(lines(train_rows))
    (folder / "val.jsonl").write_bytes(lines(val_rows))


def undisturbed(base: Path, name: str) -> Path:
    """Return the folder of a command that is not killed."""
    return base / f"alone {name}"


def commands_of(base: Path) -> dict[str, tuple[str, ...]]:
    """Return the commands whose runs are killed, by name."""
    data = ("--data.train", str(base / "train.jsonl"), "--data.val", str(base / "val.jsonl"))
    pretrain = ("pretrain", "tiny", *FLAGS, *data, "--data.max-invalid-fraction", "1")
    start = str(undisturbed(base, "pretrain") / "run")
    scenes = ("--data.train", "scenes:val", "--data.val-samples", "48", "--data.num-workers", "0")
    return {
        "pretrain": (*pretrain, "--data.num-workers", "0"),
        "workers": (*pretrain, "--data.num-workers", "2"),
        "finetune": ("finetune", "scenes_vqa", "--init", start, *FLAGS, *scenes),
    }


def run_to_the_end(folder: Path, command: tuple[str, ...]) -> str:
    """Run or resume a command undisturbed; return how it failed, empty if it did not."""
    training = Training(folder=folder, command=command, is_command=False)
    training.wait()
    if training.status:
        return f"status {training.status}: {training.console.read_text()[-1000:]}"
    return ""


def run_trial(
    rng: Random,
    folder: Path,
    command: tuple[str, ...],
    expected_run: Path,
    durations: Durations,
) -> Trial:
    """Kill a run, resume it to its end and compare it with the expected one."""
    folder.mkdir()
    kills = []
    for _ in range(rng.choice((1, 2, 3))):
        is_command = rng.random() < SHARE_OF_COMMANDS
        sent = rng.choice(SIGNALS)
        plan = Kill(
            signal=sent,
            moment=rng.choice(list(AIMS)),
            is_command=is_command,
        )
        training = Training(folder=folder, command=command, is_command=is_command)
        if not kill(rng, training, plan, durations):
            break  # it had ended
        kills.append(plan)
    failure = run_to_the_end(folder, command)
    if failure:
        return Trial(folder, kills, [failure])
    return Trial(folder, kills, list(run_differences(folder / "run", expected_run, STEPS)))


def counts_by_kind(trials: Sequence[Trial]) -> dict[str, Counter[str]]:
    """Return the number of kills by signal and moment, and how they ended."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        for each_kill in trial.kills:
            counts = table[f"{each_kill.signal} at {each_kill.moment}"]
            counts["kills"] += 1
            counts["unequal" if trial.problems else "equal"] += 1
            counts["odd end"] += bool(each_kill.fault)
            counts["command"] += each_kill.is_command
    return table


def main() -> int:
    """Kill runs; return the exit status."""
    parser = campaign_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    base = empty_folder(parser, options.out)
    print(f"works in {base}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
    make_data(base)
    commands = commands_of(base)
    for name, command in commands.items():
        undisturbed(base, name).mkdir()
        failure = run_to_the_end(undisturbed(base, name), command)
        if failure:
            raise RuntimeError(failure)
    durations = measure_durations(base / "measured", commands["pretrain"])
    print(durations, flush=True)

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

    faults = [fault for trial in trials for fault in trial.faults]
    seconds = time.perf_counter() - start
    print(table_of(counts_by_kind(trials), COLUMNS), *faults, sep="\n")
    print(f"{num_kills} kills of {len(trials)} runs in {seconds:.0f} s, {len(faults)} faults")
    print(eve_vl.__file__)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
