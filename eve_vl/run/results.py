"""Results of runs on named data, kept in the run folders, and the cost of runs.

Runs compare on the rows that both were measured on: data of one fingerprint, and rows of one name (`row_scores`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import is_name, refuse_to_write
from eve_vl.evaluation.evaluator import Evaluated, Evaluator
from eve_vl.metrics import intervals
from eve_vl.run.loading import LoadedRun, read_config, root_of
from eve_vl.run.start_folder import start_folder
from eve_vl.train.checkpoint import chosen_checkpoint, read_state
from eve_vl.train.log import read_log
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import has_fields, read_json, write_file
from eve_vl.utils.frozen import Frozen

FOLDER = "evaluations"


class Result(Frozen):
    """Numbers of a run's weights on some data, with the score of each row."""

    task: str
    data: str
    """Fingerprint of the data (`data.fingerprint.short`)."""
    sources: Sequence[str]
    options: Mapping[str, Any]
    """Flags of the evaluation that change numbers."""
    step: int
    date: str
    main: Sequence[str]
    """Names of the numbers to show, the one to compare by first."""
    lower: bool
    """Whether lower is better in the first of them."""
    scored: str
    """Name of the number that `rows` are shares of."""
    comparison: str
    numbers: Mapping[str, float]
    rows: Mapping[str, float]

    @property
    def measured(self) -> tuple[str, str, str]:
        """What two results must share to be compared: task, data and options."""
        return self.task, self.data, json.dumps(self.options, sort_keys=True)

    def difference(self, other: "Result") -> float | None:
        """Return the mean score of this minus the other's on common rows, or None."""
        return row_difference(
            (self.data, self.scored, self.rows), (other.data, other.scored, other.rows)
        )


def main_numbers(evaluator: Evaluator[Any], numbers: Mapping[str, float]) -> tuple[list[str], bool]:
    """Return the names of the main numbers, and whether lower is better in the first.

    Runs are compared by the first.
    """
    names = [
        evaluator.main_metric,
        evaluator.score_name,
        *(each.number for each in evaluator.baselines),
        evaluator.main_loss,
    ]
    found = [name for name in dict.fromkeys(names) if name in numbers]
    lowers = {each.number for each in evaluator.baselines if each.lower} | {evaluator.main_loss}
    return [name for name in found if name], bool(found) and found[0] in lowers


def row_difference(a: tuple[Any, ...], b: tuple[Any, ...]) -> float | None:
    """Return the mean of a − b on the rows of both, with its interval.

    a, b: fingerprint of the data, name of the number, row scores. None without common rows of the same data.
    """
    is_same = a[:-1] == b[:-1] and not a[-1].keys().isdisjoint(b[-1])
    return intervals.paired(a[-1], b[-1]) if is_same else None


def result_of(
    run: LoadedRun, found: Evaluated, sources: Sequence[str], options: Mapping[str, Any]
) -> Result:
    """Return the result of a run from its evaluation."""
    main, lower = main_numbers(run.evaluator, found.numbers)
    about: dict[str, Any] = {
        "task": run.config.task.name,
        "data": found.data,
        "sources": [*sources],
        "options": options,
    }
    about |= {
        "step": run.step,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "main": main,
        "lower": lower,
    }
    about |= {
        "scored": run.evaluator.score_name or run.evaluator.main_metric or "",
        "numbers": found.numbers,
    }
    return Result(
        **about, comparison=run.evaluator.comparison(found.numbers), rows=found.row_scores
    )


def store(run: LoadedRun, result: Result) -> None:
    """Keep a result in its run folder; print a note if it cannot be written there."""
    key = hashlib.blake2b(json.dumps([*result.measured]).encode(), digest_size=8).hexdigest()
    path = root_of(run.folder) / FOLDER / f"{result.step:08}-{key}.json"
    values = dataclasses.asdict(result) | {
        "numbers": intervals.to_json(result.numbers),
        "weights": _weights(run.folder),
    }
    try:
        refuse_to_write(path)
        path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(values) + "\n")
    except (UserError, OSError) as error:
        reason = "it is part of the package" if isinstance(error, UserError) else error.strerror
        print_line(
            f"note: the result is not kept in {run.shown} ({reason}), so eve report will not show it"
        )


def read_results(folder: Path) -> list[Result]:
    """Return the results of a checkpoint's weights, oldest first.

    Damaged files are left out.
    """
    found, names = [], [field.name for field in dataclasses.fields(Result)]
    kinds = {
        "rows": dict,
        "numbers": dict,
        "main": list,
        "date": str,
        "task": str,
        "data": str,
        "options": dict,
    }
    for path in sorted((root_of(folder) / FOLDER).glob("*.json")):
        with suppress(UserError):
            values = read_json(path, dict)
            if not (
                values.keys() >= {*names}
                and has_fields(values, **kinds)
                and values.get("weights") == _weights(folder)
            ):
                continue
            numbers = intervals.from_json(values["numbers"])
            if all(
                has_fields(each, **dict.fromkeys(each, float)) for each in (numbers, values["rows"])
            ):
                given: dict[str, Any] = {name: values[name] for name in names} | {
                    "numbers": numbers
                }
                found.append(Result(**given))
    return sorted(found, key=lambda each: each.date)


def _weights(folder: Path) -> str:
    """Return the checksum of a checkpoint's weights, or its step if it has none."""
    state = read_state(folder)
    sums = state.get("sha256")
    return str((sums if isinstance(sums, dict) else {}).get("model.safetensors", state.get("step")))


def ranked(results: Mapping[str, Result]) -> list[tuple[str, Result, float | None]]:
    """Return runs, results and row differences to the best, best first.

    results: by run, of one `measured`.
    """
    if not results:
        return []
    name, is_lower = next(
        ((each.main[0], each.lower) for each in results.values() if each.main), ("", False)
    )
    worst = float("inf") if is_lower else float("-inf")
    order = sorted(
        results, key=lambda run: results[run].numbers.get(name, worst), reverse=not is_lower
    )
    best = results[order[0]]
    return [
        (run, results[run], results[run].difference(best) if run != order[0] else None)
        for run in order
    ]


def cost_chain(run: Path) -> dict[str, float | None]:
    """Return the CPU core-seconds of a run and of its --init chain, by folder.

    None: not recorded, or the folder is gone. Of a run named by one of its checkpoints, the steps up to it count. A run that
    took only the shape of another (--scratch) does not count it.
    """
    found: dict[str, float | None] = {}
    path: Path | None = run
    while path is not None and (name := str(path)) not in found:
        found[name], start, path = None, path, None
        with suppress(UserError):
            folder = chosen_checkpoint(start_folder(start))
            config, root = read_config(folder), root_of(folder)
            last = read_state(folder)["step"] if folder == start_folder(start) else float("inf")
            rows = [row for row in read_log(root) if row["kind"] == "train" and row["step"] <= last]
            found[name] = sum(row.get("core_seconds", 0) for row in rows) or None
            path = None if config.scratch or is_name(start) else config.init
    return found


def cost_text(chain: Mapping[str, float | None]) -> str:
    """Return the cost of a run as text: `580 (155 + 425 mine)`."""
    own, *others = chain.values()
    names = [Path(name).name if "/" in name else name for name in list(chain)[1:]]
    if not others:
        return _seconds(own)
    parts = " + ".join(
        [
            _seconds(own),
            *(f"{_seconds(value)} {name}" for name, value in zip(names, others, strict=True)),
        ]
    )
    known = sum(value or 0 for value in chain.values())
    return printable(f"{_seconds(known)}{' or more' * (None in chain.values())} ({parts})")


def _seconds(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
