"""Benchmarks: rows of the paper's Table 1, the search for the largest batch, whole scripts on tiny
shapes."""

import importlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eve_vl.recipes import get_recipe
from eve_vl.run.flops import inspect_config
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # scripts import each other by name
step_cost = importlib.import_module("step_cost")
steps = importlib.import_module("step_variants")

GIB = 2**30
CPU = torch.device("cpu")


def tiny_rows(depths=(1, 2)):
    return steps.variants(get_recipe("tiny"), depths)


# Rows


def test_rows_are_those_of_the_papers_table():
    rows = tiny_rows((1, 4))
    names = ("mlm_weight", "mim_weight", "itc_weight", "itm_weight")
    weights = [tuple(getattr(row.config.task, name, 0) for name in names) for row in rows]
    assert weights == [
        (1, 1, 0, 0),
        (1, 1, 0, 0),
        (1, 1, 1, 0),
        (1, 0, 1, 1),
        (1, 1, 1, 1),
    ]
    assert [row.decoder_depth for row in rows] == [1, 4, 1, 0, 1]
    assert [row.paper_hours for row in rows] == [2.14, 2.14, 3.26, 6.88, 7.73]
    assert [row.is_eve for row in rows] == [True, True, False, False, False]


def test_base_has_the_flops_counted_by_hand():
    """Per pair at full length: a dense ViT-B would take 3.5 times EVE's with ITC + ITM + MLM."""
    configs = {row.name: row.config for row in steps.variants(get_recipe("base"), (1, 2))}
    baseline = inspect_config(configs["MLM+ITC+ITM"]).flops_per_step
    eve_1 = inspect_config(configs["MLM+MIM, decoder 1"]).flops_per_step
    eve_2 = inspect_config(configs["MLM+MIM, decoder 2"]).flops_per_step
    assert 3.3 < baseline / eve_2 < baseline / eve_1 < 3.6


@pytest.mark.parametrize("texts", ["captions", "full"])
def test_random_texts_have_the_requested_length(texts):
    batch = steps.made_up_batch(get_recipe("base"), 64, texts)
    lengths = (~batch.is_padding_BT).sum(1)
    assert batch.ids_BT.shape[1] == lengths.max()
    if texts == "full":
        assert (lengths == 40).all()
    else:
        assert 12 < lengths.float().mean() < 16
        assert lengths.min() >= 6
    assert len(batch.image_id_B.unique()) == 64
    assert not (batch.is_masked_BT & batch.is_padding_BT).any()


def test_tasks_share_weights_and_train_like_single_tasks():
    rows = tiny_rows()
    board = step_cost.Steps(rows, CPU)
    batch = steps.made_up_batch(rows[0].config, 4, "captions")
    shared: dict[str, torch.nn.Parameter] = {}
    for index, row in enumerate(rows):
        assert board.run(index, batch) > 0
        with torch.device("meta"):
            alone = build_untrained(row.config, Sizes(vocab_size=row.config.tokenizer.vocab_size))
        used = {name for name, value in board.shared.items() if value.grad is not None}
        assert used == {name for name, _ in alone.named_parameters()}
        for name, parameter in board.tasks[index].named_parameters():
            assert shared.setdefault(name, parameter) is parameter
    assert board.optimizer() > 0


# Memory


def peak(batch, gib, seconds_per_pair=0.1):
    return steps.Peak(
        batch=batch,
        bytes=round(gib * GIB),
        seconds=batch * seconds_per_pair,
    )


def simulated(
    gib,
    *,
    flat=0.0,
    room=1e9,
    seconds=0.2,
):
    """A machine whose steps need so much per pair above 1 GiB, but `flat` at least, and that has no
    `room` for more."""
    asked = []

    def measure(batch):
        asked.append(batch)
        needed = max(flat, 1 + gib * batch)
        return peak(batch, needed, seconds) if needed <= room else None

    return measure, asked


