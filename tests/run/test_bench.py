"""`eve bench`: its FLOPs against torch's count, its sums, its matrix product."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eve_vl.cli.main import main
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe
from eve_vl.run import bench

CPU = torch.device("cpu")
PEAK = 1e12


@pytest.fixture(autouse=True)
def known_peak(monkeypatch, request):
    if "reachable" not in request.node.name:
        monkeypatch.setattr(bench, "reachable", lambda *_: (PEAK, "by the test"))


def config_of(name: str, **train: object):
    tiny = get_recipe("tiny")
    tiny = replace(tiny, model=replace(tiny.model, deep_ffn="shared"))  # torch counts no experts
    config = tiny if name == "tiny" else get_finetune_recipe(name, tiny)
    train = {
        "batch_size": 8,
        "threads": 1,
        "head_lr_multiplier": 1.0,
        "dtype": "float32",
        "optimizer": "adamw",
    } | train
    return replace(config, init=None, train=replace(config.train, **train))  # pyright: ignore


@pytest.mark.parametrize("name", ["tiny", "demo_retrieval"])
def test_arithmetic_is_what_torch_counts_but_for_padding(name, monkeypatch):
    counter = FlopCounterMode(display=False)
    time_steps = bench._time_steps

    def counted_steps(*args: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH), counter:
            return time_steps(*args)

    monkeypatch.setattr(bench, "_time_steps", counted_steps)
    speed = bench.bench(config_of(name), 1)
    counted = counter.get_total_flops() / ((bench.WARM_UP_STEPS + 1) * 8)
    assert 0.75 * counted < speed["flops_per_row"] < 1.02 * counted
    assert speed["flops_per_second"] == pytest.approx(
        speed["flops_per_row"] * 8 / speed["seconds"]["step"]
    )
    assert 1 + 16 + 5 < speed["tokens_per_second"] / speed["rows_per_second"] < 2 * (1 + 16) + 32


def test_parts_of_a_step_add_up_also_where_it_accumulates():
    speed = bench.bench(config_of("tiny", accumulation=2, batch_size=16), 3)
    step, *parts = speed["seconds"].values()
    assert list(speed["seconds"]) == ["step", "forward", "backward", "optimizer"]
    assert 0.6 * step < sum(parts) <= 1.2 * step  # medians
    assert speed["rows"] == 16
    assert speed["loader_share"] == pytest.approx(
        speed["rows_per_core_second"] / speed["loader_rows_per_core_second"]
    )


def test_the_verb_says_and_writes_what_it_measured(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(
        shlex.split("bench tiny --steps 2 --train.batch-size 4 --train.threads 1 --json speed.json")
    )
    printed = capsys.readouterr().out
    values = json.loads(Path("speed.json").read_text())
    assert values["mfu"] == pytest.approx(values["flops_per_second"] / PEAK)
    assert f"MFU {values['mfu']:.3f} of 1,000 GFLOP/s, by the test" in printed.replace("\n", " ")
    assert values["memory"] > 100 * 2**20
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


def test_reachable_of_a_processor_is_measured(monkeypatch):
    monkeypatch.setattr(bench, "MATRIX_SIDE_ON_CPU", 256)
    peak, how = bench.reachable(CPU, torch.float32)
    assert 1e8 < peak < 1e14
    assert "256²" in how
