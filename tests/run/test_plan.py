"""`eve plan` against the memory of real processes, a real batch and sums by hand."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eve_vl.cli.main import main
from eve_vl.recipes import get_recipe
from eve_vl.recipes.registry import get_finetune_recipe
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


def test_fewest_micro_batches_that_fit_are_chosen():
    """The limit is just below or above what the recipe's own micro-batch takes."""
    config = config_of(batch_size=16)
    whole = plan(config, 4, 2, 2**40)
    assert [choice.name for choice in whole] == [
        "replicate",
        "shard",
        "replicate, recomputed",
        "shard, recomputed",
    ]
    for choice in whole:
        assert choice.accumulation == 1
        assert choice.rows == 4

    limit = sum(whole[1].memory.values())
    just_below = {choice.name: choice for choice in plan(config, 4, 2, limit - 1)}
    just_above = {choice.name: choice for choice in plan(config, 4, 2, limit + 1)}
    assert just_below["shard"].accumulation == 2
    assert just_above["shard"].accumulation == 1
    for choice in (*just_below.values(), *just_above.values()):
        assert choice.fits

    for choice in plan(config, 4, 2, 1):
        assert not choice.fits
        assert choice.accumulation == 4


def test_memory_of_many_rows_follows_from_that_of_fewer(monkeypatch):
    """A contrast compares all rows with all, in slices from a number of rows on."""
    monkeypatch.setattr("eve_vl.objectives.AT_ONCE", 128)
    config = get_finetune_recipe("demo_retrieval", config_of())
    config = replace(config, train=config_of(batch_size=64).train)
    counted = plan(config, 1, 8, 2**40)
    monkeypatch.setattr("eve_vl.run.plan.MOST_COUNTED_ROWS", 32)
    for choice, expected in zip(plan(config, 1, 8, 2**40), counted, strict=True):
        assert sum(choice.memory.values()) == pytest.approx(sum(expected.memory.values()), rel=0.02)


def test_a_plan_ends_for_any_batch():
    for choice in plan(config_of(batch_size=2**62), 4, 2, 2**40):
        assert choice.fits
        assert choice.rows * choice.accumulation * 4 == 2**62


def test_command_of_a_plan_has_the_flags_that_differ_from_the_recipe():
    config = config_of(batch_size=16)
    choices = plan(config, 4, 2, 2**40)
    launch = f"{TORCHRUN} -m eve_vl pretrain demo"
    assert command("demo", config, config, choices) == launch
    flags = "--train.layout shard --train.checkpoint-activations"
    assert command("demo", config, config, choices[3:]) == f"{launch} {flags}"
    begun = replace(config, init=Path("runs/p"))
    assert command("demo", begun, begun, choices) == f"{launch} --init runs/p"
    frozen = replace(config, train=replace(config.train, freeze=("encoder.*", "a b")))
    words = shlex.split(command("demo", config, frozen, choices))
    assert words[-3:] == ["--train.freeze", "encoder.*", "a b"]


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
    traffic = step_traffic(
        config,
        task,
        Layout(
            gpus=4,
            machines=2,
            shards=True,
        ),
    )
    assert traffic == {"process": 3 * size * 3 / 4 + size / 4, "machine": size}


def test_the_verb_prints_a_table_and_a_command(tmp_path: Path, capsys):
    words = shlex.split("plan tiny --gpus 4 --per-machine 2 --train.batch-size 8")
    main([*words, "--memory", "0.5", "--json", str(tmp_path / "plan.json")])
    printed = capsys.readouterr().out
    launch = f"{TORCHRUN} -m eve_vl pretrain tiny"
    assert f"{launch} --train.batch-size 8" in " ".join(printed.split())
    for kind in ("MiB of memory per GPU", "activations", "GB sent by a machine"):
        assert kind in printed
    layouts = json.loads((tmp_path / "plan.json").read_text())["layouts"]
    assert len(layouts) == 4
    assert layouts[0]["layout"] == {
        "gpus": 2,
        "machines": 2,
        "shards": False,
    }
    assert layouts[0]["rows"] == 2
    assert layouts[0]["accumulation"] == 1
    main([*words, "--memory", "0.001"])
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
        (["--memory", "nan"], "--memory nan: must be a finite number"),
        (["--memory", "inf"], "--memory inf: must be a finite number"),
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


def test_a_plan_without_a_recipe_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--gpus", "4"])
    assert "eve: name a recipe first, for example eve plan base" in capsys.readouterr().err


def test_own_tasks_cannot_be_planned(monkeypatch):
    monkeypatch.setattr("eve_vl.tasks.masked_signal.task.MaskedSignal.__module__", "own")
    with pytest.raises(UserError, match="tiny: only tasks of this package"):
        plan(get_recipe("tiny"), 1, 8, 1)


def test_help_names_no_recipe_that_nobody_asked_for(eve):
    assert eve("help", "plan").stdout.startswith("usage: eve plan RECIPE ")
    assert eve("plan", "tiny", "--help").stdout.startswith("usage: eve plan tiny ")
