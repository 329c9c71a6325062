"""A fault campaign: damaged files of every form go through the real entry points.

    PYTHONPATH=. python tests/campaign.py --inputs 20000 --seed 1 --processes 2
    PYTHONPATH=. python tests/campaign.py --seed 1 --case "tar:17"      (one input again, with its traceback)

An input may succeed or end in a UserError that is one printable line and names a file. Escapes: any other exception, a
death or a hang of the process, too much memory, files left behind. The same seed makes the same inputs.
"""

import argparse
import faulthandler
import io
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

import torch

import eve_vl
from eve_vl.utils.errors import UserError
from helpers.campaign_data import data_readers
from helpers.campaign_reader import Action, Reader
from helpers.campaign_runs import make_base, run_readers
from helpers.odd_files import make_special, odd_name

PACKAGE = str(Path(eve_vl.__file__).parent)
ALLOWED_NEW = (
    ".tar.index",
    "report.html",
    "metrics.json",
    "log.jsonl",
    "config.json",
    "tokenizer.json",
    "answers.json",
)
CHUNK = 250  # inputs that one process reads, so that what it keeps does not add up
ROOM = (
    3 * 2**30
)  # bytes of addresses beyond those at the start: a runaway must not take the machine along
SHOWN = 3  # escapes of a group that are kept

Case = tuple[str, int]


@dataclass(kw_only=True)
class Outcome:
    """What became of one input."""

    case: Case
    escapes: dict[str, str] = field(default_factory=dict)
    """Details by group: what, and where in the package."""
    succeeded: int = 0
    refused: int = 0
    seconds: float = 0.0
    peak: int = 0
    """Bytes, beyond those that the process had."""


def lay_out(reader: Reader, case: Case, seed: int, folder: Path) -> str:
    """Write one input, damaged unless it is the first; return what was done."""
    rng = Random(f"{seed}/{case[0]}/{case[1]}")
    files = reader.choose(rng, reader.files)
    chosen = files.keys() & set(reader.targets) if reader.targets else files.keys()
    names = [name for name in reader.targets or files if name in chosen] or list(files)
    target = next(iter(files)) if files.keys() != reader.files.keys() else rng.choice(names)
    kind = "special" if rng.random() < 0.03 else "damaged"
    if is_sound(reader, case):
        kind, target = "sound", ""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(
            reader.damage(rng, name, data) if name == target and kind == "damaged" else data
        )
    if kind == "special":
        kind = make_special(rng, folder / target)
    elif reader.may_rename and target and rng.random() < 0.2:
        (folder / target).rename(
            (folder / target).with_name(os.fsdecode(odd_name(rng, Path(target).name)))
        )
        kind += ", renamed"
    if target:
        reader.afterwards(rng, folder)
    return f"{target}: {kind}"


def is_sound(reader: Reader, case: Case) -> bool:
    """Whether an input is as it should be: the first of each reader, as proof that what follows could be read at all."""
    return case[1] == 0 and reader.has_sound


