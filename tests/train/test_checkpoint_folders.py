"""Which folders of a run count as checkpoints, and crashes while they are replaced or deleted."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eve_vl.train.best_folder import ValidatedStep, read_best
from eve_vl.train.checkpoint_folders import checkpoint_folders, chosen_checkpoint
from eve_vl.utils.errors import UserError
from helpers.number_task import CONFIG, Guess, scored, step_folder, train, weights


def test_only_folders_of_steps_count_and_a_replaced_one_comes_back(tmp_path: Path):
    replaced = tmp_path / "checkpoints/.step_00000004.old"
    for name in (replaced.name, "step_00000012", "step_9"):
        (tmp_path / "checkpoints" / name / "deep").mkdir(parents=True)
    (tmp_path / "checkpoints/step_00000020").write_text("a file")
    assert checkpoint_folders(tmp_path) == [step_folder(tmp_path, 4), step_folder(tmp_path, 12)]
    assert not replaced.exists()


def test_path_that_is_no_run_is_explained(tmp_path: Path):
    (tmp_path / "weights.pt").touch()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"model_type": "eve"}')
    convert = f"eve convert {tmp_path / 'weights.pt'} FOLDER"
    checkpoints = tmp_path / "checkpoints"
    problems = {
        "weights.pt": f"is a file, not a run folder; of published weights make one: {convert}",
        "hub": "was saved by transformers; "
        "make a run folder of it: hf.to_run(model, processor, FOLDER)",
        "nothing": "no such run folder",
        "": f"holds no checkpoint (expected {checkpoints}/step_…); is it a run folder?",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError) as error:
            chosen_checkpoint(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {problem}"


def test_folder_of_runs_names_one_of_them(tmp_path: Path):
    for name in ("second/best", ".hidden/best", "first/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("second", ".hidden"):
        (tmp_path / name / "best/state.json").touch()
    with pytest.raises(UserError, match=f"; name a run in it, such as {tmp_path / 'second'}$"):
        chosen_checkpoint(tmp_path)


def test_crash_while_checkpoints_are_deleted_leaves_no_half_of_one(tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    rmtree = shutil.rmtree

    def rmtree_until_killed(path: str | Path, **options: Any) -> None:
        path = Path(path)
        if path.name == ".step_00000002.eve-old.tmp" and path.exists():
            (path / "state.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    config = replace(CONFIG, keep_checkpoints=1)
    monkeypatch.setattr("shutil.rmtree", rmtree_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(run, Guess(scored(*[0.5] * 4)), config)
    monkeypatch.undo()
    assert checkpoint_folders(run) == [step_folder(run, 4)]
    (run / ".best.eve-ab12.tmp").mkdir()
    train(run, Guess(scored(*[0.5] * 4)), config)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000008"]
    assert not list(run.glob(".*.tmp"))


def test_crash_while_best_is_replaced_keeps_the_one_before(tmp_path: Path, monkeypatch):
    """Killed between the renames that replace the folder."""

    class Killed(BaseException):
        pass

    run = tmp_path / "run"
    config = replace(CONFIG, steps=4, val_every=4)
    rename = Path.rename
    train(run, Guess(scored(0.5)), config)

    def rename_until_killed(path: Path, target: Path) -> Path:
        if path.parent.name.startswith(".best."):
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_killed)
    with pytest.raises(Killed):
        train(run, Guess(scored(0.6)), replace(config, steps=8))
    monkeypatch.undo()
    assert not (run / "best").exists()
    assert chosen_checkpoint(run) == run / "best"
    numbers = {"score": 0.5, "other": 5.0}
    assert read_best(run) == ValidatedStep(
        step=4,
        numbers=numbers,
        rows={},
    )
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 4)))
