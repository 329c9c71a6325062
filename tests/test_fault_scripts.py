"""The fault campaigns work in a folder of their own, never in one with other files."""

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import campaign
import flips
import kills
import mutants
from eve_vl.utils.errors import UserError


@pytest.mark.parametrize(
    ("script", "first"), [(kills, "make_data"), (campaign, "make_base"), (flips, "make_runs")]
)
def test_each_start_makes_a_new_temporary_folder(
    script, first, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["script"])

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, first, stop)
    monkeypatch.setattr(multiprocessing, "get_context", stop)
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            script.main()
        folders = {str(path) for path in tmp_path.iterdir() if path.is_dir()}
        assert len(folders) == number
        assert capsys.readouterr().out.removeprefix("works in ").strip() in folders


def test_a_folder_with_other_files_is_refused(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("ten years")
    monkeypatch.setattr(sys, "argv", ["kills.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        kills.main()
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


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
