"""The log of a run."""

import json
from pathlib import Path

from eve_vl.metrics.intervals import MeasuredValue, share
from eve_vl.train.run_log import RunLog, read_log


def test_a_note_is_logged_once_and_numbers_keep_their_intervals(tmp_path: Path, capfd):
    """Also if the run was killed between its note and the row of validation."""
    for _ in range(2):
        log = RunLog(
            tmp_path,
            first_step=1,
            num_steps=1,
            enabled=True,
        )
        log.note(1, "better than chance")
        log.row("val", 1, {"acc": share(3, 4)})
        log.close()
    note, *validations = read_log(tmp_path)
    assert note["kind"] == "note"
    assert [row["kind"] for row in validations] == ["val", "val"]
    assert all(isinstance(row["acc"], MeasuredValue) for row in validations)
    assert "acc 0.75±0.33" in capfd.readouterr().out


GOOD_LINES = [
    '{"kind": "train", "step": 1, "loss": 0.5}',
    '{"kind": "note", "step": 1, "text": "x"}',
    '{"kind": "own", "step": 2, "a": []}',
]
BAD_LINES = [
    "3",
    "[]",
    "null",
    "{}",
    '{"kind": "train"}',
    '{"step": 1}',
    '{"kind": "train", "step": "1"}',
    '{"kind": ["train"], "step": 1}',
    '{"kind": "train", "step": true}',
    '{"kind": "val", "step": 1000000000000000000000000000000}',
    "\xff",
    "[" * 9999,
    '{"kind": "va',
]


def test_lines_of_another_form_are_left_out_of_a_log(tmp_path: Path):
    lines = []
    for bad_line in BAD_LINES:
        lines += [*GOOD_LINES, bad_line]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="latin-1")
    good_rows = [json.loads(line) for line in GOOD_LINES]
    assert read_log(tmp_path) == good_rows * len(BAD_LINES)


CERTAINTY = {
    "n": 2,
    "low": 0,
    "high": 1.0,
    "method": "wilson",
}
DAMAGED_CERTAINTIES = [
    3,
    {},
    {"acc": {"n": 2}},
    {"acc": CERTAINTY | {"n": float("inf")}},
    {"acc": CERTAINTY | {"versus": 3}},
    {"acc": CERTAINTY | {"versus": {"other": 0.5}}},
    {"acc": CERTAINTY | {"versus": {"other": ["a", 1]}}},
    {"acc": CERTAINTY | {"groups": "x"}},
]


def test_numbers_with_damaged_intervals_are_read_without_them(tmp_path: Path):
    value = {"kind": "val", "step": 2, "acc": 0.5}
    damaged_fields = {
        "samples_per_second": "x",
        "core_seconds": [1],
        "lr": 10**30,
    }
    rows = [
        {
            **value,
            **damaged_fields,
            "certainty": {"acc": CERTAINTY},
        }
    ]
    for certainty in DAMAGED_CERTAINTIES:
        rows.append(value | {"certainty": certainty})
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first, *damaged_rows = read_log(tmp_path)
    assert first == value
    assert isinstance(first["acc"], MeasuredValue)
    assert damaged_rows == [value] * len(DAMAGED_CERTAINTIES)
    assert {type(row["acc"]) for row in damaged_rows} == {float}
