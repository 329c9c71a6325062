"""Search and indexing on one core: how long people wait for an answer, and how fast pictures get into an index.

    python benchmarks/search.py [--pictures 100000 1000000] [--width 256] [--queries 50] [--json FILE] [--quick]

Features are made up, of as many pictures as said; a query is words, encoded by a small untrained encoder with features of
`width` numbers, and the time ends with the 20 best hits and all that is said of them. Pictures to index are made-up photos of
640×480 pixels (quality 88, about 100 kB) in files; reading and decoding alone and the encoder alone are measured beside it, in
the same run. One thread; processor time where rates are compared, which beside other programs says more of waiting, too.
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

import numpy as np
import torch
from loader import made_up_photo
from moe import Goal, interleaved, machine

from eve_vl.config import RetrievalConfig, config_to_json
from eve_vl.cpu import keep_memory
from eve_vl.data.records import ImageFile
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.data.transforms import Crop, decode
from eve_vl.eve import Eve
from eve_vl.loading import build_task
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.search import approximate
from eve_vl.search.index import Index
from eve_vl.search.store import Store
from eve_vl.train.checkpoint import save_checkpoint

CAPTIONS = ("a red car in front of a house", "two dogs on a beach", "a woman with a green umbrella", "an old map of the world")
WAIT = {100_000: 0.1, 1_000_000: 0.3}  # seconds of the processor that 95 % of the answers may take
SHARE = Goal(limit=0.9, at_least=True)
CHUNK, NUM_KINDS = 10_000, 5000  # features lie around as many points, as those of pictures of the same kind do


def small_run(folder: Path, width: int, image_size: int) -> Eve:
    """Return an untrained run of the demo's search in a folder."""
    recipe = get_finetune_recipe("demo_retrieval", get_recipe("demo"))
    assert isinstance(recipe.task, RetrievalConfig)
    sizes = replace(recipe.input, image_size=image_size)
    config = replace(recipe, input=sizes, task=replace(recipe.task, projection_dim=width, itm_weight=0.0, rerank=0))
    tokenizer = Tokenizer.train(CAPTIONS, 500)
    texts = {"config.json": config_to_json(config), "tokenizer.json": tokenizer.to_json()}
    save_checkpoint(folder, {"model": build_task(config, tokenizer).state_dict()}, texts, {"step": 1}, keep=1)
    return Eve.load(folder, "cpu")


def made_up_index(folder: Path, eve: Eve, num: int) -> Index:
    """Return an index of pictures that are nowhere, each with a caption."""
    folder.mkdir()
    store, rng = Store.create(folder, eve.run), np.random.default_rng(0)
    kinds = rng.normal(size=(NUM_KINDS, store.facts["dim"])).astype(np.float32)
    store.db.execute("INSERT INTO source VALUES (1, '/nowhere', '{}')")
    for start in range(0, num, CHUNK):
        slots = list(range(start, min(start + CHUNK, num)))
        features = kinds[rng.integers(0, NUM_KINDS, len(slots))] + rng.normal(size=(len(slots), len(kinds[0]))).astype(
            np.float32
        )
        store.images.write(slots, features / np.linalg.norm(features, axis=1, keepdims=True))
        store.db.executemany(
            "INSERT INTO feature VALUES (?, ?, x'', ?)", [(slot, slot.to_bytes(16, "big"), slot) for slot in slots]
        )
        rows = [(slot, f"/nowhere/{slot:08}.jpg", slot) for slot in slots]
        store.db.executemany("INSERT INTO picture VALUES (?, 1, ?, 0, NULL, NULL, 1, 1, ?, NULL)", rows)
        store.db.executemany("INSERT INTO text VALUES (?, ?)", [(slot, f"caption {slot}") for slot in slots])
        store.db.executemany("INSERT INTO caption VALUES (?, ?, '{}')", [(slot, slot) for slot in slots])
    store.db.commit()
    approximate.build(store, np.ones(num, dtype=bool))  # if there are so many
    return Index(store, eve)


def waits(index: Index, num: int) -> tuple[list[float], list[float]]:
    """Return how long answers take in seconds, by the clock and of the processor."""
    seconds: list[tuple[float, float]] = []
    for number in range(num + 3):
        start = time.perf_counter(), time.process_time()
        hits = index.search(f"{CAPTIONS[number % len(CAPTIONS)]} {number}")
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        assert len(hits) == 20
        assert hits[0].captions
    by_clock, of_processor = zip(*seconds[3:], strict=True)
    return sorted(by_clock), sorted(of_processor)


def share_below(seconds: list[float], share: float) -> float:
    """Return what a share of sorted seconds does not exceed."""
    return seconds[min(int(share * len(seconds)), len(seconds) - 1)]


def indexing(eve: Eve, folder: Path, num: int) -> dict[str, Callable[[], None]]:
    """Return what reads and decodes photos, what encodes them, and what indexes them."""
    photos = folder / f"photos-{num}"
    photos.mkdir()
    for number in range(num):
        (photos / f"{number:05}.jpg").write_bytes(made_up_photo(number))
    paths = sorted(photos.iterdir())
    size = eve.run.config.input.image_size
    pixels = torch.stack([decode(ImageFile(path=path), "photo", crop=Crop(size=size)) for path in paths])

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


def main() -> None:
    """Measure, print, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, nargs="*", default=[100_000, 1_000_000], help="sizes of made-up indices")
    parser.add_argument("--width", type=int, default=256, help="numbers of a picture's features")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 224], help="sides of what the encoder sees, for indexing")
    parser.add_argument("--photos", type=int, default=512, help="how many to index")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of indexing after the warm-up")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="little of everything: checks the script, measures nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    if args.quick:
        args.pictures, args.queries, args.photos, args.repeats, args.sizes = [500], 3, 4, 2, [32]
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        eve = small_run(folder / "run", args.width, 32)
        for num in args.pictures:
            index = made_up_index(folder / f"index-{num}", eve, num)
            both = dict(zip(("clock", "processor"), waits(index, args.queries), strict=True))
            times = {
                f"{name} p{100 * share:.0f}": share_below(each, share) for name, each in both.items() for share in (0.5, 0.95)
            }
            verdict = Goal(limit=WAIT[num]).check(times["processor p95"]) if num in WAIT else ""
            shown = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in times.items())
            print(f"{num:9,} pictures of {args.width} numbers: {shown}   {verdict}")
            found[f"search {num}"] = times
        for size in args.sizes:
            eve = small_run(folder / f"run-{size}", args.width, size)
            (folder / str(size)).mkdir()
            times = interleaved(indexing(eve, folder / str(size), args.photos), args.repeats)
            rates = {what: args.photos / statistics.median(seconds) for what, seconds in times.items()}
            possible = [sum(both) for both in zip(times["read and decode"], times["encode"], strict=True)]
            share = statistics.median(best / index for best, index in zip(possible, times["index"], strict=True))
            shown = ", ".join(f"{what} {rate:.0f}" for what, rate in rates.items())
            verdict = "" if args.quick else SHARE.check(share)
            print(
                f"photos to {size}²: {shown} pictures/s; index at {share:.2f} of the first two one after the other   {verdict}"
            )
            found[f"index {size}"] = {**rates, "share": share}
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "cores": os.cpu_count(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
