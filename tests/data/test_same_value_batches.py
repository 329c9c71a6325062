"""Batches whose rows share a value of a column (data.batches_from)."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from torch.utils.data import Subset

from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.loader import order_of_epochs, train_batches, train_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.order import epoch_order
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.same_value_batches import SameValueBatches, hashes_of
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, write_images
from helpers.twins import pairs, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZES = {"fine": 26, "bold": 17, "flat": 9, "rare": 3}  # rows of each set
SETS = [name for name, size in SIZES.items() for _ in range(size)]
SETS += [None, ""]  # two rows without a set
BATCH = 8


def write_table(path: Path) -> Path:
    """Write rows in no particular order, their sets as SETS; the captions name the rows."""
    rows = []
    for row in np.random.default_rng(3).permutation(len(SETS)).tolist():
        image = f"images/{COLORS[row % 6]}.png"
        rows.append({"image": image, "caption": f"row {row}", "set": SETS[row]})
    if path.suffix == ".jsonl":
        for row in rows:
            if row["set"] is None:
                del row["set"]
        path.write_text("\n\n".join(map(json.dumps, rows)))
    elif path.suffix == ".csv":
        with path.open("w") as file:
            writer = csv.DictWriter(file, ["set", "image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    return path


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def table(request, tmp_path: Path) -> Path:
    write_images(tmp_path)
    return write_table(tmp_path / f"rows{request.param}")


def set_of(caption: str) -> str | None:
    return SETS[int(caption.split()[-1])] or None


def trained_captions(
    path: Path,
    num_steps: int,
    *,
    rank: int = 0,
    world: int = 1,
    consumed: int = 0,
    workers: int = 0,
    **train: int,
) -> list[str]:
    """Return captions in the order in which one process trains on them."""
    data = {"train": (str(path),), "val": (str(path),), "batches_from": "set"}
    config = tiny_config(
        task=RetrievalConfig(),
        data=data | {"num_workers": workers},
        train={"batch_size": BATCH} | train,
    )
    source = open_source(path, kind="captions")
    dataset = CaptionedImages([source], config, TOKENIZER, training=True)
    loader = train_loader(dataset, consumed=consumed, rank=rank, world=world)
    captions = []
    for batch in islice(loader, num_steps * config.train.accumulation):
        captions.extend(source[row].captions[0] for _, row in batch.positions)
    return captions


def in_batches(rows: Sequence, size: int) -> list[Sequence]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def test_half_of_the_batches_share_a_set_and_each_row_comes_once_an_epoch(table):
    total = len(SETS)  # 57 rows: batches of 8 straddle the epochs
    captions = trained_captions(table, num_steps=total)
    for epoch in in_batches(captions, total):
        assert sorted(epoch) == sorted(f"row {row}" for row in range(total))

    shares_a_set = [len(set(map(set_of, batch))) == 1 for batch in in_batches(captions, BATCH)]
    patterns = set()
    for epoch in range(8):
        whole_steps = [
            step
            for step in range(total)
            if epoch * total <= BATCH * step <= (epoch + 1) * total - BATCH
        ]
        pattern = tuple(shares_a_set[step] for step in whole_steps)
        assert sum(pattern) == len(whole_steps) // 2  # a mixed one of one set: chance 1e-3
        patterns.add(pattern)
    assert len(patterns) > 3  # no fixed places


def test_processes_accumulation_workers_and_resuming_change_nothing(tmp_path):
    write_images(tmp_path)
    table = write_table(tmp_path / "rows.jsonl")
    expected = trained_captions(table, num_steps=20)
    assert trained_captions(table, num_steps=20, accumulation=4) == expected
    assert trained_captions(table, num_steps=20, workers=2) == expected
    for done in (1, 7, 8, 13):
        resumed = trained_captions(table, num_steps=20 - done, consumed=BATCH * done)
        assert resumed == expected[BATCH * done :]

    shares = []
    for rank in range(2):
        share = trained_captions(table, num_steps=20, accumulation=2, rank=rank, world=2)
        shares.append(in_batches(share, 2))
    merged = []
    for first, second in zip(*shares, strict=True):
        merged += [*first, *second]
    assert merged == expected
    assert trained_captions(table, num_steps=20, seed=1) != expected


def test_every_form_of_table_gives_the_same_batches(tmp_path):
    write_images(tmp_path)
    orders = set()
    for suffix in (".jsonl", ".csv", ".parquet"):
        orders.add(tuple(trained_captions(write_table(tmp_path / f"rows{suffix}"), num_steps=9)))
    assert len(orders) == 1


def arranged(values: Sequence[int], epoch: int, size: int) -> list[int]:
    """Return the rows of one source in the order of an epoch."""
    batches = SameValueBatches(
        value_R=np.array(values), source_starts=np.array([0]), batch_size=size, seed=0
    )
    order = epoch_order([len(values)], (), 0, epoch)
    return batches.arrange(order, epoch)[:, 1].tolist()


def test_values_come_as_often_as_their_rows():
    # batches of 10 out of each: 40, 20, 10, 0
    values = [-7] * 400 + [5] * 200 + [2**62] * 100 + [*range(1000, 1100)]
    counts: Counter[int] = Counter()
    num_epochs = 300
    for epoch in range(num_epochs):
        for batch in in_batches(arranged(values, epoch, 10), 10):
            if len({values[row] for row in batch}) == 1:  # a mixed one of one value is rare
                counts[values[batch[0]]] += 1
    assert counts.total() == pytest.approx(40 * num_epochs, rel=0.02)
    for value, share in ((-7, 4), (5, 2), (2**62, 1)):
        assert counts[value] == pytest.approx(40 * num_epochs * share / 7, rel=0.03)


@pytest.mark.parametrize(
    ("values", "size"),
    [([1] * 5, 8), ([1, 2] * 9, 10), ([3] * 40, 8), ([4], 1), ([1] * 7 + [2], 4)],
)
def test_few_rows_or_values_leave_each_row_once(values, size):
    for epoch in range(4):
        assert sorted(arranged(values, epoch, size)) == [*range(len(values))]


def test_rows_of_mixed_batches_keep_their_order():
    values = [1] * 50 + [*range(100, 150)]
    plain = epoch_order([100], (), 0, 0)[:, 1].tolist()
    rows = arranged(values, 0, 10)
    shared = set()
    for batch in in_batches(rows, 10):
        if len({values[row] for row in batch}) == 1:
            shared.update(batch)
    assert len(shared) == 50
    assert [row for row in rows if row not in shared] == [row for row in plain if row not in shared]


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
def test_sources_with_equal_values_share_batches(weights):
    values = np.array([1] * 6 + [2] * 6 + [1] * 6)  # of two sources
    same_value = SameValueBatches(
        value_R=values, source_starts=np.array([0, 12, 18]), batch_size=6, seed=0
    )
    order = partial(epoch_order, [12, 6], weights, 0)
    arranged_order = lambda epoch: same_value.arrange(order(epoch), epoch)  # noqa: E731
    batches = train_batches(18, arranged_order, start=0, micro_batch=6, stride=6)
    shared = []
    for batch in islice(batches, 3):
        if len({values[12 * source + row] for _, source, row in batch}) == 1:
            shared.append({source for _, source, _ in batch})
    assert {0, 1} in shared


ROW = '{"image": "images/red.png", "caption": "a", "set": %s}'


def write_rows(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_values_of_broken_rows_and_of_subsets(tmp_path):
    write_images(tmp_path)
    sets = ['" fine "', None, '"fine"', "3", '"3"', None, "null"]
    lines = ["{broken" if name is None else ROW % name for name in sets]
    source = open_source(write_rows(tmp_path / "rows.jsonl", lines), kind="captions")
    hashes = hashes_of([source], "set").tolist()
    assert hashes[0] == hashes[2]
    assert hashes[3] == hashes[4]
    assert len(set(hashes)) == 5
    subset: Any = Subset(Subset(source, [2, 4, 6]), [1, 0])  # pyright: ignore[reportArgumentType]
    assert hashes_of([subset], "set").tolist() == [hashes[4], hashes[2]]


def test_rows_without_a_value_differ_from_those_of_other_sources(tmp_path):
    write_images(tmp_path)
    sources = []
    for name in ("a", "b"):
        path = write_rows(tmp_path / f"{name}.jsonl", [ROW % '"fine"', ROW % "null", ROW % "null"])
        sources.append(open_source(path, kind="captions"))
    hashes = hashes_of(sources, "set").tolist()
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 5


def test_a_held_out_split_trains_in_batches(tmp_path):
    write_images(tmp_path)
    lines = []
    for row in range(60):
        image = f"images/{COLORS[row % 6]}.png"
        lines.append(json.dumps({"image": image, "caption": f"row {row}", "set": "ab"[row % 2]}))
    path = write_rows(tmp_path / "rows.jsonl", lines)
    data = {"train": (str(path),), "val": ("held-out",), "val_fraction": 0.2, "batches_from": "set"}
    config = tiny_config(task=RetrievalConfig(), data=data)
    train, _ = open_train_and_val(config)
    dataset = CaptionedImages(train, config, TOKENIZER, training=True)
    num_shared = 0
    for batch in islice(train_loader(dataset, consumed=0, rank=0, world=1), 10):
        captions = [train[0][row].captions[0] for _, row in batch.positions]
        num_shared += len({int(caption.split()[1]) % 2 for caption in captions}) == 1
    assert num_shared >= 4


def test_a_column_without_values_is_one_error(table, tmp_path):
    message = r"rows\..*: no row has .* column 'style'.*columns: .*set.*Name another column"
    with pytest.raises(UserError, match=message):
        hashes_of([open_source(table, kind="captions")], "style")
    for color in COLORS:
        (tmp_path / "images" / f"{color}.txt").write_text(color)
    message = r"no row has a value in column 'set'.* JSON lines, CSV, TSV or Parquet"
    with pytest.raises(UserError, match=message):
        hashes_of([open_source(tmp_path / "images", kind="captions")], "set")
    with pytest.raises(UserError, match="generated rows have no columns"):
        hashes_of([pairs(3)], "set")


def test_values_with_too_few_rows_for_a_batch_are_refused(tmp_path):
    lines = [
        json.dumps({"image": f"{row}.png", "caption": str(row), "set": row % 4})
        for row in range(12)
    ]
    path = write_rows(tmp_path / "rows.jsonl", lines)
    source = open_source(path, kind="captions", must_be_usable=False)
    config = tiny_config(
        task=RetrievalConfig(), data={"batches_from": "set"}, train={"batch_size": 4}
    )
    dataset = CaptionedImages([source], config, TOKENIZER, training=True)
    with pytest.raises(UserError, match="no value has as many rows as a batch, 4"):
        order_of_epochs(dataset)
