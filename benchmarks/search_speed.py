"""Measure the latency of search and the rate of indexing.

    python benchmarks/search_speed.py [--images 100000 1000000] [--width 256] [--queries 50] [--json FILE] [--quick]

Features are synthetic. A query is text, encoded by a small untrained encoder with features of
`width` numbers; the time ends with the 20 best hits and their metadata. Images to index are
synthetic photos of 640×480 pixels (quality 88, about 100 kB) in files; reading and decoding, and
encoding, are also measured separately in the same run. Searches among these photos are measured
with and without an untrained matching head that re-ranks the best hits, which reads and decodes
their files at each query.

Torch has one thread, and indexing decodes in up to four other threads. The goal for indexing is a
share of the rate of "read and decode, then encode" by the clock, which is the time a person waits;
the share by processor time shows the extra cost. The goal for search is in processor time, because
other programs lengthen clock time.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_up_photos import made_up_photo
from timing import Goal, machine

from eve_vl.config import config_to_json
from eve_vl.data.crops import Crop
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageFile
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.run.loading import build_task
from eve_vl.search import word_tables
from eve_vl.search.cells import update_cells
from eve_vl.search.database import Database
from eve_vl.search.index import Index
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.train.best_folder import save_best
from eve_vl.utils.memory import keep_memory

CAPTIONS = (
    "a red car in front of a house",
    "two dogs on a beach",
    "a woman with a green umbrella",
    "an old map of the world",
)
WAIT = {100_000: 0.06, 1_000_000: 0.3}  # goal for p95, processor seconds
SHARE = Goal(limit=0.9, at_least=True)  # by clock
RERANKED = 16  # candidates, as in `scenes_retrieval`
CHUNK, NUM_KINDS = (
    10_000,
    5000,
)  # features cluster around NUM_KINDS points, like those of similar images


def small_run(folder: Path, width: int, image_size: int, rerank: int = 0) -> Eve:
    """Write and return an untrained retrieval run of the demo's size.

    The run has a matching head if it re-ranks.
    """
    recipe = get_finetune_recipe("demo_retrieval", get_recipe("demo"))
    assert isinstance(recipe.task, RetrievalConfig)
    sizes = replace(recipe.input, image_size=image_size)
    task = replace(recipe.task, projection_dim=width, itm_weight=float(rerank > 0), rerank=rerank)
    config = replace(recipe, input=sizes, task=task)
    tokenizer = Tokenizer.train(CAPTIONS, 500)
    texts = {"config.json": config_to_json(config), "tokenizer.json": tokenizer.to_json()}
    save_best(
        folder, step=1, model=build_task(config, tokenizer).state_dict(), texts=texts, numbers={}
    )
    return Eve.load(folder, "cpu")


def made_up_index(folder: Path, eve: Eve, num: int) -> Index:
    """Return an index of synthetic features with captions.

    Each caption has eight words whose frequencies follow Zipf's law.
    """
    folder.mkdir()
    store, rng = Database.create(folder, eve.run), np.random.default_rng(0)
    word_tables.watch(store.db)
    vocabulary = np.array(
        [*dict.fromkeys(" ".join(CAPTIONS).split()), *(f"word{number}" for number in range(20_000))]
    )
    share = 1 / np.arange(1, len(vocabulary) + 1)
    kinds = rng.normal(size=(NUM_KINDS, store.made_by.dim)).astype(np.float32)
    store.db.execute("INSERT INTO source VALUES (1, '/nowhere', '{}')")
    for start in range(0, num, CHUNK):
        slots = list(range(start, min(start + CHUNK, num)))
        features = kinds[rng.integers(0, NUM_KINDS, len(slots))] + rng.normal(
            size=(len(slots), len(kinds[0]))
        ).astype(np.float32)
        store.images.write(slots, features / np.linalg.norm(features, axis=1, keepdims=True))
        store.db.executemany(
            "INSERT INTO feature VALUES (?, ?, x'', ?)",
            [(slot, slot.to_bytes(16, "big"), slot) for slot in slots],
        )
        rows = [(slot, f"/nowhere/{slot:08}.jpg", slot) for slot in slots]
        store.db.executemany(
            "INSERT INTO image VALUES (?, 1, ?, 0, NULL, NULL, 1, 1, ?, NULL)", rows
        )
        spoken = rng.choice(vocabulary, (len(slots), 8), p=share / share.sum())
        texts = [
            (slot, f"{' '.join(some)} {slot}") for slot, some in zip(slots, spoken, strict=True)
        ]
        store.db.executemany("INSERT INTO text VALUES (?, ?)", texts)
        store.db.executemany(
            "INSERT INTO caption VALUES (?, ?, '{}')", [(slot, slot) for slot in slots]
        )
        word_tables.refresh(store.db)
    store.db.commit()
    update_cells(store, np.ones(num, dtype=bool))  # only above its minimum size
    return Index(store, eve)


def timed(do: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return a call's result, its clock seconds and its processor seconds."""
    start = time.perf_counter(), time.process_time()
    found = do()
    return found, (time.perf_counter() - start[0], time.process_time() - start[1])


