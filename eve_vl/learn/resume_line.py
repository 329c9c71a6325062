"""What a resumed `eve learn` says first: what is done and what remains."""

from eve_vl.learn import settings
from eve_vl.learn.clock import time_text
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_run import reached_step
from eve_vl.utils.console import pluralize


def resume_line(plan: Plan) -> str:
    """Return a sentence on what earlier calls have done and what remains."""
    results = "evaluation and index" if plan.is_search else "evaluation"
    final = plan.stages.get(settings.FINAL)
    if final is None:
        done = f"data check and {pluralize(_num_pilots_done(plan), 'pilot')}"
        remaining = f"further pilots, as the time allows, the final run, {results}"
    elif final.is_done:
        done = "all runs"
        remaining = results
        if plan.decisions.seconds > plan.decisions.planned:
            remaining = f"more training in the longer time, {results}"
    elif final.runs:
        num_done = sum(plan.stages[run].is_done for run in final.runs)
        done = f"pilots and {num_done} of {len(final.runs)} final runs"
        remaining = f"{len(final.runs) - num_done} final runs and their average, {results}"
    else:
        step = reached_step(plan, settings.FINAL)
        done = f"pilots and {step:,} of {final.steps:,} steps of the final run"
        remaining = f"its other {final.steps - step:,} steps, {results}"
    spent = f"{time_text(plan.spent_before)} of {time_text(plan.decisions.seconds)}"
    return f"resuming {plan.request.out}: done: {done}; to do: {remaining}; {spent} spent"


def _num_pilots_done(plan: Plan) -> int:
    pilots = [stage for name, stage in plan.stages.items() if name != settings.AS_IT_IS]
    return sum(stage.is_done for stage in pilots)
