"""The pilots of `eve learn`: short runs that differ in one thing, compared row by row."""

from collections.abc import Mapping
from pathlib import Path

from eve_vl.learn import settings
from eve_vl.learn.decisions import Choice, Stage
from eve_vl.learn.plan import Plan
from eve_vl.learn.stage_run import row_scores, run_stage
from eve_vl.learn.step_cost import measured_costs, seconds_for_results
from eve_vl.metrics.intervals import MeasuredValue, paired
from eve_vl.train import processes


def choose_pilot(plan: Plan) -> str:
    """Train and compare pilots; return the name of the best.

    The questions with the largest effects come first, because time may lack for the last.
    """
    if settings.AS_IT_IS in plan.stages:
        run_stage(plan, settings.AS_IT_IS)
    best = settings.BASE
    run_stage(plan, best)
    if plan.decisions.pilots_until is None:
        plan.decisions.pilots_until = _end_of_pilots(plan)
        plan.save()

    if plan.is_search:
        pilot = plan.stages[best]
        captions = {
            f"{best}_{caption}": pilot.settings(caption=caption) for caption in ("words", "phrases")
        }
        best = _choose(plan, "captions", best, captions)
    best = _choose(plan, "start", best, _other_starts(plan, best))
    larger = [size for size in settings.SIZES[1:] if size <= plan.facts.side]
    if larger:
        pilot = plan.stages[best]
        # of about equal time
        steps = max(settings.MIN_STEPS, pilot.steps * settings.SIZES[0] // larger[0])
        sizes = {f"{best}_{larger[0]}": pilot.settings(size=larger[0], steps=steps)}
        best = _choose(plan, "image size", best, sizes)
    return best


def _end_of_pilots(plan: Plan) -> float:
    """Return the seconds from the start at which no further pilot begins."""
    spent = plan.elapsed()
    reserve = seconds_for_results(plan, measured_costs(plan, settings.BASE))
    share = (1 - settings.FINAL_SHARE) * (plan.decisions.seconds - spent - reserve)
    expected = 1.1 * (plan.decisions.num_pilots - 1) * plan.stages[settings.BASE].took
    return spent + min(share, expected)


def _other_starts(plan: Plan, best: str) -> dict[str, Stage]:
    """Return pilots that start from other weights than the bundled run's."""
    pilot = plan.stages[best]
    if not plan.is_search:
        return {"random": pilot.settings(scratch=True)}
    half = max(settings.MIN_STEPS, pilot.steps // 2)
    masked = settings.MASKED
    plan.stages.setdefault(masked, Stage(size=settings.SIZES[0], steps=half))
    start = f"pilots/{masked}"
    return {
        "random": pilot.settings(start=start, scratch=True),
        "masked_first": pilot.settings(start=start, steps=half),
    }


def _choose(plan: Plan, question: str, best: str, candidates: Mapping[str, Stage]) -> str:
    """Return the best of a pilot and of candidates that differ from it.

    Candidates are trained if the time allows, and compared row by row.
    """
    if question in plan.decisions.choices:
        return plan.decisions.choices[question].best

    for name, stage in candidates.items():
        plan.stages.setdefault(name, stage)
    names = [best]
    skipped = []
    for name in candidates:
        if _train_if_time_allows(plan, name):
            names.append(name)
        else:
            skipped.append(name)
    scores = {name: plan.stages[name].score or 0.0 for name in names}
    best = max(names, key=lambda name: scores[name])
    gains = {}
    for name in names:
        if name != best:
            gains[name] = difference(row_scores(plan, best), row_scores(plan, name))

    details = ", ".join(f"{name} {scores[name]:.3f}" for name in (best, *gains))
    if gains:
        by_row = [f"{difference_text(gain)} over {name}" for name, gain in gains.items()]
        details += f"; row by row {'; '.join(by_row)}"
    line = f"{question}: {best} ({details})"
    tied = [name for name, gain in gains.items() if may_be_chance(gain)]
    if tied:
        line += f"; too close to {' and '.join(tied)} to tell which is better: the score decided"
    if skipped:
        line += f"; no time for {', '.join(skipped)}"
    plan.decisions.choices[question] = Choice(best, gains)
    plan.decide(line)
    return best


def _train_if_time_allows(plan: Plan, name: str) -> bool:
    """Train a pilot, and what it starts from, unless the final run needs the time.

    A pilot is expected to take as long as the longest before it. One that has begun is finished.
    """
    start = Path(plan.stages[name].start or "").name
    stages = [
        stage for stage in (start, name) if stage in plan.stages and not plan.stages[stage].is_done
    ]
    longest = max(stage.took for stage in plan.stages.values())
    end = plan.elapsed() + len(stages) * longest
    has_time = (
        not stages or plan.folder(stages[0]).exists() or end <= (plan.decisions.pilots_until or 0.0)
    )
    if not processes.from_main(lambda: has_time):
        return False
    for stage in stages:
        run_stage(plan, stage)
    return True


def difference(scores: Mapping[str, float], baseline: Mapping[str, float]) -> list[float]:
    """Return the mean difference of row scores, and both ends of its interval."""
    gain = paired(scores, baseline)
    if isinstance(gain, MeasuredValue):
        return [float(gain), gain.low, gain.high]
    return [float(gain), -1.0, 1.0]


def difference_text(gain: list[float]) -> str:
    """Return a difference with its interval as text."""
    mean, low, high = gain
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def may_be_chance(gain: list[float]) -> bool:
    """Return whether the interval of a difference holds zero."""
    _, low, high = gain
    return low <= 0 <= high