def run_case(reader: Reader, case: Case, seed: int, work: Path, limit: int) -> Outcome:
    """Make an input, give it to the reader's entry points, and look at what came of it."""
    shutil.rmtree(work, ignore_errors=True)
    folder, rng, outcome = work / "case", Random(case[1]), Outcome(case=case)
    folder.mkdir(parents=True)
    lay_out(reader, case, seed, folder)
    names = {os.fsdecode(path.name) for path in folder.rglob("*")} | {
        str(folder),
        "rows.jsonl",
    }  # the training data of runs
    for config in filter(
        Path.is_file, folder.rglob("config.json")
    ):  # a damaged one may ask for other files
        names |= {
            os.path.normpath(path)
            for path in re.findall(r'"([^"\n]*/[^"\n]*)"', config.read_text(errors="replace"))
        }
    start = time.perf_counter()
    for name in (
        reader.actions
        if is_sound(reader, case)
        else rng.sample(list(reader.actions), min(reader.num_actions, len(reader.actions)))
    ):
        shutil.rmtree(work / "new", ignore_errors=True)
        before, printed = (
            {*folder.rglob("*")},
            io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict"),
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        had = memory("VmRSS")
        sys.stdout = sys.stderr = printed
        try:
            act(reader.actions[name], folder)
            outcome.succeeded += 1
        except UserError as error:
            outcome.refused += 1
            if is_sound(reader, case):
                outcome.escapes[f"sound input refused by {name}"] = str(error)
            odd = (
                {"/", "is not the name of a file"} if case[0] == "names" else set()
            )  # there the damage is the name that was asked for
            for problem in problems_of(str(error), names | odd):
                outcome.escapes[f"message {problem} @ {innermost(error)}"] = f"{name}: {error!r}"
        except SystemExit as error:
            outcome.succeeded += 1
            if error.code not in (0, 1):
                outcome.escapes[f"exit status {error.code}"] = name
        except BaseException as error:
            outcome.escapes[f"{type(error).__name__} @ {innermost(error)}"] = (
                f"{name}: {''.join(traceback.format_exception(error))}"
            )
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        printed.flush()
        if bad := unprintable(printed.buffer.getvalue().decode().replace("\n", "")):  # pyright: ignore[reportAttributeAccessIssue]
            outcome.escapes[f"prints {bad} @ {name}"] = printed.buffer.getvalue().decode()[:2000]  # pyright: ignore
        peak = memory("VmHWM") - had
        outcome.peak = max(outcome.peak, peak)
        if peak > limit:
            outcome.escapes[f"memory @ {case[0]}, {name}"] = f"{name}: {peak / 2**20:.0f} MiB"
        left = [path for path in {*folder.rglob("*")} - before if is_left_behind(path, case[0])]
        if left:
            outcome.escapes[f"left behind {re.sub(r'[0-9]+', 'N', left[0].name)} @ {name}"] = (
                f"{name}: {sorted(map(str, left))}"
            )
    outcome.seconds = time.perf_counter() - start
    return outcome


def act(action: Action, folder: Path) -> None:
    """Run an action; an error of the system about a named file is one line, as on the command line."""
    try:
        action(folder)
    except OSError as error:
        if not isinstance(name := error.filename2 or error.filename, str):
            raise
        raise UserError(f"{name}: {error.strerror}") from error


def is_left_behind(path: Path, reader: str) -> bool:
    """Whether a new file should not be there: beside data all but indexes, in runs what is temporary."""
    if reader.startswith("run "):
        return path.suffix in (".tmp", ".old") or path.name == ".lock"
    return not path.name.endswith(ALLOWED_NEW[0])


def problems_of(message: str, names: set[str]) -> Iterator[str]:
    """Yield what a message for people lacks."""
    if bad := unprintable(message):
        yield f"holds {bad}"
    if not any(name in message or repr(name)[1:-1] in message for name in names):
        yield "names no file"
    if len(message) > 20_000:
        yield "is very long"


BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def unprintable(text: str) -> str:
    """Name what a terminal or a log cannot take, if a text holds any of it."""
    bad = next(
        (
            letter
            for letter in text
            if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in BIDI
        ),
        "",
    )
    return f"U+{ord(bad):04X}" if bad else ""


def innermost(error: BaseException) -> str:
    """Return file, line and function of the last frame in the package."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(PACKAGE)
    ]
    last = frames[-1] if frames else None
    return (
        f"{Path(last.filename).relative_to(PACKAGE)}:{last.lineno} {last.name}"
        if last
        else "outside the package"
    )


def memory(name: str) -> int:
    """Return a number of /proc/self/status in bytes."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(name + ":")
    )
    return int(line.split()[1]) * 1024


