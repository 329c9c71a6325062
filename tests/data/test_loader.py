"""Samples depend on seed, epoch and row only, with any worker and after any resume."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import Config
from eve_vl.data import loader
from eve_vl.data.image_refs import ImageBytes
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.loader import eval_loader, order_of_epochs, train_batches, train_loader
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.order import epoch_order
from eve_vl.data.row_dataset import MAX_SKIPS, RowDataset, eval_positions
from eve_vl.predict.inputs import is_source
from eve_vl.search.sources import source_name
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.utils.errors import UserError
from helpers.twins import ListSource, pairs, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def rows_of(batch: PairBatch) -> list[tuple[Any, ...]]:
    """The samples of a batch as plain values, padding cut off."""
    found = []
    for b, where in enumerate(batch.where):
        length = int((~batch.is_padding_BT[b]).sum())
        found.append(
            (
                where,
                batch.images_BCHW[b].numpy().tobytes(),
                batch.ids_BT[b, :length].tolist(),
                batch.is_masked_BT[b, :length].tolist(),
                batch.keep_BK[b].tolist(),
                batch.hidden_BM[b].tolist(),
            )
        )
    return found


def seen(
    sources: Sequence[ListSource],
    config: Config,
    num_samples: int,
    *,
    consumed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> list[tuple[Any, ...]]:
    """The first samples that one process trains on."""
    loader = train_loader(
        MaskedPairs(sources, config, TOKENIZER, training=True),
        consumed=consumed,
        rank=rank,
        world=world,
    )
    rows: list[tuple[Any, ...]] = []
    batches: Iterator[PairBatch] = iter(loader)
    while len(rows) < num_samples:
        rows += rows_of(next(batches))
    return rows[:num_samples]


def config_of(**train: object) -> Config:
    return tiny_config(train=train)


# The same samples for everyone


def test_workers_change_nothing():
    sources = [pairs(9, bad=[4])]
    alone = seen(sources, config_of(), 24)
    for workers in (1, 2):
        assert seen(sources, tiny_config(data={"num_workers": workers}), 24) == alone


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_global_batch_of_one(world):
    sources = [pairs(10)]
    alone = seen(sources, config_of(batch_size=8), 40)
    shares = [
        seen(sources, config_of(batch_size=8), 40 // world, rank=rank, world=world)
        for rank in range(world)
    ]
    size = 8 // world
    together = [
        row
        for step in range(5)
        for share in shares
        for row in share[step * size : (step + 1) * size]
    ]
    assert together == alone


def test_accumulated_micro_batches_make_the_batch_of_one():
    sources = [pairs(10)]
    alone = seen(sources, config_of(batch_size=8), 32)
    assert seen(sources, config_of(batch_size=8, accumulation=4), 32) == alone
    shares = [
        seen(sources, config_of(batch_size=8, accumulation=2), 16, rank=rank, world=2)
        for rank in range(2)
    ]
    together = [
        row for micro in range(8) for share in shares for row in share[2 * micro : 2 * micro + 2]
    ]
    assert together == alone


@pytest.mark.parametrize("consumed", [4, 8, 9, 10, 13, 37])
def test_a_run_goes_on_where_it_stopped(consumed):
    sources = [pairs(10)]
    whole = seen(sources, config_of(), 48)
    assert seen(sources, config_of(), 48 - consumed, consumed=consumed) == whole[consumed:]


def test_loading_leaves_the_generators_of_training_alone():
    """Dropout draws from torch's generator; neither augmentation nor the loader's workers may move it."""
    for workers in (0, 2):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        seen([pairs(5)], tiny_config(data={"num_workers": workers}), 8)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_does_not_depend_on_the_state_of_any_generator():
    first = seen([pairs(5)], config_of(), 10)
    torch.manual_seed(99)
    np.random.seed(99)
    assert seen([pairs(5)], config_of(), 10) == first


def test_seeds_differ():
    first, second = (seen([pairs(6)], config_of(seed=seed), 6) for seed in (0, 1))
    assert [row[0] for row in first] != [row[0] for row in second]
    by_row = {row[0]: row for row in first}
    assert all(by_row[row[0]][1:] != row[1:] for row in second)


# Order


@pytest.mark.parametrize("lengths", [[7], [3, 5], [1, 10, 2]])
def test_every_row_comes_once_per_epoch(lengths):
    rows = {(source, row) for source, length in enumerate(lengths) for row in range(length)}
    orders = [epoch_order(lengths, (), 0, epoch) for epoch in range(4)]
    for order in orders:
        assert order.shape == (len(rows), 2)
        assert {(int(source), int(row)) for source, row in order} == rows
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[2], epoch_order(lengths, (), 0, 2))


def permutation(*key: int, length: int) -> list[int]:
    """By NumPy's generator of a key: seed, purpose (1: order of an epoch, 2: rows of a source), and what it is for."""
    return np.random.default_rng(key).permutation(length).tolist()


