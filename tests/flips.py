"""Flip single bits in run folders and in an index, and count what becomes of their answers.

    PYTHONPATH=. python tests/flips.py --flips 200 --seed 0 --only index

A process of its own reads the answers after each flip. They may be refused in one line or stay the same. Faults: another
text or order, or a score that differs by more than 1e-3, without a word; a traceback, a death or a hang of the process.
Faults in config.json count apart, because people may edit it.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

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
from helpers.twins import CAPTIONS, tiny_config

Answers = Sequence[tuple[str, float]]
"""Texts in their order, each with a score."""
Read = Callable[[Path], Answers]
OUTCOMES = ("refused", "same", "CHANGED", "traceback", "death", "hang")
TOLERANCE = 1e-3
ROOM = (
    3 * 2**30
)  # bytes of addresses beyond those at the start: a runaway must not take the machine along
STEPS = 4


def make_runs(base: Path) -> None:
    """Train two runs on a few images, one that searches and one that answers."""
    rows = []
    for number in range(8):
        write_image(base / f"data/{number}.png", number)
        answer = ("cat", "dog", "red")[number % 3]
        rows.append(
            {
                "image": f"{number}.png",
                "caption": CAPTIONS[number % 6],
                "question": "what is it",
                "answer": answer,
            }
        )
    (base / "data/rows.jsonl").write_bytes(lines(rows))
    train(run_config(base, "masked"))
    for name in ("retrieval", "vqa"):
        train(run_config(base, name))


def run_config(base: Path, name: str, steps: int = STEPS) -> Config:
    """Return the config of one of the runs."""
    often = {
        "steps": steps,
        "batch_size": 4,
        "save_every": 2,
        "keep_checkpoints": 1,
        "val_every": 2,
        "log_every": 1,
        "lr": 1e-2,
    }
    sources = {
        "train": (str(base / "data/rows.jsonl"),),
        "val": (str(base / "data/rows.jsonl"),),
        "crop_scale": (1, 1),
    }
    task = {"masked": None, "retrieval": RetrievalConfig(projection_dim=8), "vqa": ASKED}[name]
    config = tiny_config(task=task, data=sources, train=often)
    return replace(config, out=base / name, init=None if name == "masked" else base / "masked")


def make_index(base: Path, num_rows: int) -> None:
    """Index that many images, each with a caption of its own."""
    rows = []
    for number in range(num_rows):
        name = f"{number // 1000}/{number}.png"
        write_image(base / "images" / name, number)
        rows.append(
            {"image": name, "caption": f"{CAPTIONS[number % 6]} {number}", "set": str(number % 3)}
        )
    (base / "images/rows.jsonl").write_bytes(lines(rows))
    Eve.load(base / "retrieval").index(base / "images/rows.jsonl", base / "index")


def use(base: Path, name: str) -> Read:
    """Return what reads the answers of a run."""
    images = [base / f"data/{number}.png" for number in range(8)]

    def answers(folder: Path) -> Answers:
        eve = Eve.load(folder)
        if name == "vqa":
            found = eve.answer(images, ["what is it"] * len(images))
            return [(each.answer, each.probability) for row in found for each in row]
        scores = eve.encode_image(images) @ eve.encode_text(CAPTIONS).T
        best = [int(each) for each in scores.argmax(1)]
        return [
            (f"{row} {column} {best[row]}", float(scores[row, column]))
            for row in range(8)
            for column in range(6)
        ]

    return answers


def resume(base: Path, name: str) -> Read:
    """Return what resumes a run for two steps, and reads its numbers."""

    def answers(folder: Path) -> Answers:
        train(replace(run_config(base, name, STEPS + 2), out=folder))
        rows = [row for row in read_log(folder) if row["kind"] == "val" and row["step"] > STEPS]
        return [
            (key, value)
            for row in rows
            for key, value in sorted(row.items())
            if isinstance(value, float)
        ]

    return answers


def search(base: Path) -> Read:
    """Return what searches an index, with and without a filter, for images and captions."""
    eve, queries = Eve.load(base / "retrieval"), [*CAPTIONS[:3], f"{CAPTIONS[1]} 77"]

    def answers(folder: Path) -> Answers:
        index = Index.open(folder, eve)
        ways = (
            {"rerank": 0},
            {"captions": True},
            {"rerank": 0, "by": "words"},
            {"rerank": 0, "where": {"set": "1"}},
        )
        found = [index.search_each(queries, [None] * len(queries), top=10, **way) for way in ways]
        found += [
            [
                index.search(image=base / "data/0.png", top=10),
                index.search(queries[0], top=10, rerank=5),
            ]
        ]
        return [
            (f"{hit.name} {hit.captions} {hit.near} {hit.why}", hit.score or 0.0)
            for way in found
            for hits in way
            for hit in hits
        ]

    return answers


def outcome_of(read: Read, folder: Path, timeout: float) -> tuple[str, object]:
    """Read answers in a process of its own; return its outcome, and the answers or the message."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        resource.setrlimit(resource.RLIMIT_AS, (most := _addresses() + ROOM, most))
        torch.set_num_threads(1)
        try:
            theirs.send(("same", list(read(folder))))
        except UserError as error:
            theirs.send(("refused" if str(error).isprintable() else "traceback", str(error)))
        except BaseException as error:
            place = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "eve_vl" in frame.filename
            ][-1:]
            theirs.send(("traceback", f"{type(error).__name__}: {error} {place}"[:500]))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(timeout) else ("hang", "")
    except EOFError:
        found = "death", ""
    process.kill()
    process.join()
    return found


