"""Results of runs on named data, kept in the run folders.

Runs compare on the rows that both were measured on: data of one fingerprint, and rows of one name
(`row_scores`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import refuse_to_write
from eve_vl.metrics import intervals
from eve_vl.run.loading import LoadedRun, root_of
from eve_vl.tasks.evaluator import Evaluated, Evaluator
from eve_vl.train.checkpoint_files import read_state
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
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
    """Options of the evaluation that change numbers (`measuring_options`)."""
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

    @property
    def row_scores(self) -> "RowScores":
        """The scores of the rows, with what they are scores of."""
        return RowScores(self.data, self.scored, self.rows)

    def difference(self, other: "Result") -> float | None:
        """Return the mean score of this minus the other's on common rows, or None."""
        return row_difference(self.row_scores, other.row_scores)


def measuring_options(
    flags: Mapping[str, Any], *, num_samples: int, num_rows: int, skip_invalid: bool
) -> dict[str, Any]:
    """Return the options that two evaluations of the same data must share to be compared.

    flags: of the task. num_samples: the limit of rows, which counts only if there are more rows
    than that. Options without effect are left out, so that results of earlier versions stay
    comparable.
    """
    options = dict(flags)
    if num_samples < num_rows:
        options["samples"] = num_samples
    if skip_invalid:
        options["skip_invalid"] = True
    return options


def main_numbers(evaluator: Evaluator[Any], numbers: Mapping[str, float]) -> tuple[list[str], bool]:
    """Return the names of the main numbers, and whether lower is better in the first.

    Runs are compared by the first.
    """
    candidates = [
        evaluator.main_metric,
        evaluator.score_name,
        *(baseline.number for baseline in evaluator.baselines),
        evaluator.main_loss,
    ]
    names = [name for name in dict.fromkeys(candidates) if name and name in numbers]
    lower_is_better = {baseline.number for baseline in evaluator.baselines if baseline.lower}
    if evaluator.main_loss:
        lower_is_better.add(evaluator.main_loss)
    return names, bool(names) and names[0] in lower_is_better


@dataclass(frozen=True)
class RowScores:
    """The score of each row in an evaluation."""

    data: str
    """Fingerprint of the data."""
    scored: str | None
    """Name of the number that the rows are shares of."""
    rows: Mapping[str, float]


def row_difference(a: RowScores, b: RowScores) -> float | None:
    """Return the mean of a − b on the rows of both, with its interval.

    None without common rows of the same data.
    """
    is_same_number = (a.data, a.scored) == (b.data, b.scored)
    if not is_same_number or a.rows.keys().isdisjoint(b.rows):
        return None
    return intervals.paired(a.rows, b.rows)


def result_of(
    run: LoadedRun, evaluated: Evaluated, sources: Sequence[str], options: Mapping[str, Any]
) -> Result:
    """Return the result of a run from its evaluation."""
    evaluator = run.evaluator
    main, lower = main_numbers(evaluator, evaluated.numbers)
    return Result(
        task=run.config.task.name,
        data=evaluated.data,
        sources=[*sources],
        options=options,
        step=run.step,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        main=main,
        lower=lower,
        scored=evaluator.score_name or evaluator.main_metric or "",
        comparison=evaluator.comparison(evaluated.numbers),
        numbers=evaluated.numbers,
        rows=evaluated.row_scores,
    )


def store(run: LoadedRun, result: Result) -> None:
    """Keep a result in its run folder; print a note if it cannot be written there."""
    key = hashlib.blake2b(json.dumps([*result.measured]).encode(), digest_size=8).hexdigest()
    path = root_of(run.folder) / FOLDER / f"{result.step:08}-{key}.json"
    values = dataclasses.asdict(result)
    values["numbers"] = intervals.to_json(result.numbers)
    values["weights"] = _weights_checksum(run.folder)
    try:
        refuse_to_write(path)
        path.parent.mkdir(exist_ok=True)
        write_file(path, json.dumps(values) + "\n")
    except (UserError, OSError) as error:
        reason = "it is part of the package" if isinstance(error, UserError) else error.strerror
        print_line(
            f"note: the result is not kept in {run.shown} ({reason}), so eve report will not show "
            "it"
        )


def read_results(folder: Path) -> list[Result]:
    """Return the results of a checkpoint's weights, oldest first.

    Damaged files are left out.
    """
    results: list[Result] = []
    for path in sorted((root_of(folder) / FOLDER).glob("*.json")):
        with suppress(UserError):
            values = read_json(path, dict)
            if values.get("weights") == _weights_checksum(folder):
                result = _parsed(values)
                if result is not None:
                    results.append(result)
    return sorted(results, key=lambda result: result.date)


def _parsed(values: dict[str, Any]) -> Result | None:
    """Return the result that a file holds, None if it is damaged."""
    names = [field.name for field in dataclasses.fields(Result)]
    kinds = {
        "rows": dict,
        "numbers": dict,
        "main": list,
        "date": str,
        "task": str,
        "data": str,
        "options": dict,
    }
    if not values.keys() >= {*names} or not has_fields(values, **kinds):
        return None
    numbers = intervals.from_json(values["numbers"])
    for scores in (numbers, values["rows"]):
        if not has_fields(scores, **dict.fromkeys(scores, float)):
            return None
    fields: dict[str, Any] = {name: values[name] for name in names}
    fields["numbers"] = numbers
    return Result(**fields)


def _weights_checksum(folder: Path) -> str:
    """Return the checksum of a checkpoint's weights, or its step if it has none."""
    state = read_state(folder)
    sums = state.get("sha256")
    if not isinstance(sums, dict):
        sums = {}
    return str(sums.get("model.safetensors", state.get("step")))


def ranked(results: Mapping[str, Result]) -> list[tuple[str, Result, float | None]]:
    """Return runs, results and row differences to the best, best first.

    results: by run, of one `measured`.
    """
    if not results:
        return []
    with_main = [result for result in results.values() if result.main]
    name = with_main[0].main[0] if with_main else ""
    is_lower_better = bool(with_main) and with_main[0].lower
    worst = float("inf") if is_lower_better else float("-inf")
    order = sorted(
        results,
        key=lambda run: results[run].numbers.get(name, worst),
        reverse=not is_lower_better,
    )
    best = results[order[0]]
    ranking: list[tuple[str, Result, float | None]] = [(order[0], best, None)]
    for run in order[1:]:
        ranking.append((run, results[run], results[run].difference(best)))
    return ranking