def test_orders_are_those_of_the_documented_streams():
    """Each source goes through its own permutations; each epoch shuffles what it takes of them."""
    for epoch in range(3):
        rows = [
            (source, row) for source in (0, 1) for row in permutation(7, 2, epoch, source, length=5)
        ]
        expected = [rows[place] for place in permutation(7, 1, epoch, length=10)]
        assert [*map(tuple, epoch_order([5, 5], (), 7, epoch).tolist())] == expected
    streams = [
        [row for turn in range(12) for row in permutation(7, 2, turn, source, length=length)]
        for source, length in ((0, 6), (1, 3))
    ]
    for epoch in range(5):  # a weight of 1 to 2: three of nine samples are from the first source
        rows = [(0, row) for row in streams[0][3 * epoch : 3 * epoch + 3]]
        rows += [(1, row) for row in streams[1][6 * epoch : 6 * epoch + 6]]
        expected = [rows[place] for place in permutation(7, 1, epoch, length=9)]
        order = epoch_order([6, 3], (1.0, 2.0), 7, epoch)
        assert order.dtype == np.int64 and [*map(tuple, order.tolist())] == expected


def test_a_source_may_have_no_share():
    assert {source for source, _ in epoch_order([4, 4], (0.0, 1.0), 0, 3).tolist()} == {1}


def test_weights_of_sources_reach_the_order():
    data = {"num_workers": 0, "train": ("a", "b"), "val": ("a",), "train_weights": (1.0, 7.0)}
    sources, config = [pairs(4, name="a"), pairs(4, name="b")], tiny_config(data=data)
    order = epoch_order([4, 4], (1.0, 7.0), config.train.seed, 0).tolist()
    assert [row[0] for row in seen(sources, config, 8)] == [
        f"{'ab'[source]}:{row}" for source, row in order
    ]


def test_an_order_is_made_once_per_epoch(monkeypatch):
    made = []
    dataset = MaskedPairs([pairs(5), pairs(3)], config_of(), TOKENIZER, training=True)
    monkeypatch.setattr(
        loader, "epoch_order", lambda *args: made.append(args[-1]) or epoch_order(*args)
    )
    list(islice(train_batches(8, order_of_epochs(dataset), start=0, micro_batch=4, stride=4), 6))
    assert made == [0, 1, 2]


def test_the_loader_goes_through_epochs_back_to_back():
    rows = seen([pairs(6), pairs(4, name="other")], config_of(), 30)
    for epoch in range(3):
        names = [row[0] for row in rows[10 * epoch : 10 * epoch + 10]]
        assert len(set(names)) == 10
    first, second = rows[:10], rows[10:20]
    assert sorted(row[0] for row in first) == sorted(row[0] for row in second)
    by_row = {row[0]: row for row in first}
    assert all(
        by_row[row[0]][4] != row[4] or by_row[row[0]][1] != row[1] for row in second
    )  # masks or crops drawn anew


def test_order_is_a_fair_shuffle():
    counts = np.zeros((6, 6))
    for epoch in range(1200):
        counts[np.arange(6), epoch_order([6], (), 1, epoch)[:, 1]] += 1
    np.testing.assert_allclose(counts / 1200, 1 / 6, atol=5 * np.sqrt(5 / 36 / 1200))


