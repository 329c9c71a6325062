"""Batches whose rows share a value of a column (data.batches_from)."""

from collections import Counter
from collections.abc import Sequence
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
from eve_vl.data.order import epoch_order
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.same_value_batches import SameValueBatches, hashes_of
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, write_images
from helpers.source_files import write_jsonl
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETS = ["fine"] * 26 + ["bold"] * 17 + ["flat"] * 9 + ["rare"] * 3 + [None, ""]
"""Of each row."""
TOTAL = len(SETS)  # batches of 8 straddle the epochs
BATCH = 8


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """JSON lines in no particular order, their sets as SETS; the captions name the rows."""
    write_images(tmp_path)
    return write_jsonl(tmp_path / "rows.jsonl", table_rows())


def table_rows() -> list[dict[str, Any]]:
    rows = []
    for row in np.random.default_rng(3).permutation(TOTAL).tolist():
        image = f"images/{COLORS[row % 6]}.png"
        rows.append(
            {
                "image": image,
                "caption": f"row {row}",
                "set": SETS[row],
            }
        )
    return rows


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
    data = {
        "train": (str(path),),
        "val": (str(path),),
        "batches_from": "set",
        "num_workers": workers,
    }
    train = {"batch_size": BATCH} | train
    config = tiny_config(
        task=RetrievalConfig(),
        data=data,
        train=train,
    )
    source = open_source(path, kind="captions")
    dataset = CaptionedImages([source], config, TOKENIZER, training=True)
    loader = train_loader(
        dataset,
        consumed=consumed,
        rank=rank,
        world=world,
    )
    captions = []
    for batch in islice(loader, num_steps * config.train.accumulation):
        for _, row in batch.positions:
            captions.append(source[row].captions[0])
    return captions


def in_batches(rows: Sequence, size: int) -> list[Sequence]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def are_of_one_set(captions: Sequence[str]) -> bool:
    """Tell whether captions name rows of one set; None and the empty text are none."""
    sets = {SETS[int(caption.split()[1])] or None for caption in captions}
    return len(sets) == 1


def test_half_of_the_batches_share_a_set_and_each_row_comes_once_an_epoch(table):
    captions = trained_captions(table, num_steps=TOTAL)
    every_caption = sorted(f"row {row}" for row in range(TOTAL))
    for epoch in in_batches(captions, TOTAL):
        assert sorted(epoch) == every_caption

    patterns = set()
    for epoch in range(8):
        first_step = -(-epoch * TOTAL // BATCH)  # that lies in this epoch alone
        end_step = (epoch + 1) * TOTAL // BATCH
        batches = in_batches(captions[first_step * BATCH : end_step * BATCH], BATCH)
        pattern = tuple(map(are_of_one_set, batches))
        assert sum(pattern) == len(pattern) // 2  # a mixed one of one set: chance 1e-3
        patterns.add(pattern)
    assert len(patterns) > 3  # no fixed places


def test_processes_accumulation_workers_and_resuming_change_nothing(table):
    expected = trained_captions(table, num_steps=12)
    assert trained_captions(table, num_steps=12, accumulation=4) == expected
    assert trained_captions(table, num_steps=12, workers=1) == expected
    for num_done in (1, 7, 10):
        resumed = trained_captions(table, num_steps=12 - num_done, consumed=BATCH * num_done)
        assert resumed == expected[BATCH * num_done :]

    shares = []
    for rank in range(2):
        share = trained_captions(
            table,
            num_steps=12,
            accumulation=2,
            rank=rank,
            world=2,
        )
        shares.append(in_batches(share, 2))
    merged = []
    for first, second in zip(*shares, strict=True):
        merged += [*first, *second]
    assert merged == expected
    assert trained_captions(table, num_steps=12, seed=1) != expected


# The order of one source


def arranged(values: Sequence[int], epoch: int, size: int) -> list[int]:
    """Return the rows of one source in the order of an epoch."""
    batches = SameValueBatches(
        value_R=np.array(values), source_starts=np.array([0]), batch_size=size, seed=0
    )
    order = epoch_order([len(values)], (), 0, epoch)
    return batches.arrange(order, epoch)[:, 1].tolist()


def test_values_come_as_often_as_their_rows():
    """Batches of 10 that each could fill: 40, 20, 10, 0. A mixed one of one value is rare."""
    values = [-7] * 400 + [5] * 200 + [2**62] * 100 + [*range(1000, 1100)]
    counts: Counter[int] = Counter()
    num_epochs = 150
    for epoch in range(num_epochs):
        for batch in in_batches(arranged(values, epoch, 10), 10):
            if len({values[row] for row in batch}) == 1:
                counts[values[batch[0]]] += 1
    num_shared = 40 * num_epochs
    assert counts.total() == pytest.approx(num_shared, rel=0.02)
    for value, share in (
        (-7, 4),
        (5, 2),
        (2**62, 1),
    ):
        assert counts[value] == pytest.approx(num_shared * share / 7, rel=0.05)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([1] * 5, 8),
        ([1, 2] * 9, 10),
        ([3] * 40, 8),
        ([4], 1),
        ([1] * 7 + [2], 4),
    ],
)
def test_few_rows_or_values_leave_each_row_once(values, size):
    for epoch in range(4):
        assert sorted(arranged(values, epoch, size)) == [*range(len(values))]


