"""The end of a final run: fewer steps where they take longer than planned."""

from eve_vl.learn.plan import Plan
from eve_vl.learn.step_cost import Costs, seconds_for_results

WINDOW = 10  # checks, by which the time of a step is measured
FEWEST_CHECKS = 3  # before the first change
TOLERANCE = 0.05  # share of the remaining steps; a smaller change is none


class Deadline:
    """Chooses the last step of a final run by the time that its steps take.

    plan.json holds the choice, so that a resumed call continues with it.
    """

    def __init__(self, plan: Plan, name: str, costs: Costs):
        """Plan to end in the plan's time. costs: those that the run was planned with."""
        self.plan = plan
        self.name = name
        self.costs = costs
        self.reserve = reserve_after_training(plan, costs)
        stage = plan.stages[name]
        self.most_steps = stage.planned_steps or stage.steps
        self.checks: list[tuple[float, int]] = []  # seconds and step of each

    def last_step(self, step: int) -> int:
        """Return the step to end at, at most the planned one, now that `step` is reached."""
        elapsed = self.plan.elapsed()
        last_step = self.plan.stages[self.name].steps
        self.checks.append((elapsed, step))
        earlier_seconds, earlier_step = self.checks[-WINDOW:][0]
        num_steps = step - earlier_step
        seconds = elapsed - earlier_seconds
        if len(self.checks) < FEWEST_CHECKS or seconds <= 0:
            return last_step

        seconds_per_step = seconds / num_steps
        slowdown = max(1.0, seconds_per_step / self.costs.step)
        remaining = self.plan.decisions.seconds - elapsed - slowdown * self.reserve
        affordable = step + int(max(0.0, remaining) / seconds_per_step)
        new = min(self.most_steps, affordable)
        if abs(new - last_step) <= TOLERANCE * (last_step - step):
            return last_step
        stage = self.plan.stages[self.name]
        stage.steps = new
        stage.planned_steps = self.most_steps
        self.plan.save()
        return new


def reserve_after_training(plan: Plan, costs: Costs) -> float:
    """Return the seconds to keep for the score of the last run, evaluation, index and report."""
    return costs.setup + seconds_for_results(plan, costs)
