"""How `eve learn` spends its time, by a simulation with the seconds measured on emoji."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from eve_vl.config import Config, DataConfig, config_to_json
from eve_vl.learn import (
    clock,
    final_runs,
    pilots,
    settings,
    stage_config,
    stage_run,
    step_cost,
)
from eve_vl.learn.decisions import DataFacts
from eve_vl.learn.plan import Plan, Request
from eve_vl.recipes import get_recipe
from eve_vl.run.bench import StepSeconds
from eve_vl.train import processes

BUNDLED = settings.BUNDLED
START = 6.0  # seconds until the data are read
OPEN = 2.1
SETUP = 3.6  # of a stage next to its steps
STEP = 0.38
SCORE = 0.8
END = 15.5  # evaluation, index and report


class SimulatedClock(clock.Clock):
    """A clock that runs by what is done, on a machine that other work makes slower."""

    def __init__(self, load: float):
        self.time = START * load
        self.load = load

    def now(self) -> float:
        return self.time

    def spend(self, seconds: float) -> None:
        self.time += seconds * self.load

    def measure_step(self, config: Config) -> StepSeconds:
        self.spend(OPEN + 6 * STEP)
        seconds = STEP * self.load
        return StepSeconds(seconds, seconds, total=6 * seconds, num_threads=1)

    def logged_step(self, config: Config) -> float:
        return STEP * self.load * config.input.image_size / 64


@dataclass
class Simulation:
    """A plan that was followed without any work."""

    plan: Plan
    clock: SimulatedClock
    starts: dict[str, float] = field(default_factory=dict)
    """Seconds at which each stage began."""
    final_loads: dict[int, float] = field(default_factory=dict)
    """Loads of the machine from some steps of a final run on."""

    def train(self, config: Config, last_step: Callable[[int], int] | None) -> None:
        """Write what a trained stage leaves, and spend its time."""
        self.starts[config.out.name] = self.clock.now()
        (config.out / "state.json").write_text("{}")
        (config.out / "config.json").write_text(config_to_json(config))
        seconds_per_step = self.clock.logged_step(config) / self.clock.load
        self.clock.spend(SETUP)
        num_steps = config.train.steps
        step = 0
        while step < num_steps:
            step += 1
            self.clock.spend(seconds_per_step)
            if config.out.name.startswith("final"):
                self.clock.load = self.final_loads.get(step, self.clock.load)
            if last_step is not None and step % config.train.log_every == 0:
                num_steps = last_step(step)

    def score(self, plan: Plan, name: str) -> None:
        """Give a stage a score that depends on its name."""
        self.clock.spend(SCORE)
        rows = {f"{row}": float(row % 3 < len(name) % 3) for row in range(20)}
        folder = plan.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / stage_run.ROWS_FILE).write_text(json.dumps(rows))
        plan.stages[name].score = float(np.mean([*rows.values()]))


@pytest.fixture
def simulated(monkeypatch, tmp_path) -> Callable[..., Simulation]:
    """Return a function that follows a plan: seconds, load, and the load after the first step."""

    def run(
        seconds: float,
        load: float,
        later_load: float,
        final_loads: dict[int, float] | None = None,
    ) -> Simulation:
        monkeypatch.setattr(settings, "MIN_STEPS", 20)
        monkeypatch.setattr(settings, "SIZES", (64, 96))
        monkeypatch.setattr(settings, "BUNDLED", BUNDLED)
        monkeypatch.setattr(stage_config, "get_recipe", get_recipe)
        data = DataConfig(train=("x.jsonl",), val=("held-out",))
        request = Request("search", data, (), seconds, tmp_path / f"{seconds} {load}", "cpu")
        simulated_clock = SimulatedClock(load)
        plan = Plan(request, simulated_clock)
        plan.decisions.data = DataFacts(
            rows=3766,
            side=128,
            text_length=16,
            vocab=2000,
            many_labels=False,
            held={},
            train=3011,
            val=377,
            test=378,
        )
        simulation = Simulation(plan, simulated_clock, final_loads=final_loads or {})
        monkeypatch.setattr(stage_run, "train", simulation.train)
        monkeypatch.setattr(stage_run, "score_stage", simulation.score)
        monkeypatch.setattr(stage_run, "average", lambda *_, **__: None)
        step_cost.plan_pilots(plan)
        simulated_clock.load = later_load
        final_runs.train_final_runs(plan, pilots.choose_pilot(plan))
        simulated_clock.spend(END)
        return simulation

    return run


@pytest.mark.parametrize(
    ("seconds", "num_trained"),
    [
        (240.0, 7),
        (360.0, 9),
        (1200.0, 15),
    ],
)
def test_on_a_quiet_machine_it_ends_in_time(simulated, seconds, num_trained):
    simulation = simulated(seconds, 1.0, 1.0)
    assert simulation.plan.elapsed() == pytest.approx(seconds, rel=0.05)
    assert len(simulation.starts) == num_trained


@pytest.mark.parametrize(
    "final_loads",
    [
        {1: 3.0},
        {1: 6.0},
        {100: 4.0},
        {1: 4.0, 60: 1.0},
    ],
)
def test_a_final_run_that_other_work_slows_ends_in_time(simulated, final_loads):
    """It has fewer steps, and as many as the time allows where the other work ends."""
    simulation = simulated(240.0, 1.0, 1.0, final_loads)
    assert 0.9 * 240 <= simulation.plan.elapsed() <= 1.05 * 240
    final = simulation.plan.stages["final"]
    assert final.steps < final.planned_steps
    text = f"final: ended after {final.steps:,} of {final.planned_steps:,} steps"
    assert simulation.plan.decisions.lines[-1].startswith(text)


def test_processes_take_the_time_of_the_main_one(simulated, monkeypatch):
    plan = simulated(240.0, 1.0, 1.0).plan
    monkeypatch.setattr(processes, "from_main", lambda _: 1234.0)
    assert plan.elapsed() == 1234.0


def test_pilots_that_differ_by_chance_are_named(simulated):
    lines = simulated(240.0, 1.0, 1.0).plan.decisions.lines
    captions = next(line for line in lines if line.startswith("captions: bundled ("))
    sentence = "too close to bundled_words to tell which is better: the score decided"
    assert sentence in captions
    start = next(line for line in lines if line.startswith("start: bundled ("))
    assert "too close" not in start  # +0.350 (+0.066 to +0.570)


def test_a_longer_time_adds_a_final_run(simulated):
    plan = simulated(360.0, 1.0, 1.0).plan
    runs = plan.stages["final"].runs
    plan.stages[runs[-1]].is_done = False  # stopped during the last
    expected = [*runs, f"final {len(runs)}"]
    plan.decisions.seconds += 130 + plan.stages[runs[-1]].took
    final_runs.train_final_runs(plan, "bundled")
    assert plan.stages["final"].runs == expected
    assert list(plan.stages)[-2:] == [expected[-1], "final"]
    plan.decisions.seconds += 30  # too short for one more
    final_runs.train_final_runs(plan, "bundled")
    assert plan.stages["final"].runs == expected


def test_final_runs_that_would_end_too_late_are_left_out(simulated, monkeypatch):
    """Other work begins once they are planned."""
    simulation = simulated(360.0, 1.0, 1.0)
    plan = simulation.plan
    runs = plan.stages["final"].runs
    new_final_runs = final_runs.new_final_runs

    def slowed(*args: Any) -> dict[str, Any]:
        simulation.clock.load = 1.0
        stages = new_final_runs(*args)
        simulation.clock.load = 4.0
        return stages

    monkeypatch.setattr(final_runs, "new_final_runs", slowed)
    plan.decisions.seconds += 400
    final_runs.train_final_runs(plan, "bundled")
    first_new = f"final {len(runs)}"
    late = f"final {len(runs) + 1}"
    assert plan.stages["final"].runs == [*runs, first_new]
    assert late not in plan.stages
    assert plan.decisions.lines[-1].startswith(f"no time for {late}")


@pytest.mark.parametrize(
    ("seconds", "load", "later_load"),
    [
        (240.0, 2.0, 2.0),
        (240.0, 1.0, 3.0),
        (360.0, 3.0, 3.0),
        (1200.0, 8.0, 8.0),
    ],
)
def test_other_work_costs_the_last_pilots_first(simulated, seconds, load, later_load):
    """The final run has half of the time that is left after the first pilot."""
    simulation = simulated(seconds, load, later_load)
    *trained, final = simulation.starts
    names = ["bundled", "bundled_words", "bundled_phrases", "masked", "random", "masked_first"]
    assert trained == names[: len(trained)]
    assert 1 <= len(trained) < 7
    assert final in ("final", "final_0")
    starts = list(simulation.starts.values())
    assert seconds - starts[-1] >= (seconds - starts[1]) / 2
    assert simulation.plan.elapsed() == pytest.approx(seconds, rel=0.05)
    assert "no time for" in " ".join(simulation.plan.decisions.lines)