def work_on(
    cases: Sequence[Case],
    connection: Connection,
    readers: dict[str, Reader],
    options: argparse.Namespace,
    work: Path,
    timeout: float,
) -> None:
    """Read inputs one after the other in this process, which a hang ends with a traceback in `work`.trace."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    most = memory("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with work.with_suffix(".trace").open("w") as trace:
        faulthandler.enable(trace)
        for case in cases:
            faulthandler.dump_traceback_later(timeout, exit=True, file=trace)
            outcome = run_case(readers[case[0]], case, options.seed, work, options.memory * 2**20)
            faulthandler.cancel_dump_traceback_later()
            connection.send(outcome)
            if outcome.peak > 2**29:
                break  # what it freed may still count as its own, and hide the next peak
    shutil.rmtree(work, ignore_errors=True)
    os._exit(0)  # nothing of the parent's is to be tidied up


class Worker:
    """A process that reads a chunk of inputs."""

    def __init__(
        self,
        cases: list[Case],
        readers: dict[str, Reader],
        options: argparse.Namespace,
        number: int,
        is_again: bool,
    ):
        self.is_again, self.has_ended = is_again, False
        self.left, self.work = cases, options.out / f"work-{number}"
        self.connection, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (
            cases,
            theirs,
            readers,
            options,
            self.work,
            options.timeout * (3 if is_again else 1),
        )
        self.process = multiprocessing.get_context("fork").Process(target=work_on, args=arguments)
        self.process.start()
        theirs.close()

    def take(self) -> Outcome | None:
        """Return the next outcome, that of a death too; None when the process has ended as it should."""
        try:
            outcome: Outcome = self.connection.recv()
        except EOFError:
            self.has_ended = True
            self.process.join()
            if self.process.exitcode == 0 or not self.left:
                return None
            outcome = Outcome(case=self.left[0])
            trace = self.work.with_suffix(".trace").read_text(errors="replace")
            what = "hang" if trace.startswith("Timeout") else f"death {self.process.exitcode}"
            frame = re.search(rf'File "{PACKAGE}/(.*)", line (\d+) in (\w+)', trace)
            outcome.escapes[
                f"{what} @ {frame[1]}:{frame[2]} {frame[3]}"
                if frame
                else f"{what} @ {outcome.case[0]}"
            ] = trace
        self.left = self.left[1:]
        return outcome


def run_all(
    cases: Sequence[Case], readers: dict[str, Reader], options: argparse.Namespace
) -> Iterator[Outcome]:
    """Yield the outcome of every input. One that hangs is given thrice the time in a process of its own, as the
    machine may be busy."""
    chunks = [(list(cases[start : start + CHUNK]), False) for start in range(0, len(cases), CHUNK)]
    workers: dict[Any, tuple[int, Worker]] = {}
    sure: set[str] = set()  # places where another input has hung for that long
    free = list(range(options.processes))
    while chunks or workers:
        while chunks and free:
            worker = Worker(
                *(chunk := chunks.pop(0))[:1], readers, options, number := free.pop(), chunk[1]
            )
            workers[worker.connection] = number, worker
        for connection in wait(list(workers)):
            number, worker = workers[connection]
            outcome = worker.take()
            if worker.has_ended:
                del workers[connection]
                free.append(number)
                chunks[:0] = [(worker.left, False)] if worker.left else []
            hangs = (
                {group for group in outcome.escapes if group.startswith("hang")}
                if outcome
                else set()
            )
            if outcome is not None and hangs - sure and not worker.is_again:
                chunks.insert(0, ([outcome.case], True))
            elif outcome is not None:
                sure |= hangs
                yield outcome


def keep(
    outcome: Outcome, group: str, readers: dict[str, Reader], options: argparse.Namespace
) -> None:
    """Save the input of an escape, with what to run to see it again."""
    name, number = outcome.case
    folder = options.out / "escapes" / re.sub(r"\W+", "_", f"{name}_{number}")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "case").mkdir(parents=True)
    done = lay_out(readers[name], outcome.case, options.seed, folder / "case")
    again = f'PYTHONPATH=. python tests/campaign.py --seed {options.seed} --out {options.out} --case "{name}:{number}"'
    (folder / "why.txt").write_text(
        f"{group}\n{done}\n{again}\n\n{outcome.escapes[group]}\n", errors="backslashreplace"
    )


def plan(readers: dict[str, Reader], num_inputs: int) -> list[Case]:
    """Return the inputs: of each reader by its weight, mixed."""
    total = sum(reader.weight for reader in readers.values())
    counts = {
        name: max(1, round(num_inputs * reader.weight / total)) for name, reader in readers.items()
    }
    cases = [(name, number) for name, count in counts.items() for number in range(count)]
    Random(0).shuffle(cases)
    return cases


def summarize(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the table by reader and the escapes by group."""
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    groups: defaultdict[str, list[Outcome]] = defaultdict(list)
    peaks: defaultdict[str, int] = defaultdict(int)
    for one in outcomes:
        name = one.case[0]
        rows[name].update(
            inputs=1, succeeded=one.succeeded, refused=one.refused, escaped=bool(one.escapes)
        )
        rows[name]["ms"] += round(1000 * one.seconds)
        peaks[name] = max(peaks[name], one.peak)
        for group in one.escapes:
            groups[group].append(one)
    lines = [
        f"{'reader':18}{'inputs':>8}{'succeeded':>11}{'refused':>9}{'escaped':>9}{'ms each':>9}{'peak MiB':>10}"
    ]
    for name, row in sorted(rows.items()):
        counts = f"{row['inputs']:8}{row['succeeded']:11}{row['refused']:9}{row['escaped']:9}"
        lines.append(
            f"{name:18}{counts}{row['ms'] / row['inputs']:9.0f}{peaks[name] / 2**20:10.0f}"
        )
    lines.append(f"\n{len(groups)} groups of escapes:")
    for group, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = [f"{name}:{number}" for name, number in (one.case for one in members[:SHOWN])]
        lines.append(f"{len(members):6}  {group}   ({'; '.join(first)})")
    escaped = sum(bool(one.escapes) for one in outcomes)
    hangs = sum(any(group.startswith("hang") for group in one.escapes) for one in outcomes)
    peak = max((one.peak for one in outcomes), default=0) / 2**20
    lines.append(
        f"\n{len(outcomes)} inputs in {seconds:.0f} s: {escaped} escaped, {hangs} hangs, largest peak {peak:.0f} MiB; {PACKAGE}"
    )
    return "\n".join(lines)


