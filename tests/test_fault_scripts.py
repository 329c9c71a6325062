"""The fault campaigns work in a folder of their own and count what they find."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import campaign
import flips
import fuzz_serve
import kills
import mutants
import mutated_weights
import remote_faults
from eve_vl.utils.errors import UserError
from helpers.campaign_console import campaign_parser, empty_folder


@pytest.mark.parametrize(
    "script", [campaign, flips, fuzz_serve, kills, mutants, mutated_weights, remote_faults]
)
def test_each_script_lists_its_flags(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
    assert "--seed" in capsys.readouterr().out


def test_campaigns_never_work_in_a_folder_with_other_files(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parser = campaign_parser("Damage files.")
    first = empty_folder(parser, None)
    second = empty_folder(parser, None)
    assert {first, second} == set(tmp_path.iterdir())
    assert first != second

    (first / "thesis.txt").write_text("ten years")
    with pytest.raises(SystemExit) as stopped:
        empty_folder(parser, first)
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert (first / "thesis.txt").read_text() == "ten years"


def test_a_flip_is_counted_by_what_it_changes(tmp_path: Path):
    before = [("red", 0.5), ("blue", 0.25)]
    assert not flips.changed(before, [("red", 0.5005), ("blue", 0.25)])
    assert flips.changed(before, before[::-1]) == "red → blue"
    assert flips.changed(before, [("red", 0.5), ("blue", float("nan"))]) == "score by inf"
    assert flips.changed(before, before[:1])

    def refuse(_: Path) -> flips.Answers:
        raise UserError("refused; in one line")

    reads: list[Any] = [lambda _: before, refuse, lambda _: 1 / 0, lambda _: os._exit(3)]
    outcomes = [flips.outcome_of(read, tmp_path, 20)[0] for read in reads]
    assert outcomes == ["same", "refused", "traceback", "death"]


def test_a_mutant_that_changes_an_assertion_only_does_not_count(tmp_path: Path):
    """In files as mutmut makes them: the original and its mutants, and a record of exit codes."""
    bodies = {
        "orig": "zip(x, y, strict=True)",
        "1": "zip(x, y, strict=False)",
        "2": "zip(x, y)",
        "3": "zip(y, y, strict=True)",
    }
    code = [f"def x_f__mutmut_{name}(x, y):\n    return {body}\n" for name, body in bodies.items()]
    (tmp_path / "a.py").write_text("\n".join(code))
    record = tmp_path / "a.py.meta"
    exit_codes = {f"a.x_f__mutmut_{number}": 0 for number in (1, 2, 3)}
    record.write_text(json.dumps({"exit_code_by_key": exit_codes}))
    change = "-    return zip(x, y)\n+    return zip(y, y)"
    mutant = mutants.Mutant(change=change, code=0)
    assert mutants.mutants_of(record) == {"a.x_f__mutmut_3": mutant}


def test_remote_faults_are_judged_by_bytes_and_messages():
    expected = [("0 red", 0.0)]
    cut = "0.tar: 4 tries failed (Response payload is not completed)"
    assert remote_faults.judged("cut", "same", expected, expected) == "same"
    assert remote_faults.judged("cut", "same", [("0 blue", 0.0)], expected) == "CHANGED"
    assert remote_faults.judged("cut", "refused", cut, expected) == "refused"
    assert remote_faults.judged("cut", "refused", "not a whole tar file", expected) == "MISNAMED"
    assert remote_faults.judged("slow", "refused", cut, expected) == "MISNAMED"
    assert remote_faults.judged("cut", "hang", "", expected) == "hang"
