"""The fault campaigns work in a folder of their own, never in one with other files."""

import os
import sys
import tempfile
from pathlib import Path

import campaign
import flips
import kills
import pytest

from eve_vl.utils.errors import UserError


@pytest.mark.parametrize(("tool", "first"), [(kills, "make_data"), (campaign, "make_base"), (flips, "make_runs")])
def test_each_start_has_a_folder_of_its_own(tool, first, tmp_path: Path, monkeypatch, capsys):
    """And nobody else can have made it, or know its name, beforehand."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tool"])

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, first, stop)
    monkeypatch.setattr(tool.multiprocessing, "get_context", stop)
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            tool.main()
        folders = {str(path) for path in tmp_path.iterdir() if path.is_dir()}
        assert len(folders) == number
        assert capsys.readouterr().out.removeprefix("works in ").strip() in folders


def test_what_a_named_folder_holds_is_left_alone(tmp_path: Path, monkeypatch, capsys):
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

    found = [
        flips.outcome_of(read, tmp_path, 20)[0] for read in (lambda _: before, refuse, lambda _: 1 / 0, lambda _: os._exit(3))
    ]
    assert found == ["same", "refused", "traceback", "death"]