@pytest.mark.parametrize(
    ("gib", "options", "expected"),
    [
        (0.5, {}, 17),
        (0.051, {}, 168),
        (0.5, {"flat": 5.0}, 17),  # the first line is level
        (0.5, {"flat": 2.9}, 17),  # the first line is too steep or too level
        (0.5, {"room": 8.0}, 14),  # what a GPU refuses is no point on a line
        (40.0, {}, 0),
    ],
)
def test_search_ends_at_the_largest_batch_that_fits(gib, options, expected):
    measure, asked = simulated(gib, **options)
    batch = steps.growth(measure, 8)
    assert asked == [2, 4]
    assert steps.largest_batch(measure, batch, round(9.6 * GIB)) == (expected, True)
    assert len(asked) <= 8
    assert expected == 0 or expected in asked


def test_steps_of_minutes_and_batches_that_never_fit_are_not_run():
    measure, asked = simulated(0.1, seconds=5.0)
    assert steps.largest_batch(measure, steps.growth(measure, 8), 9 * GIB) == (16, False)
    assert asked == [2, 4]
    measure, _ = simulated(1.0, room=4.0)
    with pytest.raises(UserError, match="smaller --batch"):
        steps.growth(measure, 8)


def test_memory_is_measured_in_a_separate_process(quick_spawn):
    ballast = torch.ones(200 * 2**20 // 4)  # the parent's memory must not count
    config = get_recipe("tiny")
    peak = steps.in_own_process(config, 2, "captions")
    here = steps.run_step(config, 2, "captions")
    assert ballast.sum() > 0
    assert peak.batch == 2
    assert peak.seconds > 0
    assert 100 * 2**20 < peak.bytes < here.bytes


# The script


def test_the_script_prints_and_writes_the_ratios_of_its_times(tmp_path, monkeypatch, capsys):
    flags = "--recipe tiny --batch 2 --decoder-depths 1 2 --repeats 1 --threads 1 --no-memory"
    path = tmp_path / "a.json"
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *flags.split(), "--json", str(path)])
    step_cost.main()
    values = json.loads(path.read_text())
    rows = {row["name"]: row for row in values["rows"]}
    assert [row["decoder_depth"] for row in rows.values()] == [1, 2, 1, 0, 1]
    eve = rows[values["reference"]]
    assert eve["name"] == "MLM+MIM, decoder 1"
    for row in rows.values():
        seconds = np.array(row["seconds_per_sample_rounds"])
        ratios = seconds / eve["seconds_per_sample_rounds"]
        assert row["seconds_over_eve"] == np.median(ratios)
        assert row["gflop_over_eve"] == row["gflop_per_sample"] / eve["gflop_per_sample"]
    assert [row["paper_over_eve"] for row in values["baseline_by_decoder"]] == [6.88 / 2.14] * 2
    printed = capsys.readouterr().out
    assert f"{rows['MLM+ITC+ITM']['seconds_over_eve']:.2f}" in printed
    assert "3.21" in printed  # the paper's


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch 0", "--batch 0 is not positive"),
        ("--memory-cap 4 --no-memory", "no use with --no-memory"),
        ("--recipe tiney", "tiny"),
        ("--recipe tiny --decoder-depths 2 -1", "decoder depths 2 -1"),
    ],
)
def test_wrong_flags_fail_before_measuring(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        step_cost.parsed(flags.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# Search


def test_search_is_measured(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["search.py", "--quick", "--json", str(path)])
    importlib.import_module("search_speed").main()
    printed = capsys.readouterr().out
    measured = json.loads(path.read_text())["found"]
    searches = {f"search photos 32, {number} re-ranked" for number in (0, 16)}
    assert set(measured) == {"search 500", "search 500 by vectors", "index 32", *searches}
    work = ("read and decode", "encode", "index", "share")
    clocks = ("by the clock", "of the processor")
    assert set(measured["index 32"]) == set(map(" ".join, itertools.product(work, clocks)))
    for numbers in measured.values():
        assert min(numbers.values()) > 0
    assert "      500 images of 256 numbers: clock p50" in printed
    assert "        4 photos to 32², 16 re-ranked: clock p50" in printed
    for clock in clocks:
        assert f"; share {clock} " in printed
