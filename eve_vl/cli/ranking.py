"""The ranking of evaluated runs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eve_vl.cli.run_tables import COST, number_text, print_table
from eve_vl.utils.console import pluralize, print_line

if TYPE_CHECKING:
    from eve_vl.metrics.seeds import SeedSpread
    from eve_vl.run.results import Result


def print_ranking(results: "Mapping[str, Result]") -> dict[str, Any]:
    """Print a table of the results of runs on each data, best first; return JSON values."""
    groups: dict[Any, dict[str, Result]] = {}
    for run, result in results.items():
        groups.setdefault(result.measured, {})[run] = result
    if len(groups) > 1:
        print_line(
            "note: these runs were measured on different data; "
            "to compare all of them, name the data with --data"
        )
    values: list[dict[str, Any]] = []
    arm_values: list[dict[str, Any]] = []
    for group in groups.values():
        values += _print_group(group)
        arm_values += _print_arms(group)
    if not arm_values:
        return {"best_first": values}
    return {"best_first": values, "arms": arm_values}


def _print_group(results: "Mapping[str, Result]") -> list[dict[str, Any]]:
    """Print the ranking of runs on the same data; return JSON values of each run."""
    from eve_vl.metrics.intervals import to_json
    from eve_vl.run.results import ranked
    from eve_vl.run.run_costs import cost_chain, cost_text

    ranking = ranked(results)
    _, best, _ = ranking[0]
    column = "difference to the best"
    if best.scored:
        column += f" in {best.scored}"
    rows = []
    values = []
    for run, result, difference in ranking:
        costs = cost_chain(Path(run))
        row = {"run": run}
        for name in best.main:
            row[name] = number_text(result.numbers.get(name))
        row[column] = "best" if result is best else _difference_text(difference)
        row["step"] = f"{result.step:,}"
        row[COST] = cost_text(costs)
        rows.append(row)

        facts = {
            "run": run,
            "data": result.data,
            "step": result.step,
            "core_seconds": costs,
            **to_json(result.numbers),
        }
        if difference is not None:
            facts["difference_to_best"] = to_json({column: difference})
        values.append(facts)
    print_table(rows)
    return values


def _print_arms(results: "Mapping[str, Result]") -> list[dict[str, Any]]:
    """Print mean and range of arms with several seeds, and their differences; return JSON values.

    Without such an arm, it prints and returns nothing.
    """
    from eve_vl.interop.run_names import run_path
    from eve_vl.metrics.intervals import to_json
    from eve_vl.metrics.seeds import METHOD, seed_spreads
    from eve_vl.run.arms import arm_differences, group_by_arm
    from eve_vl.run.loading import read_config
    from eve_vl.train.checkpoint_folders import chosen_checkpoint

    configs = {run: read_config(chosen_checkpoint(run_path(Path(run)))) for run in results}
    arms = group_by_arm(configs)
    if len(arms) == len(results):
        return []
    values: list[dict[str, Any]] = []
    for arm in arms:
        spreads = seed_spreads([results[run].numbers for run in arm.runs])
        shown = []
        for name in results[arm.runs[0]].main:
            if name in spreads:
                shown.append(f"{name} {_spread_text(spreads[name])}")
        print_line(f"{arm.name} ({pluralize(len(arm.runs), 'seed')}): {', '.join(shown)}")
        numbers = {name: dataclasses.asdict(spread) for name, spread in spreads.items()}
        values.append({"arm": arm.name, "runs": [*arm.runs], "numbers": numbers})

    differences = arm_differences(arms, {run: result.row_scores for run, result in results.items()})
    for pair in differences:
        scored = results[pair.better.runs[0]].scored
        text = f"{pair.better.name} minus {pair.worse.name}: {_difference_text(pair.difference)}"
        print_line(f"{scored} of {text}")
        values.append(
            {
                "better": pair.better.name,
                "worse": pair.worse.name,
                **to_json({f"difference in {scored}": pair.difference}),
            }
        )
    if any(pair.is_of_seeds for pair in differences):
        print_line(METHOD)
    return values


def _spread_text(spread: "SeedSpread") -> str:
    """Return mean and range of a number over seeds."""
    if spread.lowest == spread.highest:
        return f"{spread.mean:.4f}"
    return f"{spread.mean:.4f} ({spread.lowest:.4f} to {spread.highest:.4f})"


def _difference_text(difference: float | None) -> str:
    """Return a difference to the best run, with its interval if it has one."""
    from eve_vl.metrics.intervals import MeasuredValue

    if difference is None:
        return "no common rows"
    text = f"{difference:+.4f}"
    if isinstance(difference, MeasuredValue):
        interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
        text += f" ({interval}, n {difference.n:,})"
    return text
