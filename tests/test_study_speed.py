"""The speed study: its rows, its clock, its memory lines, and the whole command on the tiny recipe."""

import io
import json
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from eve_vl.cli.study import SpeedArgs
from eve_vl.run import build_untrained
from rich.console import Console

from eve_vl.cli.common import flag_names
from eve_vl.config import MaskedSignalConfig
from eve_vl.errors import UserError
from eve_vl.inspect import inspect_config
from eve_vl.recipes import get_recipe
from eve_vl.study.memory import GIB, Memory, Peak, Probe, growth, largest_batch, run_probe, subprocess_measure
from eve_vl.study.speed import Row, Speed, Switchboard, clock
from eve_vl.study.speed_picture import drawing, page
from eve_vl.study.speed_table import render
from eve_vl.study.variants import Variant, gflop_per_sample, made_up_batch, variants, with_all_heads

CPU = torch.device("cpu")


def tiny_rows(depths=(1, 2)):
    return variants(get_recipe("tiny"), depths)


# Rows


def test_rows_are_those_of_the_papers_table():
    rows = tiny_rows((1, 4))
    weights = [(row.task.mlm_weight, row.task.mim_weight, row.task.itc_weight, row.task.itm_weight) for row in rows]
    assert weights == [(1, 1, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 0, 1, 1), (1, 1, 1, 1)]
    assert [row.decoder_depth for row in rows] == [1, 4, 1, 0, 1]
    assert [row.paper_hours for row in rows] == [2.14, 2.14, 3.26, 6.88, 7.73]
    assert [row.is_eve for row in rows] == [True, True, False, False, False]


def test_a_rivals_recipe_gives_the_same_rows():
    mine, theirs = variants(get_recipe("scenes_rival"), (1,)), variants(get_recipe("scenes"), (1,))
    assert [row.task for row in mine] == [row.task for row in theirs]


@pytest.mark.parametrize("depths", [(), (0,), (2, -1)])
def test_depths_must_be_positive(depths):
    with pytest.raises(UserError, match="decoder depths"):
        tiny_rows(depths)


def test_base_has_the_arithmetic_that_was_counted_by_hand():
    """GFLOP per pair at full length, forward and backward: a dense ViT-B would take 3.5 times EVE's with ITC + ITM + MLM."""
    rows = {row.name: gflop_per_sample(row, 40) for row in variants(get_recipe("base"), (1, 2, 4, 8))}
    rival = rows["MLM+ITC+ITM"]
    ratios = [rival / rows[f"MLM+MIM, decoder {depth}"] for depth in (1, 2, 4, 8)]
    assert ratios == sorted(ratios, reverse=True)
    assert 3.3 < ratios[1] < ratios[0] < 3.6
    base = get_recipe("base")
    assert rows["MLM+MIM, decoder 4"] * 1e9 == pytest.approx(inspect_config(base).flops_per_step)


@pytest.mark.parametrize("texts", ["captions", "full"])
def test_made_up_texts_have_the_length_asked_for(texts):
    config = get_recipe("base")
    batch = made_up_batch(config, 64, texts)
    lengths = (~batch.is_padding_BT).sum(1)
    assert batch.ids_BT.shape[1] == lengths.max()
    if texts == "full":
        assert (lengths == 40).all()
    else:
        assert 12 < lengths.float().mean() < 16
        assert lengths.min() >= 6
    assert len(batch.picture_B.unique()) == 64
    assert not (batch.is_masked_BT & batch.is_padding_BT).any()


# Times


def test_one_model_takes_turns_and_trains_what_each_task_alone_would():
    rows = tiny_rows((1, 2))
    torch.manual_seed(0)
    board = Switchboard(rows, CPU, torch.float32)
    everything = {name for name, _ in board.task.named_parameters()}
    batch = made_up_batch(board.config, 4, "captions")
    for row in rows:
        assert board.step(row, batch) > 0
        used = {name for name, value in board.task.named_parameters() if value.grad is not None}
        assert used == {name for name, _ in alone(row).named_parameters()}
    assert {name for name, _ in board.task.named_parameters()} == everything
    assert board.optimizer() > 0


