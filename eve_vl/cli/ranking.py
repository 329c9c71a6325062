"""The ranking of evaluated runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eve_vl.cli.run_tables import COST, number_text, print_table
from eve_vl.utils.console import print_line

if TYPE_CHECKING:
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
    for group in groups.values():
        values += _print_group(group)
    return {"best_first": values}


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
