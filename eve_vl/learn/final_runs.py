"""The final runs of `eve learn`, which get the rest of the time."""

from eve_vl.learn import settings
from eve_vl.learn.clock import time_text
from eve_vl.learn.deadline import Deadline, reserve_after_training
from eve_vl.learn.decisions import Stage
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_config import stage_config
from eve_vl.learn.stage_run import reached_step, run_stage
from eve_vl.learn.step_cost import Costs, measured_costs
from eve_vl.train import processes


def train_final_runs(plan: Plan, pilot_name: str) -> None:
    """Train with the settings of a pilot in the rest of the time."""
    decisions = plan.decisions
    if settings.FINAL not in plan.stages or decisions.seconds > decisions.planned:
        _plan_final_runs(plan, pilot_name)
    runs = plan.stages[settings.FINAL].runs
    costs = measured_costs(plan, pilot_name)
    reserve = reserve_after_training(plan, costs)
    for number, name in enumerate(runs):
        if number and _is_late(plan, name, runs[number - 1], reserve):
            for late in runs[number:]:
                del plan.stages[late]
            plan.stages[settings.FINAL].runs = runs[:number]
            plan.decide(f"no time for {', '.join(runs[number:])}")
            break
        run_stage(plan, name, Deadline(plan, name, costs))
    run_stage(plan, settings.FINAL, Deadline(plan, settings.FINAL, costs))


def _is_late(plan: Plan, name: str, previous: str, reserve: float) -> bool:
    """Return whether the time is too short for half of a run.

    One that has begun is finished.
    """
    middle = plan.elapsed() + plan.stages[previous].took / 2
    is_late = middle > plan.decisions.seconds - reserve and not plan.folder(name).exists()
    return processes.from_main(lambda: is_late)


def _plan_final_runs(plan: Plan, pilot_name: str) -> None:
    """Decide on number and length of the final runs."""
    costs = measured_costs(plan, pilot_name)
    reserve = reserve_after_training(plan, costs)
    remaining = plan.decisions.seconds - plan.elapsed() - reserve
    seconds = max(0.0, settings.MARGIN * remaining)
    new = new_final_runs(plan, pilot_name, seconds, costs)
    if not new:
        return
    plan.stages.pop(settings.FINAL, None)  # it comes last
    plan.stages.update(new)
    plan.decisions.planned = plan.decisions.seconds

    steps = f"{new[settings.FINAL].steps:,} steps"
    if len(new) > 1:
        text = f"{len(new) - 1} final runs of {steps} each, as {pilot_name}, averaged"
    else:
        text = f"final run: as {pilot_name}, {steps}"
    plan.decide(
        f"{text} ({time_text(seconds)} at {costs.step:.3g} s a step, "
        f"{time_text(reserve)} kept for evaluation and index)"
    )


def new_final_runs(plan: Plan, pilot_name: str, seconds: float, costs: Costs) -> dict[str, Stage]:
    """Return new final runs, FINAL the last; none if the time is too short for one more.

    A single run gets all the time, also a longer one later. Where the time is enough for several
    runs of EPOCHS epochs, they differ by their seeds, and their weights are averaged: a longer run
    would overfit. Only runs that share all of their initial weights have a useful average.
    """
    final = plan.stages.get(settings.FINAL)
    if final is not None and not final.runs:
        return {settings.FINAL: _longer(plan, final, int(seconds / costs.step))}

    earlier = [] if final is None else final.runs
    for name in earlier:
        if not plan.stages[name].is_done:
            seconds -= costs.setup + plan.stages[name].steps * costs.step
    batch_size = stage_config(plan, pilot_name).train.batch_size
    least_steps = max(settings.MIN_STEPS, settings.EPOCHS * plan.facts.train / batch_size)
    num_runs = min(settings.MAX_FINAL_RUNS, int(seconds / (costs.setup + least_steps * costs.step)))
    pilot = plan.stages[pilot_name]
    if not earlier and (num_runs < 2 or not _starts_with_heads(plan, pilot)):
        steps = max(settings.MIN_STEPS, int(seconds / costs.step))
        return {settings.FINAL: pilot.settings(steps=steps)}
    if num_runs < 1:
        return {}

    steps = int((seconds / num_runs - costs.setup) / costs.step)
    new = {}
    for seed in range(len(earlier), len(earlier) + num_runs):
        new[f"{settings.FINAL} {seed}"] = pilot.settings(steps=steps, seed=seed)
    new[settings.FINAL] = pilot.settings(steps=steps, runs=[*earlier, *new])
    return new


def _longer(plan: Plan, final: Stage, num_steps: int) -> Stage:
    """Return the single final run with further steps after those that are done."""
    done = final.steps if final.is_done else reached_step(plan, settings.FINAL)
    return final.settings(steps=max(final.steps, done + num_steps))


def _starts_with_heads(plan: Plan, pilot: Stage) -> bool:
    """Return whether runs like a pilot share all initial weights, also those of the heads."""
    is_bundled = pilot.start == settings.BUNDLED and not pilot.scratch
    return is_bundled and settings.AS_IT_IS in plan.stages