def alone(row: Variant) -> torch.nn.Module:
    """The task with its own heads only, on no device."""
    with torch.device("meta"):
        return build_untrained(row.config, row.config.tokenizer.vocab_size)


def test_the_model_that_holds_all_heads_has_the_deepest_decoder():
    task = with_all_heads(tiny_rows((1, 5))).task
    assert isinstance(task, MaskedSignalConfig)
    assert task.decoder_depth == 5
    assert task.itm_weight == task.mim_weight == 1


def test_clock_of_one_thread_does_not_count_what_others_do():
    assert torch.get_num_threads() == 1
    assert clock(CPU)(lambda: time.sleep(0.2)) < 0.1


# Memory


def peaks(*pairs: tuple[int, float]) -> Memory:
    return Memory(peaks=tuple(Peak(batch=batch, bytes=round(gib * GIB), seconds=batch / 10) for batch, gib in pairs))


def test_largest_batch_lies_on_the_line():
    memory = peaks((2, 3.0), (4, 4.0))
    assert memory.at(4) == 4 * GIB
    assert memory.at(8) == pytest.approx(6 * GIB)
    assert memory.at(8, "seconds") == pytest.approx(0.8)
    assert [memory.largest_under(round(cap * GIB)) for cap in (1.9, 2.4, 6.1, 7.4)] == [0, 0, 8, 10]
    flat = peaks((2, 3.0), (4, 2.9))  # small batches do not show
    assert [flat.largest_under(cap * GIB) for cap in (2, 8)] == [0, 16]
    assert flat.at(8) == pytest.approx(2.9 * GIB)


def simulated(gib: float, *, flat: float = 0.0, room: float = 1e9, seconds: float = 0.2):
    """A machine whose steps need so much per pair above 1 GiB, but `flat` at least, and that has no `room` for more."""
    asked: list[int] = []

    def measure(probe: Probe) -> Peak | None:
        asked.append(probe.batch)
        needed = max(flat, 1 + gib * probe.batch)
        if needed > room:
            return None
        return Peak(batch=probe.batch, bytes=round(needed * GIB), seconds=seconds * probe.batch)

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
def test_search_ends_at_the_largest_batch_that_was_run_and_fits(gib, options, expected):
    measure, asked = simulated(gib, **options)
    config = get_recipe("tiny")
    memory = growth(config, 8, "captions", measure)
    assert asked == [2, 4]
    largest = largest_batch(config, memory, round(9.6 * GIB), "captions", measure)
    assert largest.batch == expected
    assert largest.is_verified
    assert len(asked) <= 8
    assert expected == 0 or expected in asked


def test_a_step_of_minutes_is_not_run_to_see_whether_it_fits():
    measure, asked = simulated(0.1, seconds=5.0)
    config = get_recipe("tiny")
    largest = largest_batch(config, growth(config, 8, "captions", measure), 9 * GIB, "captions", measure)
    assert asked == [2, 4]
    assert largest.batch == 16
    assert not largest.is_verified


def test_a_batch_that_does_not_fit_at_all_is_one_line():
    with pytest.raises(UserError, match="smaller --batch"):
        growth(get_recipe("tiny"), 8, "captions", simulated(1.0, room=4.0)[0])