def waits(index: Index, num: int, rerank: int = 0, by: str = "both") -> dict[str, float]:
    """Return p50 and p95 of the answers' seconds, by clock and by processor."""
    seconds, counts = [], index.counts()
    for number in range(num + 3):
        query = f"{CAPTIONS[number % len(CAPTIONS)]} {number}"
        hits, both = timed(lambda query=query: index.search(query, rerank=rerank, by=by))
        seconds += [both] * (number >= 3)
        assert len(hits) == min(20, counts["images"])
        assert sum(hit.match is not None for hit in hits) == min(rerank, len(hits))
        assert bool(hits[0].captions) == bool(counts["captions"])
    sorted_by = {
        name: sorted(each)
        for name, each in zip(("clock", "processor"), zip(*seconds, strict=True), strict=True)
    }
    return {
        f"{name} p{100 * share:.0f}": share_below(each, share)
        for name, each in sorted_by.items()
        for share in (0.5, 0.95)
    }


def share_below(seconds: list[float], share: float) -> float:
    """Return a percentile of sorted seconds."""
    return seconds[min(int(share * len(seconds)), len(seconds) - 1)]


def indexing(eve: Eve, folder: Path, num: int) -> dict[str, Callable[[], None]]:
    """Return functions that decode, encode and index the photos."""
    photos = folder / f"photos-{num}"
    photos.mkdir()
    for number in range(num):
        (photos / f"{number:05}.jpg").write_bytes(made_up_photo(number))
    paths = sorted(photos.iterdir())
    size = eve.run.config.input.image_size
    pixels = torch.stack(
        [decode(ImageFile(path=path), "photo", crop=Crop(size=size)) for path in paths]
    )

    def load() -> None:
        for path in paths:
            decode(ImageFile(path=path), "photo", crop=Crop(size=size))

    def encode() -> None:
        with torch.no_grad():
            for some in pixels.split(64):
                eve.task.image_features(some)

    def index() -> None:
        out = folder / "made"
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.redirect_stdout(None):
            assert len(eve.index(photos, out)) == num

    return {"read and decode": load, "encode": encode, "index": index}


def measured_indexing(eve: Eve, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Print and return the rates of indexing and of its parts, and a share.

    The share is the time of both parts in sequence over the time of indexing.
    """
    each, rounds = indexing(eve, folder, args.photos), []
    for _ in range(args.repeats + 1):
        rounds.append({what: timed(do)[1] for what, do in each.items()})
    del rounds[0]  # the warm-up
    found: dict[str, float] = {}
    for place, which in enumerate(("by the clock", "of the processor")):
        times = [{what: both[place] for what, both in turn.items()} for turn in rounds]
        rates = {
            what: args.photos / statistics.median(turn[what] for turn in times) for what in each
        }
        share = statistics.median(
            (turn["read and decode"] + turn["encode"]) / turn["index"] for turn in times
        )
        found |= {f"{what} {which}": rate for what, rate in rates.items()} | {
            f"share {which}": share
        }
        shown = ", ".join(f"{what} {rate:.0f}" for what, rate in rates.items())
        verdict = SHARE.check(share) if which == "by the clock" and not args.quick else ""
        print(
            f"photos to {eve.run.config.input.image_size}²: {shown} images/s; share {which} "
            f"{share:.2f}   {verdict}"
        )
    return found


def shown_waits(times: dict[str, float]) -> str:
    """Format seconds."""
    return ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in times.items())


def main() -> None:
    """Measure, print and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--images",
        type=int,
        nargs="*",
        default=[100_000, 1_000_000],
        help="sizes of synthetic indexes",
    )
    parser.add_argument("--width", type=int, default=256, help="width of the features")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[64, 224],
        help="image sizes of the encoder, for indexing",
    )
    parser.add_argument("--photos", type=int, default=512, help="number of photos to index")
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds of indexing after the warm-up"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little of everything: checks the script, measures nothing",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    if args.quick:
        args.images, args.queries, args.photos, args.repeats, args.sizes = [500], 3, 4, 2, [32]
    about = machine() | {"clock": "both"}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        eve = small_run(folder / "run", args.width, 32)
        for num in args.images:
            index = made_up_index(folder / f"index-{num}", eve, num)
            alone = waits(index, args.queries, by="vectors")
            times = waits(index, args.queries)
            ratio = times["processor p50"] / alone["processor p50"]
            print(
                f"{num:9,} images, vectors only: {shown_waits(alone)}; both / vectors {ratio:.2f}"
            )
            verdict = Goal(limit=WAIT[num]).check(times["processor p95"]) if num in WAIT else ""
            print(f"{num:9,} images of {args.width} numbers: {shown_waits(times)}   {verdict}")
            found |= {f"search {num}": times, f"search {num} by vectors": alone}
        for size in args.sizes:
            eve = small_run(folder / f"run-{size}", args.width, size, RERANKED)
            (folder / str(size)).mkdir()
            found[f"index {size}"] = measured_indexing(eve, folder / str(size), args)
            index = Index.open(folder / str(size) / "made", eve)
            for rerank in (0, RERANKED):
                times = found[f"search photos {size}, {rerank} re-ranked"] = waits(
                    index, args.queries, rerank
                )
                print(
                    f"{args.photos:9,} photos to {size}², {rerank} re-ranked: {shown_waits(times)}"
                )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, "cores": os.cpu_count(), "found": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
