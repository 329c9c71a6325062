"""Measure start, memory and order of training data in very many shards.

    python benchmarks/data_order.py [--shards 10000] [--rows 10000] [--folder FOLDER] [--json FILE] [--quick]

The shards are hard links to one tar of tiny images, and so are their indexes: 100 million rows take
20 MB of disk. The index is therefore always in memory. Each measurement is a process of its own;
its clock starts after the imports, and its memory is what it adds to them. A step reads and decodes
64 rows.
"""

import argparse
import dataclasses
import io
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import machine

from eve_vl.config import Config
from eve_vl.data import loader
from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.loader import train_batches, train_loader
from eve_vl.data.opening import open_sources
from eve_vl.data.order import KeyedOrder, epoch_order
from eve_vl.data.shard_order import LaneOrder
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.recipes.registry import get_recipe

BATCH, SEED = 64, 0
WORLDS, WORKERS = (1, 2, 4, 8), (0, 1, 2, 3)


def write_shards(folder: Path, shards: int, rows: int) -> None:
    """Write one shard with its index, and links to them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(rows):
            for suffix, data in (("png", file.getvalue()), ("txt", b"a card %d" % number)):
                info = tarfile.TarInfo(f"{number:09}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "00000_stats.json").write_text(json.dumps({"successes": rows}))
    open_sources([str(folder / "00000.tar")], config_of(folder, "rows").data, 16)
    for number in range(1, shards):
        for name in (".tar", ".tar.index", "_stats.json"):
            os.link(folder / f"00000{name}", folder / f"{number:05}{name}")


def config_of(folder: Path, order: str, **data: Any) -> Config:
    """Return a config on the shards."""
    config = get_recipe("tiny")
    values = {
        "train": (str(folder),),
        "val": ("held-out",),
        "order": order,
        "num_workers": 0,
        **data,
    }
    train = dataclasses.replace(config.train, batch_size=BATCH, seed=SEED)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **values), train=train)


def memory() -> float:
    """Return the resident memory of this process in MB, mapped files included."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmRSS:"))


def timed(found: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    """Return the result of `work`; note its milliseconds of processor time."""
    start = time.process_time()
    result = work()
    found[name] = 1e3 * (time.process_time() - start)
    return result


def steps(
    source: Any,
    config: Config,
    tokenizer: Tokenizer,
    consumed: int,
    num: int,
    rank: int = 0,
    world: int = 1,
) -> list[Any]:
    """Return the rows of some steps of one process."""
    dataset = CaptionedImages([source], config, tokenizer, training=True)
    return [
        batch.where
        for batch in islice(train_loader(dataset, consumed=consumed, rank=rank, world=world), num)
    ]


def start_up(folder: Path, order: str) -> dict[str, float]:
    """Return milliseconds until places and rows are there, and the memory they take."""
    config, tokenizer, found = config_of(folder, order), Tokenizer.train(["a card 0"], 300), {}
    before = memory()
    (source,) = timed(found, "open, ms", lambda: open_sources(config.data.train, config.data, 16))
    blocks, middle = [loader.blocks_of(source)], 5 * len(source) // 2 // BATCH * BATCH
    keyed = partial(KeyedOrder, [len(source)], (), SEED)
    order_of_epoch = partial(LaneOrder, blocks, BATCH, SEED) if order == "shards" else keyed
    for name, start in (("first place, ms", 0), ("place in the middle of epoch 3, ms", middle)):
        timed(
            found,
            name,
            lambda start=start: next(
                train_batches(
                    len(source), order_of_epoch, start=start, micro_batch=BATCH, stride=BATCH
                )
            ),
        )
    timed(found, "first step, ms", lambda: steps(source, config, tokenizer, 0, 1))
    many = lambda: steps(source, config, tokenizer, middle, 20)  # noqa: E731
    assert timed(found, "20 steps after resuming, ms", many)[3:4] == steps(
        source, config, tokenizer, middle + 3 * BATCH, 1
    )
    found["memory added, MB"] = memory() - before
    return found


def check_order(folder: Path, order: str) -> dict[str, float]:
    """Check that rows come once and that processes and workers keep their order."""
    small = [np.full(10_000, 100)]
    total = int(small[0].sum())
    made = (
        LaneOrder(small, 2048, SEED, 1) if order == "shards" else KeyedOrder([total], (), SEED, 1)
    )
    found: dict[str, float] = {}
    rows = timed(
        found, "one place, µs", lambda: np.array([made[place][1] for place in range(total)])
    )
    found["one place, µs"] *= 1e3 / total
    assert np.array_equal(np.sort(rows), np.arange(total))
    multiprocessing.set_start_method("fork", force=True)  # as in training; this process was spawned
    config, tokenizer = config_of(folder, order), Tokenizer.train(["a card 0"], 300)
    (source,) = open_sources(config.data.train, config.data, 16)
    expected = steps(source, config, tokenizer, 0, 4)
    loader.usable_cores = lambda: max(WORKERS)  # pyright: ignore[reportPrivateImportUsage]
    for world in WORLDS:
        for workers in WORKERS if world == 2 else (0,):
            config = config_of(folder, order, num_workers=workers)
            ranks = [steps(source, config, tokenizer, 0, 4, rank, world) for rank in range(world)]
            assert [sum((part[step] for part in ranks), ()) for step in range(4)] == expected, (
                world,
                workers,
            )
    return found


def in_process(work: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
    """Return the result of a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def before_now(shards: int, rows: int) -> dict[str, float]:
    """Return what the order as an array takes, for a tenth of the rows."""
    found, before = dict[str, float](), memory()
    order = timed(found, "first place, ms", lambda: epoch_order([shards * rows // 10], (), SEED, 0))
    return found | {"memory added, MB": memory() - before, "rows": float(len(order))}


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="70 shards of 100 rows")
    args = parser.parse_args()
    shards, rows = (70, 100) if args.quick else (args.shards, args.rows)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name, "shards")
        folder.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        write_shards(folder, shards, rows)
        for order in ("rows", "shards"):
            found[f"{order}, first start"] = in_process(start_up, folder, order)
            found[f"{order}, later starts"] = in_process(start_up, folder, order)
            found[f"{order}, checks"] = in_process(check_order, folder, order)
        found["a shuffled array of a tenth of the rows"] = in_process(before_now, shards, rows)
    print(f"{shards * rows:,} rows in {shards:,} shards; {machine()['processor']}")
    for title, values in found.items():
        print(f"{title}: " + "; ".join(f"{key} {value:,.3g}" for key, value in values.items()))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "found": found}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