def test_a_probe_in_a_process_of_its_own_counts_that_process_alone():
    ballast = torch.ones(200 * 2**20 // 4)  # the parent's memory must not count
    config = get_recipe("tiny")
    peak = subprocess_measure(CPU, 1)(Probe(config=config, batch=2, texts="captions"))
    assert peak is not None
    own = run_probe(Probe(config=config, batch=2, texts="captions"), CPU)
    assert ballast.sum() > 0
    assert peak.batch == 2
    assert peak.seconds > 0
    assert 100 * 2**20 < peak.bytes < own.bytes


@pytest.mark.parametrize(("code", "reason"), [(-9, "killed"), (1, "boom")])
def test_a_failed_probe_is_one_line(monkeypatch, code, reason):
    failed = subprocess.CompletedProcess([], code, "", "Traceback …\nRuntimeError: boom\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    probe = Probe(config=get_recipe("tiny"), batch=3, texts="captions")
    with pytest.raises(UserError, match=rf"batch 3 could not be measured \(.*{reason}"):
        subprocess_measure(CPU, 1)(probe)


# The table


def made_up_speed() -> Speed:
    rows = []
    for index, row in enumerate(tiny_rows((1, 2))):
        memory = peaks((2, 3.0 + index), (4, 4.0 + 2 * index))
        largest = largest_batch(row.config, memory, 30 * GIB, "captions", simulated(0.5)[0])
        seconds = tuple((1 + index) * noise for noise in (1.0, 2.0, 4.0))
        rows.append(
            Row(variant=row, gflop=2.0 + index, seconds=seconds, memory=memory, largest=largest, seconds_at_largest=seconds)
        )
    return Speed(
        config=get_recipe("tiny"),
        batch=8,
        texts="captions",
        text_length=20,
        memory_cap=30 * GIB,
        setting={"device": "made up", "threads": 1},
        optimizer_seconds=1.0,
        rows=tuple(rows),
    )


def test_ratios_are_those_of_each_round_and_epochs_include_the_optimiser():
    speed = made_up_speed()
    eve, rival = speed.rows[0], speed.rows[3]
    assert speed.reference is eve
    assert speed.ratios(rival, eve) == (4, 4, 4)  # noise that hits a whole round cancels
    assert rival.median == 8
    assert eve.largest is not None and rival.largest is not None
    expected = (8 + 1 / rival.largest.batch) / (2 + 1 / eve.largest.batch)
    assert speed.epoch_ratio(rival, eve) == pytest.approx(expected)
    values = json.loads(json.dumps(speed.to_dict()))
    assert values["rows"][3]["seconds_over_eve"] == 4
    assert values["rows"][3]["gflop_over_eve"] == 2.5
    assert values["rows"][3]["peak_memory_gib"] == pytest.approx(2 + 8 * 2)


def test_table_and_pictures_hold_the_numbers():
    speed = made_up_speed()
    written = io.StringIO()
    render(speed, Console(width=120, file=written))
    text = written.getvalue()
    assert "MLM+ITC+ITM+MIM" in text
    assert "4.00 (4.00–4.00)" in text
    assert "3.21" in text  # the paper's
    root = ET.fromstring(drawing(speed))
    assert root.tag.endswith("svg")
    assert "MLM+ITC+ITM over EVE" in drawing(speed)
    html = page(speed)
    assert html.count("<figure") == 2
    assert "http://" not in html and "https://" not in html


# The command


def test_command_on_the_tiny_recipe(eve, tmp_path):
    flags = ["--recipe", "tiny", "--batch", 4, "--decoder-depths", 1, 2, "--repeats", 1, "--threads", 1, "--no-memory"]
    done = eve("study", "speed", *flags, "--json", "speed.json", "--out", "speed.svg")
    assert done.returncode == 0, done.stderr
    assert "MLM+ITC+ITM over EVE" in done.stdout
    values = json.loads((tmp_path / "speed.json").read_text())
    assert [row["decoder_depth"] for row in values["rows"]] == [1, 2, 1, 0, 1]
    assert all(row["seconds_per_sample"] > 0 for row in values["rows"])
    ET.fromstring(Path(tmp_path / "speed.svg").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "0"], "--batch 0 is not positive"),
        (["--out", "a.png"], "neither .html nor .svg"),
        (["--memory-cap", "4", "--no-memory"], "no use with --no-memory"),
        (["--recipe", "tiney"], "tiny"),
        (["--decoder-depth", "1"], "--decoder-depths"),
    ],
)
def test_mistakes_are_one_line(eve, flags, message):
    done = eve("study", "speed", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_flags():
    known = [flag for flag in flag_names(SpeedArgs) if "no-" not in flag]
    expected = (
        "--recipe --batch --decoder-depths --repeats --texts --memory --memory-cap --dtype --device --threads --json --out"
    )
    assert known == expected.split()