@pytest.mark.parametrize(
    ("lengths", "weights"),
    [([6, 4], (1.0, 3.0)), ([3, 20], (9.0, 1.0)), ([5, 5, 2], (0.2, 0.3, 0.5))],
)
def test_weights_set_the_shares_and_rows_of_a_source_come_equally_often(lengths, weights):
    total = sum(lengths)
    counts = [Counter() for _ in lengths]
    for epoch in range(60):
        order = epoch_order(lengths, weights, 0, epoch)
        assert len(order) == total
        for source, weight in enumerate(weights):
            rows = order[order[:, 0] == source, 1].tolist()
            assert abs(len(rows) - total * weight / sum(weights)) < 1
            counts[source].update(rows)
        for source, length in enumerate(lengths):
            times = [counts[source][row] for row in range(length)]
            assert max(times) - min(times) <= 1, (epoch, source)


def test_an_epochs_order_is_found_without_the_epochs_before_it():
    order = partial(epoch_order, [5, 3], (1.0, 1.0), 0)
    batches = train_batches(8, order, start=0, micro_batch=4, stride=4)
    positions = [position for batch in islice(batches, 20) for position in batch]
    late = train_batches(8, order, start=53, micro_batch=4, stride=4)
    assert [position for batch in islice(late, 5) for position in batch] == positions[53:73]
    assert [position[0] for position in positions] == [index // 8 for index in range(80)]


# Samples


def test_captions_are_sampled_evenly_in_each_epoch():
    dataset = MaskedPairs([pairs(1, captions=3)], config_of(), TOKENIZER, training=True)
    texts = Counter(TOKENIZER.decode(dataset[(epoch, 0, 0)].ids_T) for epoch in range(300))
    assert len(texts) == 3
    assert min(texts.values()) > 60
    evaluation = MaskedPairs([pairs(2, captions=3)], config_of(), TOKENIZER, training=False)
    full = MaskedPairs(
        [pairs(2, captions=3)], tiny_config(input={"text_length": 100}), TOKENIZER, training=False
    )
    first_caption = pairs(2)[0].captions[0]
    assert (
        RowDataset.load(full, 0, 0, 0).ids_T.tolist()
        == TOKENIZER.encode(first_caption, 100)[0].tolist()
    )
    assert evaluation[(0, 0, 0)].ids_T.tolist() == TOKENIZER.encode(first_caption, 12)[0].tolist()


def test_masks_of_a_sample_have_the_configured_shares():
    config = tiny_config(task={"image_mask_ratio": 0.5, "text_mask_ratio": 0.25})
    dataset = MaskedPairs([pairs(4)], config, TOKENIZER, training=True)
    for epoch in range(3):
        for row in range(4):
            sample = dataset.load(epoch, 0, row)
            assert len(sample.keep_K) == len(sample.hidden_M) == 8
            assert sample.is_masked_T.sum() == max(1, round((len(sample.ids_T) - 1) * 0.25))
            assert not sample.is_masked_T[0]
            assert sample.image.shape == (3, 16, 16)
            assert sample.image.dtype == torch.uint8


def test_augmentation_follows_the_config():
    source = pairs(2, size=16)  # already the model's size: without crop and flip nothing happens
    plain = tiny_config(data={"crop_scale": (1.0, 1.0), "flip": False})
    source_image = RowDataset.load(
        MaskedPairs([source], plain, TOKENIZER, training=False), 0, 0, 0
    ).image
    flipping = MaskedPairs(
        [source], replace(plain, data=replace(plain.data, flip=True)), TOKENIZER, training=True
    )
    outcomes = [flipping[(epoch, 0, 0)].image for epoch in range(40)]
    is_flipped = [torch.equal(image, source_image.flip(2)) for image in outcomes]
    assert all(
        flipped or torch.equal(image, source_image)
        for flipped, image in zip(is_flipped, outcomes, strict=True)
    )
    assert 8 < sum(is_flipped) < 32
    cropping = MaskedPairs([source], tiny_config(data={"flip": False}), TOKENIZER, training=True)
    assert len({cropping[(epoch, 0, 0)].image.numpy().tobytes() for epoch in range(10)}) > 5


def test_batches_are_padded_to_their_longest_caption():
    dataset = MaskedPairs([pairs(6)], config_of(), TOKENIZER, training=True)
    samples = [dataset.load(0, 0, row) for row in range(6)]
    lengths = [len(sample.ids_T) for sample in samples]
    assert len(set(lengths)) > 1
    batch = PairBatch.collate(samples, TOKENIZER.pad_id)
    assert (
        batch.ids_BT.shape
        == batch.is_padding_BT.shape
        == batch.is_masked_BT.shape
        == (6, max(lengths))
    )
    for b, sample in enumerate(samples):
        assert batch.ids_BT[b].tolist() == sample.ids_T.tolist() + [TOKENIZER.pad_id] * (
            max(lengths) - lengths[b]
        )
        assert batch.is_padding_BT[b].tolist() == [t >= lengths[b] for t in range(max(lengths))]
        assert batch.is_masked_BT[b].tolist() == sample.is_masked_T.tolist() + [False] * (
            max(lengths) - lengths[b]
        )
        assert torch.equal(batch.images_BCHW[b], sample.image)
    assert batch.num_real == sum(lengths)
    assert batch.masked_M is not None
    assert batch.places().tolist() == batch.is_masked_BT.flatten().nonzero().squeeze(1).tolist()
    assert torch.equal(batch.targets(), batch.ids_BT[batch.is_masked_BT])
    assert torch.equal(replace(batch, masked_M=None).places(), batch.masked_M)
    short = PairBatch.collate(
        sorted(samples, key=lambda sample: len(sample.ids_T))[:1], TOKENIZER.pad_id
    )
    assert short.ids_BT.shape == (1, min(lengths))
    assert not short.is_padding_BT.any()


# Evaluation


@pytest.mark.parametrize(
    ("lengths", "num"), [([10], 10), ([10], 99), ([100], 7), ([3, 50, 1], 12), ([1000, 10], 1001)]
)
def test_eval_positions_are_spread_evenly_without_repeats(lengths, num):
    positions = eval_positions(lengths, num)
    total = sum(lengths)
    assert len(positions) == len(set(positions)) == min(num, total)
    starts = [sum(lengths[:source]) for source in range(len(lengths))]
    flat = [starts[source] + row for _, source, row in positions]
    assert all(0 <= row < lengths[source] for _, source, row in positions)
    assert flat == sorted(flat)
    assert all(
        i * total // len(flat) <= row < (i + 1) * total // len(flat) for i, row in enumerate(flat)
    )
    assert positions == eval_positions(lengths, num)


def test_rows_that_alternate_are_both_evaluated():
    rows = [row % 2 for _, _, row in eval_positions([400], 100)]
    assert 30 < sum(rows) < 70


def eval_rows(
    config: Config, source: ListSource, *, batch_size: int, rank: int = 0, world: int = 1
) -> list[tuple[Any, ...]]:
    loader = eval_loader(
        MaskedPairs([source], config, TOKENIZER, training=False),
        batch_size=batch_size,
        rank=rank,
        world=world,
    )
    rows = []
    for batch in loader:
        assert batch.wrong is not None
        rows += zip(rows_of(batch), rows_of(batch.wrong), strict=True)
    return rows


def test_evaluation_sees_the_same_samples_whoever_loads_them():
    source = pairs(11)
    expected = eval_rows(config_of(), source, batch_size=11)
    assert [own[0] for own, _ in expected] == [f"list:{row}" for row in range(11)]
    assert eval_rows(config_of(), source, batch_size=4) == expected
    assert eval_rows(tiny_config(data={"num_workers": 2}), source, batch_size=3) == expected
    shares = [eval_rows(config_of(), source, batch_size=2, rank=rank, world=3) for rank in range(3)]
    assert [shares[index % 3][index // 3] for index in range(11)] == expected
    few = eval_rows(tiny_config(data={"val_samples": 4}), source, batch_size=4)
    picks = [row for _, _, row in eval_positions([11], 4)]
    assert few == [expected[row] for row in picks]


def test_wrong_partner_never_shares_a_caption():
    rows = [pairs(12)[row] for row in range(12)]
    shared = ("a red circle", "twins")
    rows[0:9] = [
        replace(row, captions=shared if i % 2 else ("a red circle",))
        for i, row in enumerate(rows[0:9])
    ]
    source = ListSource(rows)
    for own, wrong in eval_rows(config_of(), source, batch_size=5):
        own_row, wrong_row = (int(name.split(":")[1]) for name in (own[0], wrong[0]))
        assert not set(rows[own_row].captions) & set(rows[wrong_row].captions)


def test_a_set_of_one_caption_has_no_wrong_partner():
    row = pairs(1)[0]
    with pytest.raises(
        UserError, match="none of the 2 validation pairs is usable and has another caption"
    ):
        eval_rows(config_of(), ListSource([row, replace(row, where="list:1")]), batch_size=2)


def test_a_lone_pair_is_reported_before_training():
    with pytest.raises(
        UserError, match="list:0: none of the 2 validation pairs is usable and has another caption"
    ):
        eval_loader(
            MaskedPairs([pairs(2, bad=[1])], config_of(), TOKENIZER, training=False),
            rank=0,
            world=1,
        )


# Rows that cannot be used


def test_bad_rows_are_reported_and_replaced_by_the_next_good_one():
    source = pairs(8, bad=[2, 3, 7])
    dataset = MaskedPairs([source], config_of(), TOKENIZER, training=True)
    for row, stand_in, skipped in [(1, 1, []), (2, 4, [2, 3]), (3, 4, [3]), (7, 0, [7])]:
        sample = dataset[(0, 0, row)]
        assert sample.where == f"list:{stand_in}"
        assert [error.where for error in sample.skipped] == [f"list:{bad}" for bad in skipped]
        own = dataset.load(0, 0, stand_in)
        assert sample.batch is PairBatch
        assert torch.equal(sample.image, own.image)
        assert sample.keep_K.tolist() == own.keep_K.tolist()
    config = config_of(batch_size=8)
    batch = next(
        iter(
            train_loader(
                MaskedPairs([source], config, TOKENIZER, training=True), consumed=0, rank=0, world=1
            )
        )
    )
    assert Counter(error.where for error in batch.skipped) == {
        "list:2": 1,
        "list:3": 2,
        "list:7": 1,
    }
    assert len(batch.where) == 8
    in_worker = replace(config, data=replace(config.data, num_workers=1))
    again = next(
        iter(
            train_loader(
                MaskedPairs([source], in_worker, TOKENIZER, training=True),
                consumed=0,
                rank=0,
                world=1,
            )
        )
    )
    assert [str(error) for error in again.skipped] == [str(error) for error in batch.skipped]


def test_images_that_cannot_be_decoded_are_bad_rows_and_small_ones_are_not():
    broken = ImageText(image=ImageBytes(data=b"no image"), captions=("a circle",), where="list:0")
    tiny = replace(pairs(1, size=3)[0], where="list:1")
    dataset = MaskedPairs([ListSource([broken, tiny])], config_of(), TOKENIZER, training=True)
    sample = dataset[(0, 0, 0)]
    assert sample.where == "list:1"
    assert sample.image.shape == (3, 16, 16)
    assert [error.where for error in sample.skipped] == ["list:0"]


def test_evaluation_leaves_bad_rows_out_and_never_takes_one_as_partner():
    source = pairs(10, bad=[1, 6])
    names = [(own[0], wrong[0]) for own, wrong in eval_rows(config_of(), source, batch_size=10)]
    assert [own for own, _ in names] == [f"list:{row}" for row in (0, 2, 3, 4, 5, 7, 8, 9)]
    assert not {wrong for _, wrong in names} & {"list:1", "list:6"}
    assert all(own != wrong for own, wrong in names)


def test_a_long_stretch_of_bad_rows_is_a_mistake_in_the_set_up():
    dataset = MaskedPairs(
        [pairs(40, bad=range(5, 5 + MAX_SKIPS))], config_of(), TOKENIZER, training=True
    )
    assert dataset[(0, 0, 6)].where == f"list:{5 + MAX_SKIPS}"
    with pytest.raises(
        UserError,
        match=rf"{MAX_SKIPS} rows in a row cannot be used; the last: list:24: made to be broken",
    ):
        dataset[(0, 0, 5)]
    with pytest.raises(UserError, match="rows in a row"):
        MaskedPairs([pairs(2, bad=[0, 1])], config_of(), TOKENIZER, training=True)[(0, 0, 0)]


def test_sources_are_opened_by_their_specs(tmp_path):
    train, val = open_sources(["scenes", "scenes:val"], config_of().data, 16)
    assert len(train) > len(val) > 0
    image = train[0].image
    assert image.pixels.shape == (16, 16, 3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError):
        open_sources([str(tmp_path / "nothing.jsonl")], config_of().data, 16)


def test_rows_of_generated_data_have_the_kind_that_is_asked_for():
    for kind, spec in (("auto", "captions"), ("captions", "captions"), ("questions", "questions")):
        (source,) = open_sources(["scenes:val"], config_of().data, 16, kind)
        (expected,) = open_sources(["scenes:val"], config_of().data, 16, spec)
        assert type(source) is type(expected)
    with pytest.raises(
        UserError,
        match=r"^scenes:val: the generated scenes hold no recipes, but .*captions, .*questions",
    ):
        open_sources(["scenes:val"], config_of().data, 16, "recipes")


def test_options_of_reading_reach_the_reader_and_the_size_the_generator(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/0.png").touch()
    (tmp_path / "rows.txt").write_text("picture,words,caption\n0.png,a circle,wrong\n")
    options = {
        "format": "csv",
        "image_root": tmp_path / "here",
        "image_column": "picture",
        "text_column": "words",
    }
    data = replace(
        config_of().data,
        train=(str(tmp_path / "rows.txt"),),
        val=(str(tmp_path / "rows.txt"),),
        **options,
    )  # pyright: ignore
    train, val = open_train_and_val(replace(config_of(), data=data))
    assert train[0][0].captions == ("a circle",)  # pyright: ignore[reportAttributeAccessIssue]
    assert train[0][0].image.path == tmp_path / "here/0.png"  # pyright: ignore[reportAttributeAccessIssue]
    assert val[0][0].captions == ("a circle",)  # pyright: ignore[reportAttributeAccessIssue]
    generated = replace(data, train=("scenes:val",), val=("scenes:train",))
    for (source,) in open_train_and_val(replace(config_of(), data=generated)):
        assert source[0].image.pixels.shape == (16, 16, 3)  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "here/0.png").unlink()
    with pytest.raises(UserError):
        open_sources([str(tmp_path / "rows.txt")], data, 16)
    assert len(open_sources([str(tmp_path / "rows.txt")], data, 16, must_be_usable=False)[0]) == 1


def test_worker_and_memory_settings_reach_torch(monkeypatch):
    def of(device: str, workers: int) -> Any:
        config = tiny_config(data={"num_workers": workers}, train={"device": device})
        dataset = MaskedPairs([pairs(4)], config, TOKENIZER, training=True)
        return train_loader(dataset, consumed=0, rank=0, world=1)

    monkeypatch.setattr(loader, "usable_cores", lambda: 2)
    assert [of("cpu", workers).num_workers for workers in (0, 1, 2, 9)] == [0, 1, 2, 2]
    assert not of("cuda", 0).pin_memory and of("cpu", 1).prefetch_factor == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of("cuda", 0).pin_memory and not of("cpu", 0).pin_memory


def test_a_folder_named_like_a_generator_is_not_replaced_by_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    for number in range(3):
        (tmp_path / f"scenes/{number}.png").touch()
        (tmp_path / f"scenes/{number}.txt").write_text(f"number {number}")
    for name in ("scenes", "phantoms"):
        (tmp_path / name).mkdir(exist_ok=True)
        with pytest.raises(
            UserError,
            match=f"^{name}: is both a path and built-in data; write ./{name} for the path",
        ):
            open_sources([name], config_of().data, 16)
    (own,) = open_sources(["./scenes"], config_of().data, 16)
    (built_in,) = open_sources(["scenes:train"], config_of().data, 16)
    assert (len(own), len(built_in)) == (3, 100_000)
    for read in (source_name, is_source):  # what eve index and eve encode ask
        with pytest.raises(UserError, match=r"^scenes: is both a path and built-in data"):
            read("scenes")
        assert read("./scenes")