def main() -> int:
    """Run the campaign, or one input of it; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="readers whose names begin so")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to work in; default: a new temporary one")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that one input may take")
    parser.add_argument(
        "--memory",
        type=int,
        default=700,
        help="MiB that one input may need, beside the 350 of an idle process",
    )
    parser.add_argument("--case", help="READER:NUMBER, to see one input again")
    options = parser.parse_args()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="eve_campaign_"))
    print(f"works in {options.out}", flush=True)
    base = options.out / "base"
    if not (base / "big").exists():
        shutil.rmtree(base, ignore_errors=True)
        builder = multiprocessing.get_context("fork").Process(target=make_base, args=(base,))
        builder.start()
        builder.join()
    torch.set_num_threads(1)  # threads would not survive the fork
    readers = {**data_readers(base), **run_readers(base)}
    if options.case:
        name, _, number = options.case.rpartition(":")
        outcome = run_case(
            readers[name],
            (name, int(number)),
            options.seed,
            options.out / "work-case",
            options.memory * 2**20,
        )
        print(*(f"{group}\n{detail}" for group, detail in outcome.escapes.items()), sep="\n\n")
        print(f"input: {options.out / 'work-case/case'}")
        return bool(outcome.escapes)
    readers = {
        name: reader
        for name, reader in readers.items()
        if not options.only or name.startswith(tuple(options.only))
    }
    start, outcomes, seen = time.perf_counter(), [], Counter[str]()
    for outcome in run_all(plan(readers, options.inputs), readers, options):
        outcomes.append(outcome)
        for group in outcome.escapes:
            seen[group] += 1
            if seen[group] <= SHOWN:
                keep(outcome, group, readers, options)
        if len(outcomes) % 200 == 0:
            print(
                f"{len(outcomes)} inputs, {len(seen)} groups, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            (options.out / "summary.txt").write_text(
                summarize(outcomes, time.perf_counter() - start), errors="backslashreplace"
            )
    summary = summarize(outcomes, time.perf_counter() - start)
    (options.out / "summary.txt").write_text(summary, errors="backslashreplace")
    print(summary.encode("utf-8", "backslashreplace").decode())
    return bool(seen)


if __name__ == "__main__":
    sys.exit(main())
