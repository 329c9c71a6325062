"""Tables of runs: the verb runs, and the ranking of evaluated runs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional

from eve_vl.cli.common import JsonArgs, write_json
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError, printable

COST = "core-seconds, with --init runs"


class RunsArgs(JsonArgs):
    """Flags of `eve runs`."""

    folders: Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders of runs, or run folders; runs are found three levels down."""


def show_ranking(results: Mapping[str, Any]) -> dict[str, Any]:
    """Print a table of the `Result`s on each data, best first; return JSON values."""
    from eve_vl.metrics.intervals import MeasuredValue, to_json
    from eve_vl.run.results import ranked
    from eve_vl.run.run_costs import cost_chain, cost_text

    groups: dict[Any, dict[str, Any]] = {}
    for name, result in results.items():
        groups.setdefault(result.measured, {})[name] = result
    if len(groups) > 1:
        print_line(
            "note: these runs were measured on different data; to compare all of them, name the data with --data"
        )
    found = []
    for group in groups.values():
        order = ranked(group)
        best = order[0][1]
        apart = "difference to the best" + f" in {best.scored}" * bool(best.scored)
        lines = []
        for name, result, difference in order:
            costs, numbers = (
                cost_chain(Path(name)),
                {each: _number(result.numbers.get(each)) for each in best.main},
            )
            shown = "no common rows" if difference is None else f"{difference:+.4f}"
            if isinstance(difference, MeasuredValue):
                shown += f" ({difference.low:+.4f} to {difference.high:+.4f}, n {difference.n:,})"
            lines.append(
                {
                    "run": name,
                    **numbers,
                    apart: "best" if result is best else shown,
                    "step": f"{result.step:,}",
                }
            )
            lines[-1][COST] = cost_text(costs)
            values = {
                "run": name,
                "data": result.data,
                "step": result.step,
                "core_seconds": costs,
                **to_json(result.numbers),
            }
            found.append(
                values
                | (
                    {}
                    if difference is None
                    else {"difference_to_best": to_json({apart: difference})}
                )
            )
        _print_rows(lines)
    return {"best_first": found}


def run_runs(args: RunsArgs) -> None:
    """List runs with data, steps, cost and numbers: eve runs [FOLDER …]."""
    from eve_vl.metrics.intervals import to_json
    from eve_vl.report.compare import find_runs
    from eve_vl.run.run_costs import cost_text

    paths, rows, broken = find_runs(args.folders), [], {}
    for path in progress(paths, "reading runs", len(paths)):
        try:
            rows.append(_row(path))
        except (UserError, OSError) as error:
            broken[str(path)] = str(error)
    rows.sort(key=lambda row: row.pop("order"))
    lines = []
    for row in rows:
        steps = f"{row['step']:,} of {row['steps']:,}" + ", best" * row["is_best"]
        numbers = "\n".join(f"{name} {_number(value)}" for name, value in row["validation"].items())
        named = "\n".join(
            f"{each['number']} {_number(each['value'])} on {each['data']}"
            for each in row["named_data"]
        )
        line = {
            "run": row["run"],
            "task": row["task"],
            "training data": " ".join(row["train"]),
            "weights of step": steps,
        }
        line |= {
            COST: cost_text(row["core_seconds"]),
            "validation": numbers,
            "named data (eve evaluate --data)": named,
        }
        lines.append(line | {"saved": row["saved"][:16].replace("T", " ")})
    if lines:
        _print_rows(lines)
    print_line(*(f"not listed: {reason}" for reason in broken.values()))
    write_json(
        args.json,
        {
            "runs": [row | {"validation": to_json(row["validation"])} for row in rows],
            "broken": broken,
        },
    )


def _row(path: Path) -> dict[str, Any]:
    """Return the facts of a run for the table.

    They include its place in the `order`: by task and validation data, best first.
    """
    from eve_vl.data import fingerprint
    from eve_vl.interop.run_names import run_path
    from eve_vl.run.loading import load_run, root_of
    from eve_vl.run.results import main_numbers, read_results
    from eve_vl.run.run_costs import cost_chain
    from eve_vl.train.checkpoint_folders import BEST
    from eve_vl.train.run_log import read_log

    run = load_run(run_path(path))
    rows = [
        row
        for row in read_log(root_of(run.folder))
        if row["kind"] == "val" and row["step"] <= run.step
    ]
    main, lower = main_numbers(run.evaluator, rows[-1] if rows else {})
    numbers = {name: rows[-1][name] for name in main}
    data = fingerprint.short(fingerprint.read(run.folder, fingerprint.VALIDATION))
    named = [
        {
            "number": each.main[0],
            "value": each.numbers[each.main[0]],
            "data": " ".join(each.sources),
            "fingerprint": each.data,
        }
        for each in read_results(run.folder)
        if each.main
    ]
    facts: dict[str, Any] = {
        "run": str(path),
        "task": run.config.task.name,
        "train": [*run.config.data.train],
    }
    facts |= {"step": run.step, "steps": run.config.train.steps, "is_best": run.folder.name == BEST}
    facts |= {
        "core_seconds": cost_chain(path),
        "validation": numbers,
        "validation_data": data,
        "named_data": named,
    }
    saved = datetime.fromtimestamp((run.folder / "state.json").stat().st_mtime, UTC).isoformat(
        timespec="seconds"
    )
    place = facts["task"], data, (numbers[main[0]] if lower else -numbers[main[0]]) if main else 0.0
    return facts | {"saved": saved, "order": place}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f} {getattr(value, 'spread', '')}".rstrip()


def _print_rows(lines: list[dict[str, str]]) -> None:
    """Print a table; in a file or a pipe, a line per cell."""
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal:
        for line in lines:
            print_line(
                *(f"{head}: {cell.replace(chr(10), '; ')}" for head, cell in line.items() if cell),
                "",
            )
        return
    table = Table(*(Column(head, overflow="fold") for head in lines[0]))
    for line in lines:
        table.add_row(
            *(Text("\n".join(map(printable, cell.split("\n")))) for cell in line.values())
        )
    console.print(table)
