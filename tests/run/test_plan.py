"""`eve plan` against the memory of real processes, a real batch and sums by hand."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch

from eve_vl.cli.main import main
from eve_vl.recipes import get_recipe
from eve_vl.run.kept_memory import kept_bytes
from eve_vl.run.loading import build_untrained
from eve_vl.run.plan import command, plan
from eve_vl.run.step_memory import Layout, step_memory, step_traffic
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import UserError
from helpers.plan_runs import ALONE, TOGETHER, config_of, measure
from helpers.shard_worlds import in_world

WORLD = 2
TORCHRUN = "torchrun --nnodes 2 --node-rank N --master-addr HOST --nproc-per-node 2"


def test_memory_is_that_of_real_processes(tmp_path: Path):
    for world in (1, WORLD):
        in_world(world, tmp_path, measure)
    for name, train in {**ALONE, **TOGETHER}.items():
        config = config_of(**train)
        gpus = WORLD if name in TOGETHER else 1
        sizes = Sizes(vocab_size=config.tokenizer.vocab_size)
        with torch.device("meta"):
            task = build_untrained(config, sizes)
        layout = Layout(gpus=gpus, shards=name.startswith("shard"))
        kept_for_backward = kept_bytes(config, sizes).of(config.train.checkpoint_activations) / gpus
        planned = sum(step_memory(config, task, layout, kept_for_backward).values())
        for rank in range(gpus):
            measured = json.loads((tmp_path / f"{gpus}_{rank}.json").read_text())
            assert planned == pytest.approx(measured[name], rel=0.15), name


@pytest.mark.parametrize("shift", [-1, 1])
def test_fewest_micro_batches_that_fit_are_chosen(shift):
    """The limit is just below or above what the recipe's own micro-batch takes."""
    config = config_of(batch_size=16)
    whole = plan(config, 4, 2, 2**40)
    assert [(layout.name, layout.accumulation, layout.rows) for layout in whole] == [
        *(("replicate", 1, 4), ("shard", 1, 4)),
        *(("replicate, recomputed", 1, 4), ("shard, recomputed", 1, 4)),
    ]
    launch = f"{TORCHRUN} -m eve_vl pretrain demo"
    assert command("demo", config, config, whole) == launch
    limit = sum(whole[1].memory.values())
    chosen = {layout.name: layout for layout in plan(config, 4, 2, limit + shift)}
    assert chosen["shard"].accumulation == (2 if shift < 0 else 1)
    assert all(layout.fits for layout in chosen.values())
    flags = command("demo", config, config, [chosen["shard, recomputed"]]).partition(" demo ")[2]
    assert flags == "--train.layout shard --train.checkpoint-activations"
    begun = dataclasses.replace(config, init=Path("runs/p"))
    assert command("demo", begun, begun, whole) == f"{launch} --init runs/p"
    odd = dataclasses.replace(
        config, train=dataclasses.replace(config.train, freeze=("encoder.*", "a b"))
    )
    assert shlex.split(command("demo", config, odd, whole))[-3:] == [
        "--train.freeze",
        "encoder.*",
        "a b",
    ]
    few = plan(config, 4, 2, 1)
    assert not any(layout.fits for layout in few)
    assert {layout.accumulation for layout in few} == {4}


def test_traffic_is_that_of_rings():
    config = config_of(accumulation=2)
    with torch.device("meta"):
        task = build_untrained(config, Sizes(vocab_size=config.tokenizer.vocab_size))
    task.find_unused_parameters = False
    size = 4 * sum(parameter.numel() for parameter in task.parameters())
    assert step_traffic(config, task, Layout(gpus=1)) == {"process": 0, "machine": 0}
    assert step_traffic(config, task, Layout(gpus=4)) == {"process": 2 * size * 3 / 4, "machine": 0}
    assert {*step_traffic(config, task, Layout(gpus=4, machines=2)).values()} == {2 * size * 7 / 8}
    # weights are gathered once, gradients scattered twice, and each process sums a quarter of them
    # with the other machine
    traffic = step_traffic(config, task, Layout(gpus=4, machines=2, shards=True))
    assert traffic == {"process": 3 * size * 3 / 4 + size / 4, "machine": size}


def test_the_verb_prints_a_table_and_a_command(tmp_path: Path, capsys):
    words = [
        "plan",
        "tiny",
        "--gpus",
        "4",
        "--per-machine",
        "2",
        "--memory",
        "0.5",
        "--train.batch-size",
        "8",
    ]
    main([*words, "--json", str(tmp_path / "plan.json")])
    printed = capsys.readouterr().out
    launch = f"{TORCHRUN} -m eve_vl pretrain tiny"
    assert f"{launch} --train.batch-size 8" in " ".join(printed.split())
    assert all(
        kind in printed for kind in ("GiB of memory per GPU", "activations", "GB sent by a machine")
    )
    (first, *further) = json.loads((tmp_path / "plan.json").read_text())["layouts"]
    assert first["layout"] == {"gpus": 2, "machines": 2, "shards": False}
    assert (len(further), first["rows"], first["accumulation"]) == (3, 2, 1)
    main(["plan", "tiny", "--memory", "0.001"])
    assert "no layout fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "12"], "--gpus: 12 is not a multiple of 8 per machine; give --per-machine N"),
        (
            ["--gpus", "3"],
            "not divisible by train.accumulation 1 × 3 processes; give a batch size that is a "
            "multiple of 3",
        ),
        (["--gpus", "0"], "--gpus 0, --per-machine 8, --memory 80: must be positive"),
        (
            ["--data.flip", "--train.lr", "1"],
            "--data.flip, --train.lr: no effect on the plan; leave it out",
        ),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "tiny", *words])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("words", [[], ["--gpus", "4"]])
def test_a_plan_without_a_recipe_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        main(["plan", *words])
    assert "eve: name a recipe first, for example eve plan base" in capsys.readouterr().err


def test_own_tasks_cannot_be_planned(monkeypatch):
    monkeypatch.setattr("eve_vl.tasks.masked_signal.task.MaskedSignal.__module__", "own")
    with pytest.raises(UserError, match="tiny: only tasks of this package"):
        plan(get_recipe("tiny"), 1, 8, 1)
