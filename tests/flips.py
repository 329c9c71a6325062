"""Flip single bits in run folders and in an index, and count what becomes of their answers.

    PYTHONPATH=. python tests/flips.py --flips 200 --seed 0 --only index

A process of its own reads the answers after each flip. They may be refused in one line or stay the
same. Faults: another text or order, or a score that differs by more than 1e-3, without a message; a
traceback, a death or a hang of the process. Faults in config.json count apart, because people may
edit it.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

import eve_vl
from eve_vl.config import Config
from eve_vl.eve import Eve
from eve_vl.run.training import train
from eve_vl.search.index import Index
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.train.run_log import read_log
from eve_vl.utils.errors import UserError
from helpers.campaign_actions import ASKED
from helpers.campaign_reader import lines
from helpers.indices import write_image
from helpers.process_limits import limit_process
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS

Answers = Sequence[tuple[str, float]]
"""Texts in their order, each with a score."""
Read = Callable[[Path], Answers]
OUTCOMES = ("refused", "same", "CHANGED", "traceback", "death", "hang")
TOLERANCE = 1e-3
STEPS = 4
NUM_IMAGES = 8


@dataclass(frozen=True)
class Trial:
    """A folder whose files are damaged, and what then reads it."""

    name: str
    folder: Path
    pattern: str
    """Of the damaged files."""
    reader: Callable[[], Read]
    """Prepares the reading, which may need other folders."""


# Folders


def make_runs(base: Path) -> None:
    """Train a run on a few images, and from it one that searches and one that answers."""
    rows = []
    for number in range(NUM_IMAGES):
        write_image(base / f"data/{number}.png", number)
        row = {"image": f"{number}.png", "caption": CAPTIONS[number % 6]}
        row["question"] = "what is it"
        row["answer"] = ("cat", "dog", "red")[number % 3]
        rows.append(row)
    (base / "data/rows.jsonl").write_bytes(lines(rows))
    for name in ("masked", "retrieval", "vqa"):
        train(run_config(base, name))


def run_config(base: Path, name: str, steps: int = STEPS) -> Config:
    """Return the config of one of the runs."""
    rows = (str(base / "data/rows.jsonl"),)
    options = {
        "steps": steps,
        "batch_size": 4,
        "save_every": 2,
        "keep_checkpoints": 1,
        "val_every": 2,
        "log_every": 1,
        "lr": 1e-2,
    }
    task = {"masked": None, "retrieval": RetrievalConfig(projection_dim=8), "vqa": ASKED}[name]
    data = {"train": rows, "val": rows, "crop_scale": (1, 1)}
    config = tiny_config(task=task, data=data, train=options)
    return replace(config, out=base / name, init=None if name == "masked" else base / "masked")


def make_index(base: Path, num_rows: int) -> None:
    """Index that many images, each with a caption of its own."""
    rows = []
    for number in range(num_rows):
        name = f"{number // 1000}/{number}.png"
        write_image(base / "images" / name, number)
        caption = f"{CAPTIONS[number % 6]} {number}"
        rows.append({"image": name, "caption": caption, "set": str(number % 3)})
    table = base / "images/rows.jsonl"
    table.write_bytes(lines(rows))
    Eve.load(base / "retrieval").index(table, base / "index")


# Readings


def use(base: Path, name: str) -> Read:
    """Return what reads the answers of a run."""
    images = [base / f"data/{number}.png" for number in range(NUM_IMAGES)]

    def answer(eve: Eve) -> Answers:
        answers = eve.answer(images, ["what is it"] * len(images))
        return [(guess.answer, guess.probability) for row in answers for guess in row]

    def compare(eve: Eve) -> Answers:
        scores = eve.encode_image(images) @ eve.encode_text(CAPTIONS).T
        best = scores.argmax(1).tolist()
        pairs = []
        for row in range(NUM_IMAGES):
            for column in range(6):
                pairs.append((f"{row} {column} {best[row]}", float(scores[row, column])))
        return pairs

    read = answer if name == "vqa" else compare
    return lambda folder: read(Eve.load(folder))


def resume(base: Path, name: str) -> Read:
    """Return what resumes a run for two steps, and reads its numbers."""

    def read(folder: Path) -> Answers:
        train(replace(run_config(base, name, STEPS + 2), out=folder))
        numbers = []
        for row in read_log(folder):
            if row["kind"] == "val" and row["step"] > STEPS:
                numbers += [item for item in sorted(row.items()) if isinstance(item[1], float)]
        return numbers

    return read


def search(base: Path) -> Read:
    """Return what searches an index, with and without a filter, for images and captions."""
    eve = Eve.load(base / "retrieval")
    queries = [*CAPTIONS[:3], f"{CAPTIONS[1]} 77"]
    searches: list[dict[str, Any]] = [
        {"rerank": 0},
        {"captions": True},
        {"rerank": 0, "by": "words"},
        {"rerank": 0, "where": {"set": "1"}},
    ]

    def read(folder: Path) -> Answers:
        index = Index.open(folder, eve)
        results = []
        for options in searches:
            results += index.search_each(queries, [None] * len(queries), top=10, **options)
        results.append(index.search(image=base / "data/0.png", top=10))
        results.append(index.search(queries[0], top=10, rerank=5))
        answers = []
        for hits in results:
            for hit in hits:
                text = f"{hit.name} {hit.captions} {hit.near} {hit.why}"
                answers.append((text, hit.score or 0.0))
        return answers

    return read


# Outcomes


def outcome_of(read: Read, folder: Path, timeout: float) -> tuple[str, object]:
    """Read answers in a process of its own; return its outcome, and the answers or the message."""
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        limit_process()
        sending.send(read_outcome(read, folder))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sending.close()
    try:
        outcome = receiving.recv() if receiving.poll(timeout) else ("hang", "")
    except EOFError:
        outcome = ("death", "")
    process.kill()
    process.join()
    return outcome


def read_outcome(read: Read, folder: Path) -> tuple[str, object]:
    """Read answers; return the outcome, and the answers or the message."""
    try:
        return "same", list(read(folder))
    except UserError as error:
        return "refused" if str(error).isprintable() else "traceback", str(error)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if "eve_vl" in frame.filename]
        return "traceback", f"{type(error).__name__}: {error} {places[-1:]}"[:500]


def changed(before: Answers, now: Answers) -> str:
    """Return how answers differ; empty if they are the same."""
    for (text_before, _), (text_now, _) in zip(before, now, strict=False):
        if text_before != text_now:
            return f"{text_before} → {text_now}"
    if len(before) != len(now):
        return f"{len(before)} → {len(now)}"
    worst = 0.0
    for (_, score_before), (_, score_now) in zip(before, now, strict=True):
        difference = abs(score_before - score_now)
        is_nan = difference != difference
        worst = max(worst, float("inf") if is_nan else difference)
    return f"score by {worst:.3g}" if worst > TOLERANCE else ""


def flips_of(files: Sequence[Path], num_flips: int, rng: Random) -> Iterator[tuple[Path, int, int]]:
    """Yield file, byte and bit of flips, each file as often as any other."""
    for _ in range(num_flips):
        path = rng.choice(files)
        yield path, rng.randrange(path.stat().st_size), rng.randrange(8)


def run_trial(trial: Trial, flags: argparse.Namespace) -> dict[str, Counter[str]]:
    """Flip bits of copies of a folder; return the outcomes by file, and print the faults."""
    read = trial.reader()
    copy = flags.out / "copy" / trial.folder.name
    shutil.copytree(trial.folder, copy)
    first_outcome, before = outcome_of(read, copy, flags.timeout)
    if first_outcome != "same" or not isinstance(before, list):
        raise RuntimeError(f"{trial.name}: sound, yet {first_outcome}: {before}")
    restore(copy, trial.folder)
    files = []
    for path in sorted(copy.glob(trial.pattern)):
        if path.is_file() and path.stat().st_size and "events" not in path.name:
            files.append(path)
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, byte, bit in flips_of(files, flags.flips, Random(f"{flags.seed}/{trial.name}")):
        data = bytearray(path.read_bytes())
        data[byte] ^= 1 << bit
        path.write_bytes(data)
        outcome, detail = outcome_of(read, copy, flags.timeout)
        if outcome == "same" and isinstance(detail, list):
            difference = changed(before, detail)
            if difference:
                outcome = "CHANGED"
                detail = difference
        name = path.relative_to(copy).as_posix()
        table[name][outcome] += 1
        if outcome not in ("refused", "same"):
            place = f"{trial.name}: {name} byte {byte} bit {bit}"
            print(f"{place}: {outcome} {detail}", flush=True)
        restore(copy, trial.folder)
    shutil.rmtree(copy)
    return table


def restore(copy: Path, folder: Path) -> None:
    """Copy a folder again."""
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)


def trials(base: Path) -> list[Trial]:
    """Return all trials."""
    runs = ("retrieval", "vqa")
    return [
        *(
            Trial(f"use {name}", base / name, "best/*", lambda n=name: use(base, n))
            for name in runs
        ),
        *(
            Trial(f"resume {name}", base / name, "**/*", lambda n=name: resume(base, n))
            for name in runs
        ),
        Trial("index", base / "index", "**/*", lambda: search(base)),
    ]


def parsed_flags() -> argparse.Namespace:
    """Parse the command line; `out` is an empty folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=100, help="of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="trials whose names begin so")
    parser.add_argument("--rows", type=int, default=10_000, help="of the index")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that one flip may take")
    out_help = "empty folder to work in; default: a new temporary one"
    parser.add_argument("--out", type=Path, help=out_help)
    flags = parser.parse_args()
    flags.out = flags.out or Path(tempfile.mkdtemp(prefix="eve_flips_"))
    flags.out.mkdir(parents=True, exist_ok=True)
    if any(flags.out.iterdir()):
        parser.error(f"--out {flags.out}: is not empty")
    return flags


def main() -> int:
    """Flip bits; return the exit status."""
    flags = parsed_flags()
    print(f"works in {flags.out}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    prefixes = tuple(flags.only or [""])
    chosen = [trial for trial in trials(flags.out) if trial.name.startswith(prefixes)]
    start = time.perf_counter()
    make_runs(flags.out)
    if any(trial.name == "index" for trial in chosen):
        make_index(flags.out, flags.rows)
    total: Counter[str] = Counter()
    for trial in chosen:
        table = run_trial(trial, flags)
        print(f"\n{trial.name:58}{''.join(f'{outcome:>10}' for outcome in OUTCOMES)}")
        for name, counts in sorted(table.items()):
            numbers = "".join(f"{counts[outcome]:10}" for outcome in OUTCOMES)
            print(f"  {name:56}{numbers}", flush=True)
            if not name.endswith("config.json"):
                total.update({outcome: counts[outcome] for outcome in OUTCOMES})
    seconds = time.perf_counter() - start
    print(
        f"{total.total()} flips outside config.json in {seconds:.0f} s: {dict(total)};"
        f" {eve_vl.__file__}"
    )
    return any(total[outcome] for outcome in OUTCOMES[2:])


if __name__ == "__main__":
    sys.exit(main())