@pytest.mark.parametrize(
    "weights",
    [
        (),
        (1.0, 2.0),
    ],
)
def test_sources_with_equal_values_share_batches(weights):
    values = np.array([1] * 6 + [2] * 6 + [1] * 6)  # of two sources
    same_value = SameValueBatches(
        value_R=values, source_starts=np.array([0, 12, 18]), batch_size=6, seed=0
    )

    def order(epoch: int) -> np.ndarray:
        return same_value.arrange(epoch_order([12, 6], weights, 0, epoch), epoch)

    sources_of_shared = []
    for batch in islice(
        train_batches(
            18,
            order,
            start=0,
            micro_batch=6,
            stride=6,
        ),
        3,
    ):
        _, sources, rows = np.array(batch).T
        if len(set(values[12 * sources + rows])) == 1:
            sources_of_shared.append(set(sources))
    assert {0, 1} in sources_of_shared


# Values of rows


def rows_of_sets(path: Path, *sets: str | None) -> Any:
    """Open rows whose sets are written as JSON; None is a broken row."""
    lines = []
    for value in sets:
        if value is None:
            lines.append("{broken")
        else:
            lines.append(f'{{"image": "images/red.png", "caption": "a", "set": {value}}}')
    return open_source(write_jsonl(path, lines), kind="captions")


def test_rows_have_equal_hashes_if_their_values_are_equal(root):
    """Rows without a value differ, also from those of other sources."""
    sets = ('" fine "', None, '"fine"', "3", '"3"', None, "null")
    source = rows_of_sets(root / "a.jsonl", *sets)
    hashes = hashes_of([source], "set").tolist()
    assert hashes[0] == hashes[2]
    assert hashes[3] == hashes[4]
    assert len(set(hashes)) == 5
    subset: Any = Subset(Subset(source, [2, 4, 6]), [1, 0])
    assert hashes_of([subset], "set").tolist() == [hashes[4], hashes[2]]

    sources = [source, rows_of_sets(root / "b.jsonl", *sets)]
    assert len(set(hashes_of(sources, "set").tolist())) == 8  # two values, six without one


def test_every_form_of_table_gives_the_same_values(table):
    source = open_source(table, kind="captions")
    csv_lines = ["set,image,caption"]
    for row in table_rows():
        csv_lines.append(f"{row['set'] or ''},{row['image']},{row['caption']}")
    table.with_suffix(".csv").write_text("\n".join(csv_lines))
    arrow_table = pa.Table.from_pylist(table_rows())
    parquet.write_table(arrow_table, table.with_suffix(".parquet"), row_group_size=10)
    message = r"rows\..*: no row has .* column 'style'.*columns: .*set.*Name another column"
    for suffix in (".jsonl", ".csv", ".parquet"):
        same = open_source(table.with_suffix(suffix), kind="captions")
        assert hashes_of([same], "set").tolist() == hashes_of([source], "set").tolist()
        with pytest.raises(UserError, match=message):
            hashes_of([same], "style")


def test_sources_without_columns_are_refused(table):
    images = table.parent / "images"
    for color in COLORS:
        (images / f"{color}.txt").write_text(color)
    message = r"no row has a value in column 'set'.* JSON lines, CSV, TSV or Parquet"
    with pytest.raises(UserError, match=message):
        hashes_of([open_source(images, kind="captions")], "set")
    with pytest.raises(UserError, match="generated rows have no columns"):
        hashes_of([pairs(3)], "set")


def test_values_with_too_few_rows_for_a_batch_are_refused(tmp_path):
    rows = [
        {
            "image": f"{row}.png",
            "caption": str(row),
            "set": row % 4,
        }
        for row in range(12)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = open_source(path, kind="captions", must_be_usable=False)
    data = {"batches_from": "set"}
    config = tiny_config(
        task=RetrievalConfig(),
        data=data,
        train={"batch_size": 4},
    )
    dataset = CaptionedImages([source], config, TOKENIZER, training=True)
    with pytest.raises(UserError, match="no value has as many rows as a batch, 4"):
        order_of_epochs(dataset)
