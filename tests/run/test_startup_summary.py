"""The lines before a start: memory, and fields that may change on resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from eve_vl.config import HELD_OUT, Config, DataConfig
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.kept_memory import KeptBytes
from eve_vl.run.loading import build_untrained
from eve_vl.run.resume_checks import changes, require_truth
from eve_vl.run.startup_summary import (
    LIBRARIES,
    data_lines,
    expected_memory,
    machine_line,
    run_lines,
)
from eve_vl.run.text_lengths import check_lines, cut_texts
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.item_rows import ItemPair
from eve_vl.tasks.task import Sizes, Task
from eve_vl.utils.errors import UserError
from eve_vl.utils.launcher import ProcessPlace
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, pairs
from helpers.vlmo import tiny_vlmo

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def built(config: Config) -> Task[Any]:
    with torch.device("meta"):
        return build_untrained(config, Sizes(vocab_size=300))


def with_train(**fields: Any) -> Config:
    return tiny_config(train=fields)


def test_rows_are_those_of_each_source():
    config = replace(
        tiny_config(),
        data=replace(
            tiny_config().data,
            train=("a", "b"),
            val=("c",),
            val_samples=5,
        ),
    )
    a = pairs(3)
    b = pairs(1234)
    c = pairs(9)
    assert data_lines(config, [a, b], [c]) == [
        "training data: 3 rows of a, 1,234 rows of b",
        "validation data: 9 rows of c, 5 of them used",
    ]
    config = replace(config, data=replace(config.data, val=(HELD_OUT,), val_samples=50))
    whole = pairs(1234)
    removals = {
        0: "",
        1: " left out: 1 row that shows a held-out image too;",
        6: " left out: 6 rows that show a held-out image too;",
    }
    for num_removed, note in removals.items():
        part: Any = Subset(whole, range(12 + num_removed, 1234))  # pyright: ignore[reportArgumentType]
        assert data_lines(config, [part], [pairs(12)])[1] == (
            f"validation data: 12 of 1,234 rows held out, 1.0%;{note} fewer than 100 rows give "
            "wide intervals, --data.val-fraction 0.09 keeps more"
        )


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (
            HELD_OUT,
            "data.val held-out: no label in the first 100 validation rows, .*--data.label-column",
        ),
        (
            "val.jsonl",
            "data.val val.jsonl: no label in .*; name validation data that has them, or the column",
        ),
    ],
)
def test_validation_rows_without_labels_are_refused(val: str, message: str):
    row = ItemPair(
        left=noise(0), right=noise(1), captions=("a", "b"), label=None, where="items.jsonl:1"
    )
    config = replace(
        tiny_config(task=PairConfig()), data=DataConfig(train=("items.jsonl",), val=(val,))
    )
    with pytest.raises(UserError, match=message):
        require_truth(config, [ListSource([row])])
    require_truth(config, [ListSource([row, replace(row, label=True)])])


def test_texts_that_are_cut_are_told():
    """In a tokenizer that gives each letter a token, and one to the space before: with [CLS], n
    letters take n + 2."""
    tokenizer = Tokenizer.train(["abcdefgh"], 1)
    source = pairs(5)
    rows = [
        replace(source[row], captions=("abcdefgh"[:count],))
        for row, count in enumerate((1, 3, 4, 5, 8))
    ]
    config = replace(tiny_config(), input=replace(tiny_config().input, text_length=5))
    said = "note: 60% of the texts have more than 5 tokens, and are cut there; "
    small = (
        f"note: the vocabulary of {tokenizer.vocab_size} cuts words into 5.2 pieces on average; "
    )
    larger = small + "a larger --tokenizer.vocab-size keeps more of them whole"
    assert cut_texts(config, tokenizer, [rows[:3], rows[3:]]) == [
        said + "--input.text-length 7 holds 99% of them",
        larger,
    ]
    assert (
        cut_texts(replace(config, init=Path("runs/a")), tokenizer, [rows])[0]
        == said + "--input.text-length 7 holds 99% of them"
    )
    relative = replace(config, init=Path("runs/a"), model=tiny_vlmo())
    assert cut_texts(relative, tokenizer, [rows])[0] == said + "as runs/a reads them"
    longer = replace(config, input=replace(config.input, text_length=10))
    whole = Tokenizer.train(["a ab abc abcdefgh"] * 9, 300)
    assert cut_texts(longer, tokenizer, [rows, []]) == [larger]
    assert not cut_texts(longer, whole, [[replace(rows[0], captions=("abc ab abcdefgh",))]])
    assert check_lines(longer, tokenizer, [rows]) == [
        "tokens per text     3 / 6 / 10   (min / median / max of 5 texts)",
        "texts cut           0.0% at 10 tokens",
        f"vocabulary          {tokenizer.vocab_size} tokens, 5.20 a word",
        larger,
    ]


def test_what_does_not_train_is_told():
    config = with_train(batch_size=6, steps=10)
    task = built(config)
    total = sum(parameter.numel() for parameter in task.parameters())
    for parameter in task.encoder.parameters():
        parameter.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
    model, training = run_lines(config, task, CPU, num_rows=40)
    assert model.startswith(f"model: {total:,} parameters, {trained:,} of which train, ")
    assert model.endswith(" GFLOP a step, about 0.4 GiB of memory besides the data")
    # on a GPU no memory was measured
    assert run_lines(config, task, GPU, num_rows=40)[0].endswith(" GFLOP a step")
    assert machine_line(GPU, torch.bfloat16) == "machine: cuda, bfloat16, 1 thread"
    assert training.startswith("training: 10 steps of 6 rows, 1.5 epochs; ")
    sharded = run_lines(with_train(layout="shard"), task, CPU, num_rows=40)
    assert sharded[2].startswith("note: train.layout shard has no effect")
    repeated = run_lines(with_train(batch_size=6, steps=1200), task, CPU, num_rows=60)
    assert repeated[2].startswith("note: each row comes 120 times; ")


def test_memory_grows_with_what_is_kept():
    """Where activations take more than the copy of moments that saving makes."""
    config = with_train(batch_size=8, ema_decay=0.0)
    task = built(config)
    num = sum(parameter.numel() for parameter in task.parameters())
    alone = expected_memory(config, task)
    activations = alone - LIBRARIES - 16 * num
    assert activations > 16 * num
    averaged = with_train(batch_size=8, ema_decay=0.9)
    assert expected_memory(averaged, task) == alone + 4 * num
    twice = expected_memory(with_train(batch_size=16), task)
    assert twice == pytest.approx(alone + activations, abs=0.05 * activations)
    assert expected_memory(with_train(batch_size=16, accumulation=2), task) == alone
    recomputed = with_train(batch_size=8, checkpoint_activations=True)
    assert expected_memory(recomputed, task) < alone - activations / 2
    for parameter in task.encoder.parameters():
        parameter.requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in task.encoder.parameters())
    assert expected_memory(config, task) == alone - 12 * frozen


def test_memory_of_shards_is_that_of_one_machine(monkeypatch):
    """Of 8 processes in shards, machines of 4 have two copies of all weights; one to a machine, or
    uneven, share them all."""
    config = with_train(batch_size=8, layout="shard", ema_decay=0.0)
    task = built(config)
    memory = {}
    monkeypatch.setattr("eve_vl.run.startup_summary.processes.world_size", lambda: 8)
    monkeypatch.setattr("eve_vl.run.startup_summary.kept_bytes", lambda *_: KeptBytes())
    for num_here in (8, 4, 3, 1):
        place = ProcessPlace(world_size=8, local_world_size=num_here)
        monkeypatch.setattr("eve_vl.run.startup_summary.process_place", lambda place=place: place)
        memory[num_here] = expected_memory(config, task)
    num = sum(parameter.numel() for parameter in task.parameters())
    assert memory[8] == memory[3] == memory[1]
    # 16 bytes of training and 8 of saving, a quarter of all weights instead of an eighth
    assert memory[4] - memory[8] == pytest.approx((16 + 8) * num * (1 / 4 - 1 / 8))


def test_what_is_learnt_must_not_change():
    before = with_train(
        lr=1e-3,
        betas=(0.9, 0.98),
        steps=10,
        threads=1,
    )
    now = with_train(
        lr=2e-3,
        betas=(0.9, 0.95),
        steps=10,
        freeze=("encoder.*",),
        threads=2,
    )
    now = replace(now, data=replace(now.data, val_samples=9))
    assert changes(before, before, 5) == ([], [])
    refused, allowed = changes(before, now, 5)
    assert refused == [
        "train.betas 0.9 0.98 → 0.9 0.95",
        "train.freeze none → encoder.*",
        "train.lr 0.001 → 0.002",
    ]
    val_samples = before.data.val_samples
    assert allowed == [f"data.val_samples {val_samples} → 9", "train.threads 1 → 2"]


def test_a_run_may_become_longer():
    """Linear decay without warm-up: the rate at step 10 was to be 0 of 10 steps, and is half of the
    peak of 20."""
    before = with_train(
        lr=1e-3,
        steps=10,
        warmup=0.0,
        schedule="linear",
    )
    now = with_train(
        lr=1e-3,
        steps=20,
        warmup=0.0,
        schedule="linear",
    )
    text = (
        "the learning rate follows the schedule of 20 steps from here on: "
        "at step 10 it goes from 0 to 0.0005"
    )
    assert changes(before, now, 10) == ([], ["train.steps 10 → 20", text])
    refused, _ = changes(now, before, 11)
    assert refused == ["train.steps 10, below step 11, which it has reached"]
    assert not changes(now, before, 9)[0]
