"""Unusable rows of a run: bad_samples.jsonl, and the limit at which they stop training."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from eve_vl.utils.console import print_line
from eve_vl.utils.errors import BadSampleError, SharedError
from eve_vl.utils.file_io import write_file
from eve_vl.utils.json_lines import json_lines, read_json_lines

BAD_SAMPLES = "bad_samples.jsonl"
MAX_PRINTED = 5  # unusable rows on the console; the file lists all
MIN_ROWS_SEEN = 1000  # that their share is of, at the least


def read_bad_samples(run: Path) -> dict[str, dict[str, str]]:
    """Return the unusable rows by unique name. Raises UserError.

    Each has `where`, `reason` and `row`.
    """
    rows = read_json_lines(run / BAD_SAMPLES, where=str, reason=str)
    return {_unique_name(row.get("row", ""), row["where"]): row for row in rows}


def _unique_name(row: str, where: str) -> str:
    return f"{row} {where}".lstrip()


class BadSamples:
    """Unusable rows: each is listed once, and too many stop the run."""

    def __init__(self, run: Path, *, num_rows: int, max_share: float, writes: bool):
        self.path = run / BAD_SAMPLES
        self.num_rows = num_rows
        self.max_share = max_share
        self.writes = writes
        earlier = read_bad_samples(run)
        self.names = set(earlier)
        if writes and earlier:  # without a row that a crash cut short
            write_file(self.path, json_lines(earlier.values()))

    def add(self, errors: Iterable[BadSampleError], num_seen: int) -> None:
        """List unusable rows.

        Raises SharedError above max_share of the rows seen so far, counted as at least
        MIN_ROWS_SEEN.
        """
        new = {}
        for error in errors:
            name = _unique_name(error.row, error.where)
            if not self.names & {error.where, name}:
                new[name] = error
        if not new:
            return
        self.names |= new.keys()
        if self.writes:
            self._write(new)
        num_rows_seen = min(self.num_rows, max(num_seen, MIN_ROWS_SEEN))
        if len(self.names) > self.max_share * num_rows_seen:
            last = next(reversed(new.values()))
            raise SharedError(
                f"{len(self.names)} of {num_rows_seen} rows to train on cannot be used, "
                f"more than data.max_invalid_fraction {self.max_share:g}; "
                f"all so far are in {self.path}; the last: {last}; "
                "repair them (eve data check lists all, of held-out rows too) "
                "or allow more with --data.max-invalid-fraction"
            )

    def _write(self, errors: Mapping[str, BadSampleError]) -> None:
        rows = []
        for error in errors.values():
            rows.append({"where": error.where, "reason": error.reason, "row": error.row})
        with self.path.open("a") as file:
            file.write(json_lines(rows))
        if len(self.names) <= MAX_PRINTED:
            print_line(*(f"row left out: {error}" for error in errors.values()))