def _addresses() -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    return int(line.split()[1]) * 1024


def changed(before: Answers, now: Answers) -> str:
    """Return how answers differ; empty if they are the same."""
    if [text for text, _ in before] != [text for text, _ in now]:
        first = next(
            ((a[0], b[0]) for a, b in zip(before, now, strict=False) if a[0] != b[0]),
            (len(before), len(now)),
        )
        return f"{first[0]} → {first[1]}"
    worst = max(
        (
            abs(a - b) if a - b == a - b else float("inf")
            for (_, a), (_, b) in zip(before, now, strict=True)
        ),
        default=0,
    )
    return f"score by {worst:.3g}" if worst > TOLERANCE else ""


def flips_of(files: Sequence[Path], num_flips: int, rng: Random) -> Iterator[tuple[Path, int, int]]:
    """Yield file, byte and bit of flips, each file as often as any other."""
    for _ in range(num_flips):
        path = rng.choice(files)
        yield path, rng.randrange(path.stat().st_size), rng.randrange(8)


def trial(
    whole: Path, part: str, read: Read, options: argparse.Namespace, name: str
) -> dict[str, Counter[str]]:
    """Flip bits of copies of a folder; return the outcomes by file, and print those that should not be.

    part: pattern of the damaged files.
    """
    copy, table = options.out / "copy" / whole.name, defaultdict(Counter)
    shutil.copytree(whole, copy)
    first, before = outcome_of(read, copy, options.timeout)
    if first != "same" or not isinstance(before, list):
        raise RuntimeError(f"{name}: sound, yet {first}: {before}")
    shutil.rmtree(copy)
    shutil.copytree(whole, copy)
    files = sorted(
        path
        for path in copy.glob(part)
        if path.is_file() and path.stat().st_size and "events" not in path.name
    )
    for path, byte, bit in flips_of(files, options.flips, Random(f"{options.seed}/{name}")):
        data = bytearray(path.read_bytes())
        data[byte] ^= 1 << bit
        path.write_bytes(data)
        outcome, found = outcome_of(read, copy, options.timeout)
        if outcome == "same" and isinstance(found, list) and (how := changed(before, found)):
            outcome, found = "CHANGED", how
        shown = path.relative_to(copy).as_posix()
        table[shown][outcome] += 1
        if outcome not in ("refused", "same"):
            print(f"{name}: {shown} byte {byte} bit {bit}: {outcome} {found}", flush=True)
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
    shutil.rmtree(copy)
    return table


def trials(base: Path) -> Mapping[str, tuple[Path, str, Callable[[], Read]]]:
    """Return what is damaged, a pattern of its files, and what then reads it, by name."""
    runs = ("retrieval", "vqa")
    found = {
        f"use {name}": (base / name, "best/*", lambda name=name: use(base, name)) for name in runs
    }
    found |= {
        f"resume {name}": (base / name, "**/*", lambda name=name: resume(base, name))
        for name in runs
    }
    return {**found, "index": (base / "index", "**/*", lambda: search(base))}


def main() -> int:
    """Flip bits; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=100, help="of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="trials whose names begin so")
    parser.add_argument("--rows", type=int, default=10_000, help="of the index")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that one flip may take")
    parser.add_argument(
        "--out", type=Path, help="empty folder to work in; default: a new temporary one"
    )
    options = parser.parse_args()
    options.out = options.out or Path(tempfile.mkdtemp(prefix="eve_flips_"))
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):
        parser.error(f"--out {options.out}: is not empty")
    print(f"works in {options.out}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    chosen = {
        name: each
        for name, each in trials(options.out).items()
        if name.startswith(tuple(options.only or [""]))
    }
    start = time.perf_counter()
    make_runs(options.out)
    if "index" in chosen:
        make_index(options.out, options.rows)
    total: Counter[str] = Counter()
    for name, (folder, part, reader) in chosen.items():
        table = trial(folder, part, reader(), options, name)
        print(f"\n{name:58}{''.join(f'{each:>10}' for each in OUTCOMES)}")
        for shown, counts in sorted(table.items()):
            print(f"  {shown:56}{''.join(f'{counts[each]:10}' for each in OUTCOMES)}", flush=True)
            total.update(
                {each: counts[each] for each in OUTCOMES if not shown.endswith("config.json")}
            )
    faults = sum(total[each] for each in OUTCOMES[2:])
    print(
        f"{total.total()} flips outside config.json in {time.perf_counter() - start:.0f} s: {dict(total)}; {eve_vl.__file__}"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
