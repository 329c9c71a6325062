"""The cost of a training step, by which `eve learn` plans its pilots."""

import math
from dataclasses import dataclass

from eve_vl.builtin.names import folder_of
from eve_vl.learn import settings
from eve_vl.learn.clock import time_text
from eve_vl.learn.decisions import Stage
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.run.loading import read_config
from eve_vl.train import processes
from eve_vl.train.checkpoint_folders import chosen_checkpoint
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError


@dataclass(frozen=True)
class Costs:
    """Seconds of a training step, and of a stage next to its steps."""

    step: float
    setup: float


def plan_pilots(plan: Plan) -> None:
    """Measure a training step and choose number and length of the pilots, unless that is done.

    Raises UserError if the time is too short.
    """
    decisions = plan.decisions
    if decisions.stages:
        return
    pilot = Stage(start=settings.BUNDLED, size=settings.SIZES[0], steps=100)
    decisions.stages = {settings.BASE: pilot}
    start = plan.clock.now()
    print_line("measuring a training step")
    with plan.output_to_log("probe"):
        config = stage_config(plan, settings.BASE)
        measured = plan.clock.measure_step(config)
    setup = max(0.0, plan.clock.now() - start - measured.total)
    measured, setup = processes.from_main(lambda: (measured, setup))
    decisions.threads = measured.num_threads
    note = _check_time(plan, Costs(measured.fastest, setup))
    costs = Costs(measured.median, setup)

    remaining = decisions.seconds - plan.elapsed() - seconds_for_results(plan, costs)
    seconds = settings.PILOT_SHARE * remaining
    # at least half of a pilot is steps
    least = costs.setup + max(costs.setup, settings.MIN_STEPS * costs.step)
    most_pilots = 7 if plan.is_search else 3
    num_pilots = max(2, min(most_pilots, int(seconds / least)))
    pilot.steps = max(settings.MIN_STEPS, int((seconds / num_pilots - costs.setup) / costs.step))
    bundled = read_config(chosen_checkpoint(folder_of(settings.BUNDLED)))
    if bundled.task.name == plan.learn_task.task:  # it can be used without training
        decisions.stages = {settings.AS_IT_IS: pilot.settings(), settings.BASE: pilot}
    decisions.num_pilots = num_pilots
    if note:
        decisions.lines.append(note)
        print_line(note)
    length = f"{time_text(pilot.steps * costs.step)} each, {pilot.steps:,} steps"
    plan.decide(
        f"a step takes {costs.step:.3g} s; {num_pilots} pilots of {length} from {settings.BUNDLED}"
    )


def measured_costs(plan: Plan, name: str) -> Costs:
    """Return the costs that the runs so far have logged. name: the stage whose steps count."""
    config = stage_config(plan, name)
    step = processes.from_main(lambda: plan.clock.logged_step(config))
    setup = max(stage.setup for stage in plan.stages.values())
    return Costs(step, setup)


def seconds_for_results(plan: Plan, costs: Costs) -> float:
    """Return the seconds to keep for evaluation, index and report."""
    facts = plan.facts
    batch_size = min(128, max(2, facts.train // 2))
    forward_of_a_row = costs.step / batch_size / 2
    num_rows = 5 * facts.val + 2 * facts.test
    if plan.is_search:
        num_rows += facts.rows
    return costs.setup + forward_of_a_row * num_rows


def _check_time(plan: Plan, costs: Costs) -> str:
    """Return a note if the time is short. Raises UserError if it is too short for a few steps.

    costs: of the fastest steps, because other work may end. The next call measures again, and may
    use all of its time.
    """
    least = 3 * settings.MIN_STEPS  # two pilots and a final run
    enough = 10 * settings.MIN_STEPS
    seconds = plan.decisions.seconds
    spent = plan.elapsed()
    reserve = 2 * costs.setup + seconds_for_results(plan, costs)
    num_steps = int(max(0.0, seconds - spent - reserve) / costs.step)
    if num_steps >= enough:
        return ""
    least_minutes, minutes = (
        math.ceil((spent + reserve + steps * costs.step) / 60) for steps in (least, enough)
    )
    times = (
        f"{costs.step:.2g} s each, {spent:.0f} s of checks, {reserve:.0f} s for evaluation and "
        "index"
    )
    problem = f"--for {time_text(seconds)}: is enough for {num_steps} training steps ({times})"
    if num_steps >= least:
        return f"note: {problem}, which teach little; --for {minutes}m is enough for {enough}"
    plan.forget_time()
    raise UserError(
        f"{problem}, and at least {least} are needed; give at least --for {least_minutes}m "
        f"({minutes}m is enough for {enough} steps)"
    )
