"""Batches whose rows share a value of a column, or come in pairs of one caption; the same sequence for everyone."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from torch.utils.data import Subset

from eve_vl.data.kinds.captions import CaptionedImages
from eve_vl.data.loader import train_batches, train_loader
from eve_vl.data.opening import open_train_and_val
from eve_vl.data.order import epoch_order
from eve_vl.data.readers.open_source import open_source
from eve_vl.data.same_value_batches import grouped, grouping, hashes_of
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import UserError
from helpers.color_cards import COLORS, write_images
from helpers.twins import pairs, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZES = {"fine": 26, "bold": 17, "flat": 9, "rare": 3}  # rows of each set
SETS = [name for name, size in SIZES.items() for _ in range(size)] + [
    None,
    "",
]  # two rows without a set


def write_table(path: Path) -> Path:
    """Rows in no particular order, their sets as SETS; the captions name the rows."""
    rows = [
        {"image": f"images/{COLORS[row % 6]}.png", "caption": f"row {row}", "set": SETS[row]}
        for row in np.random.default_rng(3).permutation(len(SETS)).tolist()
    ]
    match path.suffix:
        case ".jsonl":
            lines = [
                json.dumps({name: value for name, value in row.items() if value is not None})
                for row in rows
            ]
            path.write_text("\n\n".join(lines))
        case ".csv":
            with path.open("w") as file:
                writer = csv.DictWriter(file, ["set", "image", "caption"])
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    return path


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def table(request, tmp_path: Path) -> Path:
    write_images(tmp_path)
    return write_table(tmp_path / f"rows{request.param}")


def set_of(name: str) -> str | None:
    """The set of a row by its caption."""
    return SETS[int(name.split()[-1])] or None


def captions_of(
    path: Path, num_steps: int, *, rank: int = 0, world: int = 1, consumed: int = 0, **train: int
) -> list[str]:
    """Captions in the order in which one process trains on them."""
    data = {
        "train": (str(path),),
        "val": (str(path),),
        "batches_from": "set",
        "num_workers": train.pop("workers", 0),
    }
    config = tiny_config(task=RetrievalConfig(), data=data, train={"batch_size": 8} | train)
    dataset = CaptionedImages(
        [open_source(path, kind="captions")], config, TOKENIZER, training=True
    )
    num_batches = num_steps * config.train.accumulation
    loader = islice(train_loader(dataset, consumed=consumed, rank=rank, world=world), num_batches)
    return [dataset.sources[0][row].captions[0] for batch in loader for _, row in batch.positions]


def in_batches(rows: Sequence, size: int) -> list[Sequence]:
    return [rows[place : place + size] for place in range(0, len(rows), size)]


def test_half_of_the_batches_share_a_set_and_each_row_comes_once_an_epoch(table):
    total = len(SETS)  # 57 rows: batches of 8 straddle the epochs
    rows = captions_of(table, num_steps=total)
    for epoch in in_batches(rows, total):
        assert sorted(epoch) == sorted(f"row {row}" for row in range(total))
    shares_set = [len({set_of(row) for row in batch}) == 1 for batch in in_batches(rows, 8)]
    inside = [
        [step for step in range(total) if epoch * total <= 8 * step <= epoch * total + total - 8]
        for epoch in range(8)
    ]
    for steps in inside:
        assert (
            sum(shares_set[step] for step in steps) == len(steps) // 2
        )  # mixed ones of one set: chance 1e-3
    assert (
        len({tuple(shares_set[step] for step in steps) for steps in inside}) > 3
    )  # no fixed places


def test_processes_accumulation_workers_and_resuming_change_nothing(table):
    alone = captions_of(table, num_steps=20)
    assert captions_of(table, num_steps=20, accumulation=4) == alone
    assert captions_of(table, num_steps=20, workers=2) == alone
    for done in (1, 7, 8, 13):
        assert captions_of(table, num_steps=20 - done, consumed=8 * done) == alone[8 * done :]
    shares = [
        captions_of(table, num_steps=20, accumulation=2, rank=rank, world=2) for rank in range(2)
    ]
    together = [
        row
        for two in zip(*(in_batches(share, 2) for share in shares), strict=True)
        for part in two
        for row in part
    ]
    assert together == alone
    assert captions_of(table, num_steps=20, seed=1) != alone


def test_every_form_of_table_gives_the_same_batches(tmp_path):
    write_images(tmp_path)
    orders = [
        captions_of(write_table(tmp_path / f"rows{form}"), num_steps=9)
        for form in (".jsonl", ".csv", ".parquet")
    ]
    assert orders[0] == orders[1] == orders[2]


def arrange(
    values: Sequence[int] | None, epoch: int, size: int, captions: Sequence[int] | None = None
) -> list[int]:
    value_R, caption_R = (
        None if hashes is None else np.array(hashes) for hashes in (values, captions)
    )
    order = epoch_order([len(values or captions or ())], (), 0, epoch)
    return grouped(order, epoch, np.array([0]), value_R, caption_R, size, seed=0)[:, 1].tolist()


def test_values_come_as_often_as_their_rows():
    hashes = (
        [-7] * 400 + [5] * 200 + [2**62] * 100 + [*range(1000, 1100)]
    )  # batches of 10 out of each: 40, 20, 10, 0
    counts, times = Counter(), 300
    for epoch in range(times):
        batches = in_batches(arrange(hashes, epoch, 10), 10)
        counts.update(
            hashes[batch[0]] for batch in batches if len({hashes[row] for row in batch}) == 1
        )
    assert sum(counts.values()) == pytest.approx(
        40 * times, rel=0.02
    )  # a mixed one of one value is rare
    for value, share in ((-7, 4), (5, 2), (2**62, 1)):
        assert counts[value] == pytest.approx(40 * times * share / 7, rel=0.03)


@pytest.mark.parametrize(
    ("hashes", "size"),
    [([1] * 5, 8), ([1, 2] * 9, 10), ([3] * 40, 8), ([4], 1), ([1] * 7 + [2], 4)],
)
def test_few_rows_or_values_leave_mixed_batches(hashes, size):
    for epoch in range(4):
        assert sorted(arrange(hashes, epoch, size)) == [*range(len(hashes))]


def test_the_other_rows_keep_their_order():
    hashes = [1] * 50 + [*range(100, 150)]
    plain, new = epoch_order([100], (), 0, 0)[:, 1].tolist(), arrange(hashes, 0, 10)
    shared = {
        row
        for batch in in_batches(new, 10)
        if len({hashes[row] for row in batch}) == 1
        for row in batch
    }
    assert len(shared) == 50
    assert [row for row in new if row not in shared] == [row for row in plain if row not in shared]


def test_sources_with_equal_values_share_batches_also_with_weights():
    values = np.array([1] * 6 + [2] * 6 + [1] * 6)  # of two sources

    change = partial(
        grouped, starts=np.array([0, 12, 18]), value_R=values, caption_R=None, size=6, seed=0
    )
    for weights in ((), (1.0, 2.0)):
        batches = list(islice(train_batches([12, 6], weights, 0, 0, 6, 6, change), 3))
        of_one = [{values[12 * source + row] for _, source, row in batch} for batch in batches]
        assert sum(len(found) == 1 for found in of_one) >= 1
        assert any(
            {source for _, source, _ in batch} == {0, 1}
            for batch, found in zip(batches, of_one, strict=True)
        )


def test_values_of_broken_rows_and_of_splits(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "rows.jsonl"
    good = '{"image": "images/red.png", "caption": "a", "set": %s}'
    path.write_text(
        "\n".join(
            [
                good % '" fine "',
                "{broken",
                good % '"fine"',
                good % "3",
                good % '"3"',
                "[1]",
                good % "null",
            ]
        )
    )
    source: Any = open_source(path, kind="captions")
    assert list(source.values("set")) == [" fine ", None, "fine", 3, "3", None, None]
    hashes = hashes_of(source, "set").tolist()
    assert hashes[0] == hashes[2] and hashes[3] == hashes[4] and len({*hashes}) == 5
    assert hashes_of(Subset(Subset(source, [2, 4, 6]), [2, 0]), "set").tolist() == [
        hashes[6],
        hashes[2],
    ]


def test_a_held_out_split_trains_in_batches(tmp_path):
    write_images(tmp_path)
    rows = [
        {"image": f"images/{COLORS[row % 6]}.png", "caption": f"row {row}", "set": "ab"[row % 2]}
        for row in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = {"train": (str(path),), "val": ("held-out",), "val_fraction": 0.2, "batches_from": "set"}
    config = tiny_config(task=RetrievalConfig(), data=data)
    train, _ = open_train_and_val(config)
    loader = train_loader(
        CaptionedImages(train, config, TOKENIZER, training=True), consumed=0, rank=0, world=1
    )
    found = [
        {int(train[0][row].captions[0].split()[1]) % 2 for _, row in batch.positions}
        for batch in islice(loader, 10)
    ]
    assert sum(len(sets) == 1 for sets in found) >= 4


def test_a_missing_column_is_one_error(table, tmp_path):
    with pytest.raises(
        UserError,
        match=r"rows\..*: no row has .* column 'style'.*columns: .*set.*Name another column",
    ):
        hashes_of(open_source(table, kind="captions"), "style")
    for color in COLORS:
        (tmp_path / "images" / f"{color}.txt").write_text(color)
    with pytest.raises(
        UserError, match=r"no row has a value in column 'set'.* JSON lines, CSV, TSV or Parquet"
    ):
        hashes_of(open_source(tmp_path / "images", kind="captions"), "set")
    with pytest.raises(UserError, match="generated rows have no columns"):
        hashes_of(pairs(3), "set")


# Pairs of one caption


def slow_pairs(rows: Sequence[int], captions: Sequence[int]) -> list[int]:
    """Each row followed by the next row with its caption that has no partner yet."""
    left, found = list(rows), []
    while left:
        row = left.pop(0)
        partner = next((other for other in left if captions[other] == captions[row]), None)
        found.append(row)
        if partner is not None:
            left.remove(partner)
            found.append(partner)
    return found


@pytest.mark.parametrize("num_captions", [1, 5, 30, 200])
def test_rows_of_one_caption_come_in_pairs(num_captions):
    captions = (
        np.random.default_rng(num_captions).integers(-num_captions, num_captions, 97).tolist()
    )
    for epoch in range(3):
        plain = epoch_order([97], (), 0, epoch)[:, 1].tolist()
        assert arrange(None, epoch, 8, captions) == slow_pairs(plain, captions)


def test_pairs_come_in_the_mixed_batches():
    values, captions = [row % 4 for row in range(480)], [row % 240 for row in range(480)]
    for epoch in range(3):
        rows, alone = arrange(values, epoch, 10, captions), arrange(values, epoch, 10)
        shares = [
            one == other
            for one, other in zip(in_batches(rows, 10), in_batches(alone, 10), strict=True)
        ]
        assert sum(shares) == 24
        assert all(
            len({values[row] for row in batch}) == 1
            for batch, is_shared in zip(in_batches(rows, 10), shares, strict=True)
            if is_shared
        )
        mixed, plain = (
            [
                row
                for batch, is_shared in zip(in_batches(order, 10), shares, strict=True)
                if not is_shared
                for row in batch
            ]
            for order in (rows, alone)
        )
        assert mixed == slow_pairs(plain, captions)
        assert sum(captions[one] == captions[other] for one, other in pairwise(mixed)) > 20


@pytest.mark.parametrize(
    "task", [RetrievalConfig(dedup_captions=True), ContrastMatchConfig(itc_targets="same_text")]
)
def test_a_pair_counts_as_positive_whichever_of_its_captions_is_shown(task, tmp_path):
    write_images(tmp_path)
    captions = [[f"card {row % 3}", f"sign {row % 3}"] for row in range(6)]
    rows = [
        {"image": f"images/{color}.png", "caption": texts}
        for color, texts in zip(COLORS, captions, strict=True)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = {"train": (str(path),), "val": (str(path),), "pair_captions": True}
    kind = CaptionedImages if isinstance(task, RetrievalConfig) else MaskedPairs
    config = tiny_config(task=task, data=data, train={"batch_size": 2})
    dataset, shown = (
        kind([open_source(path, kind="captions")], config, TOKENIZER, training=True),
        set(),
    )
    for batch in islice(train_loader(dataset, consumed=0, rank=0, world=1), 30):
        (_, first), (_, second) = batch.positions
        assert (first - second) % 3 == 0 and first != second
        assert (
            batch.caption_B[0] == batch.caption_B[1] and batch.image_id_B[0] != batch.image_id_B[1]
        )
        shown.add(batch.ids_BT[0].tolist() == batch.ids_BT[1].tolist())
    assert shown == {True, False}


def test_pairs_that_would_be_negatives_are_refused():
    for task in (RetrievalConfig(), ContrastMatchConfig(), MaskedSignalConfig()):
        config = tiny_config(task=task, data={"pair_captions": True})
        with pytest.raises(
            UserError,
            match=r"data.pair_captions needs contrast .*that counts equal captions as positives",
        ):
            grouping(CaptionedImages([], config, TOKENIZER, training=True))
    with pytest.raises(
        UserError, match=r"data\.pair_captions with data\.train_weights, which repeats rows"
    ):
        data = {"pair_captions": True, "train": ("a", "b"), "train_weights": (1.0, 2.0)}
        tiny_config(task=RetrievalConfig(dedup_captions=True), data=data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches_from": "set"}, "no value has as many rows as a batch, 4"),
        ({"pair_captions": True}, "no caption comes twice"),
    ],
)
def test_options_that_change_nothing_are_refused(tmp_path, options, words):
    rows = "".join(
        json.dumps({"image": f"{n}.png", "caption": str(n), "set": n % 4}) + "\n" for n in range(12)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    config = tiny_config(
        task=RetrievalConfig(dedup_captions=True), data=options, train={"batch_size": 4}
    )
    dataset = CaptionedImages(
        [open_source(tmp_path / "rows.jsonl", kind="captions", must_be_usable=False)],
        config,
        TOKENIZER,
        training=True,
    )
    with pytest.raises(UserError, match=words):
        grouping(dataset)
