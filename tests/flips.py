"""Flip single bits in run folders and in an index, and count what becomes of their answers.

    PYTHONPATH=. python tests/flips.py --flips 200 --seed 0 --only index

A process of its own reads the answers after each flip. They may be refused in one line or stay the
same. Faults: another text or order, or a score that differs by more than 1e-3, without a message; a
traceback, a death or a hang of the process. Faults in config.json count apart, because people may
edit it.
"""

import argparse
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
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
from helpers.campaign_actions import ASKED
from helpers.campaign_console import campaign_parser, empty_folder, table_of
from helpers.campaign_outcomes import Answers, Read, outcome_of
from helpers.campaign_reader import lines
from helpers.indices import write_image
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS

OUTCOMES = ("refused", "same", "CHANGED", "traceback", "death", "hang")
TOLERANCE = 1e-3
STEPS = 4
NUM_IMAGES = 8
TASKS = {
    "masked": None,
    "retrieval": RetrievalConfig(projection_dim=8),
    "vqa": ASKED,
}
SEARCHES: tuple[dict[str, Any], ...] = (
    {"rerank": 0},
    {"captions": True},
    {"rerank": 0, "by": "words"},
    {"rerank": 0, "where": {"set": "1"}},
)


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
    for name in TASKS:
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
    data = {
        "train": rows,
        "val": rows,
        "crop_scale": (1, 1),
    }
    config = tiny_config(
        task=TASKS[name],
        data=data,
        train=options,
    )
    init = None if name == "masked" else base / "masked"
    return replace(config, out=base / name, init=init)


def make_index(base: Path, num_rows: int) -> None:
    """Index that many images, each with a caption of its own."""
    rows = []
    for number in range(num_rows):
        name = f"{number // 1000}/{number}.png"
        write_image(base / "images" / name, number)
        caption = f"{CAPTIONS[number % 6]} {number}"
        rows.append(
            {
                "image": name,
                "caption": caption,
                "set": str(number % 3),
            }
        )
    table = base / "images/rows.jsonl"
    table.write_bytes(lines(rows))
    Eve.load(base / "retrieval").index(table, base / "index")


# Readings


def use(base: Path, name: str) -> Read:
    """Return what reads the answers of a run."""
    images = [base / f"data/{number}.png" for number in range(NUM_IMAGES)]

    def answer(folder: Path) -> Answers:
        answers = Eve.load(folder).answer(images, ["what is it"] * len(images))
        return [(guess.answer, guess.probability) for row in answers for guess in row]

    def compare(folder: Path) -> Answers:
        eve = Eve.load(folder)
        scores = eve.encode_image(images) @ eve.encode_text(CAPTIONS).T
        best = scores.argmax(1).tolist()
        pairs = []
        for row in range(NUM_IMAGES):
            for column in range(len(CAPTIONS)):
                pairs.append((f"{row} {column} {best[row]}", float(scores[row, column])))
        return pairs

    return answer if name == "vqa" else compare


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

    def read(folder: Path) -> Answers:
        index = Index.open(folder, eve)
        results = []
        for options in SEARCHES:
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


def trials(base: Path) -> list[Trial]:
    """Return all trials."""
    retrieval = base / "retrieval"
    vqa = base / "vqa"
    return [
        Trial("use retrieval", retrieval, "best/*", partial(use, base, "retrieval")),
        Trial("use vqa", vqa, "best/*", partial(use, base, "vqa")),
        Trial("resume retrieval", retrieval, "**/*", partial(resume, base, "retrieval")),
        Trial("resume vqa", vqa, "**/*", partial(resume, base, "vqa")),
        Trial("index", base / "index", "**/*", partial(search, base)),
    ]


# Outcomes


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


def run_trial(trial: Trial, flags: argparse.Namespace, out: Path) -> dict[str, Counter[str]]:
    """Flip bits of copies of a folder; return the outcomes by file, and print the faults."""
    read = trial.reader()
    copy = out / "copy" / trial.folder.name
    shutil.copytree(trial.folder, copy)
    first_outcome, before = outcome_of(read, copy, flags.timeout)
    if first_outcome != "same":
        raise RuntimeError(f"{trial.name}: sound, yet {first_outcome}: {before}")
    restore(copy, trial.folder)
    files = []
    for path in sorted(copy.glob(trial.pattern)):
        if path.is_file() and path.stat().st_size and "events" not in path.name:
            files.append(path)

    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    rng = Random(f"{flags.seed}/{trial.name}")
    for _ in range(flags.flips):
        path = rng.choice(files)
        data = bytearray(path.read_bytes())
        byte = rng.randrange(len(data))
        bit = rng.randrange(8)
        data[byte] ^= 1 << bit
        path.write_bytes(data)
        outcome, detail = outcome_of(read, copy, flags.timeout)
        if outcome == "same" and changed(before, detail):
            outcome = "CHANGED"
            detail = changed(before, detail)
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


def main() -> int:
    """Flip bits; return the exit status."""
    parser = campaign_parser(__doc__)
    parser.add_argument(
        "--flips",
        type=int,
        default=100,
        help="of each trial",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="trials whose names begin so",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=10_000,
        help="of the index",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60,
        help="seconds that one flip may take",
    )
    flags = parser.parse_args()
    out = empty_folder(parser, flags.out)
    print(f"works in {out}", flush=True)
    torch.set_num_threads(1)  # threads would not survive a fork
    prefixes = tuple(flags.only or [""])
    chosen = [trial for trial in trials(out) if trial.name.startswith(prefixes)]
    start = time.perf_counter()
    make_runs(out)
    if any(trial.name == "index" for trial in chosen):
        make_index(out, flags.rows)
    total: Counter[str] = Counter()
    for trial in chosen:
        table = run_trial(trial, flags, out)
        print(f"\n{trial.name}\n{table_of(table, OUTCOMES)}", flush=True)
        for name, counts in table.items():
            if not name.endswith("config.json"):
                total += counts
    seconds = time.perf_counter() - start
    print(f"{total.total()} flips outside config.json in {seconds:.0f} s: {dict(total)};")
    print(eve_vl.__file__)
    return any(total[outcome] for outcome in OUTCOMES[2:])


if __name__ == "__main__":
    sys.exit(main())
