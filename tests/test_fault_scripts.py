"""The fault campaigns work in a folder of their own, never in one with other files."""

import sys
import tempfile
from pathlib import Path

import campaign
import kills
import pytest


@pytest.mark.parametrize(("tool", "first"), [(kills, "make_data"), (campaign, "make_base")])
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
