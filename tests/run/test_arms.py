"""Arms: which runs count as seeds of one config."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.config import Config, to_dict
from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.recipes.registry import get_recipe
from eve_vl.run.arms import arm_differences, group_by_arm
from eve_vl.run.results import RowScores


def config_of(
    name: str,
    seed: int,
    lr: float = 1e-3,
    init: Path | None = None,
) -> Config:
    config = get_recipe("tiny")
    training = replace(config.train, seed=seed, lr=lr)
    return replace(
        config,
        out=Path("runs") / name,
        train=training,
        init=init,
    )


def arms_by_name(configs: dict[str, Config]) -> dict[str, tuple[str, ...]]:
    return {arm.name: arm.runs for arm in group_by_arm(configs)}


def test_runs_that_differ_by_seed_are_one_arm():
    configs = {
        "base_s10": config_of("base_s10", 10),
        "fast_s0": config_of("fast_s0", 0, lr=1e-2),
        "base_s11": config_of("base_s11", 11),
        "alone": config_of("alone", 0, lr=1e-4),
        "fast_s1": config_of("fast_s1", 1, lr=1e-2),
        "copy": config_of("copy", 10),
    }
    assert arms_by_name(configs) == {
        "base": ("base_s10", "base_s11"),
        "fast": ("fast_s0", "fast_s1"),
        "alone": ("alone",),
        "copy": ("copy",),  # seed 10 once more
    }


def test_names_without_a_common_beginning_name_the_first_run():
    configs = {
        "x": config_of("x", 0),
        "y": config_of("y", 1),
        "z": config_of("z", 2),
    }
    assert arms_by_name(configs) == {"x and 2 more": ("x", "y", "z")}


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_starts_that_differ_by_seed_are_one_arm(tmp_path: Path, lr: float):
    configs = {}
    for seed, start_lr in ((0, 1e-3), (1, lr)):
        start = tmp_path / f"start_{seed}"
        checkpoint = start / "checkpoints/step_00000001"
        checkpoint.mkdir(parents=True)
        values = to_dict(config_of(start.name, seed, lr=start_lr))
        (checkpoint / "config.json").write_text(json.dumps({"format": 3, **values}))
        configs[f"a_{seed}"] = config_of(f"a_{seed}", seed, init=start)
    is_one_arm = lr == 1e-3
    assert len(group_by_arm(configs)) == (1 if is_one_arm else 2)


def test_each_pair_of_arms_has_one_difference_with_the_better_first():
    configs = {f"a_{seed}": config_of("a", seed) for seed in range(3)}
    configs |= {f"b_{seed}": config_of("b", seed, lr=1e-2) for seed in range(3)}
    configs["c"] = config_of("c", 0, lr=1e-4)
    scores_of_runs = {}
    for run in configs:
        num_right = {"a": 10, "b": 30, "c": 20}[run[0]]
        rows = {str(row): float(row < num_right) for row in range(40)}
        scores_of_runs[run] = RowScores("1234", "acc", rows)
    differences = arm_differences(group_by_arm(configs), scores_of_runs)
    pairs = [(pair.better.name, pair.worse.name, pair.difference) for pair in differences]
    assert pairs == [
        ("b", "a", 0.5),
        ("c", "a", 0.25),
        ("b", "c", 0.25),
    ]
    assert all(isinstance(difference, MeasuredValue) for *_, difference in pairs)

    scores_of_runs["c"] = RowScores("5678", "acc", scores_of_runs["c"].rows)
    assert len(arm_differences(group_by_arm(configs), scores_of_runs)) == 1
