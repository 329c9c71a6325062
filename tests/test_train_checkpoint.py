"""Checkpoints: weights on the meta device, detected damage."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train_best import CONFIG, Guess, scored, step_folder, train, weights
from torch import Tensor, nn

from eve_vl.train import checkpoint
from eve_vl.utils.errors import UserError

SHORT = replace(CONFIG, steps=4, val_every=4)


class Tied(nn.Module):
    """A word table whose weight is its head's too, and a buffer."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.words.weight
        self.norm = nn.BatchNorm1d(3)
        self.norm.weight.requires_grad_(False)


def save(run: Path, model: nn.Module, **more: Tensor) -> Path:
    return checkpoint.save_best(run, step=3, model=model.state_dict() | more, texts={"config.json": "{}"}, numbers={})


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_come_back(tmp_path: Path, device):
    torch.manual_seed(0)
    model = Tied()
    folder = save(tmp_path, model)
    torch.manual_seed(1)
    with torch.device(device):
        other = Tied()
    checkpoint.load_model(folder, other)
    assert device == "meta" or other.head.weight is other.words.weight
    trains = [{name: p.requires_grad for name, p in each.named_parameters(remove_duplicate=False)} for each in (model, other)]
    assert trains[0] == trains[1]
    assert other.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loading_is_strict(tmp_path: Path, device):
    folder = save(tmp_path, nn.Linear(3, 2), extra=torch.ones(1))
    with torch.device(device):
        model = nn.Linear(4, 2)
    with pytest.raises(UserError, match=r"extra is unknown; weight has shape \(2, 3\), expected \(2, 4\)"):
        checkpoint.load_model(folder, model)


def test_all_files_have_the_permissions_of_any_other(tmp_path: Path):
    before = os.umask(0o027)
    try:
        folder = save(tmp_path, Tied())
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("model.safetensors", "config.json", "state.json"), 416
    )


def edit_state(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text()) | changes
        (folder / "state.json").write_text(json.dumps(state))

    return edit


def flip_a_bit(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return edit


def edit_tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """In a checkpoint of an older version, which has no checksums."""

    def edit(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)
        edit_state(sha256={})(folder)

    return edit


edit_model = partial(edit_tensors, "model.safetensors")


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        if name != "state.json":
            edit_state(sha256={})(folder)

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit("model.safetensors"), "damaged (model.safetensors is not what was written, by its checksum)"),
        (flip_a_bit("optimizer.safetensors"), "optimizer.safetensors is not what was written"),
        (flip_a_bit("rng_0.safetensors"), "rng_0.safetensors is not what was written"),
        (flip_a_bit("config.json"), "config.json is not what was written"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (edit_state(step=True), "state.json holds no step"),
        (edit_state(new=["head.weight", 0.5]), "state.json lists new parameters that are no names"),
        (edit_state(new=3), "state.json lists new parameters that are no names"),
        (edit_state(num_processes=0), "state.json says num_processes 0"),
        (edit_state(num_processes=True), "state.json says num_processes True"),
        (edit_state(num_processes="1"), "state.json says num_processes 1"),
        (edit_state(sha256=[]), "state.json holds no checksums"),
        (edit_state(step=10**30), "state.json holds no step"),
        (cut("state.json"), "state.json: "),
        (lambda folder: (folder / "state.json").write_text("[]"), "state.json: cannot be read (JSON list"),
        (lambda folder: (folder / "state.json").write_text("[" * 99_999), "state.json: "),
        (lambda folder: (folder / "state.json").write_bytes(b"\xff"), "state.json: "),
        (cut("model.safetensors"), "model.safetensors: cannot be read"),
        (cut("optimizer.safetensors"), "damaged ("),
        (cut("rng_0.safetensors"), "damaged ("),
        (edit_model(lambda t: t["weight"].fill_(torch.nan)), "model.safetensors: weight holds NaN or infinity"),
        (edit_model(lambda t: t.update(weight=torch.ones(3).long())), "weight has shape (3,) of whole numbers, expected (3,)"),
        (edit_model(lambda t: t.update(weight=torch.ones(3).bool())), "weight has shape (3,) of whole numbers, expected (3,)"),
        (edit_model(lambda t: t.update(weight=torch.ones(3).double())), "weight is float64, expected dense numbers"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path: Path, damage, words):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5)), SHORT)
    damage(step_folder(run, 4))
    with pytest.raises(UserError) as caught:
        train(run, Guess([]), SHORT)
    message = str(caught.value)
    assert words in message and "\n" not in message
    assert message.startswith(f"{step_folder(run, 4)}: damaged (")
    assert message.endswith("; restore it from a copy, or delete this folder to continue without it")
    for path in step_folder(run, 4).iterdir():
        path.unlink()
    step_folder(run, 4).rmdir()
    assert train(run, Guess(scored(0.5)), SHORT)["score"] == 0.5


def test_a_damaged_checkpoint_with_none_before_it_says_so(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5)), replace(SHORT, save_every=4))
    flip_a_bit("model.safetensors")(step_folder(run, 4))
    with pytest.raises(UserError, match=r", or delete this folder to continue without it$"):
        train(run, Guess([]), replace(SHORT, save_every=4))


def test_a_crash_while_old_checkpoints_are_deleted_leaves_no_half_of_one(tmp_path: Path, monkeypatch):
    run, rmtree = tmp_path / "run", shutil.rmtree

    def until_killed(path: str | Path, **how: Any) -> None:
        if Path(path).name == ".step_00000002.tmp" and Path(path).exists():
            (Path(path) / "state.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, **how)

    monkeypatch.setattr("shutil.rmtree", until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(run, Guess(scored(*[0.5] * 4)), replace(CONFIG, keep_checkpoints=1))
    monkeypatch.undo()
    assert checkpoint.checkpoint_folders(run) == [step_folder(run, 4)]
    (run / ".log.jsonl.ab12.tmp").mkdir()
    train(run, Guess(scored(*[0.5] * 4)), replace(CONFIG, keep_checkpoints=1))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000008"]
    assert not list(run.glob(".*.tmp"))


def test_damaged_best_weights_are_named(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5)), SHORT)
    flip_a_bit("model.safetensors")(run / "best")
    with pytest.raises(UserError, match=r"best: damaged .* delete this folder to continue without it"):
        train(run, Guess(scored(0.5)), SHORT)
    edit_state(sha256={}, numbers=3)(run / "best")
    with pytest.raises(UserError, match=r"best: damaged \(state.json holds no numbers\)"):
        train(run, Guess(scored(0.5)), SHORT)


def test_a_checkpoint_without_checksums_still_serves(tmp_path: Path):
    run = tmp_path / "run"
    whole = train(run, Guess(scored(0.5, 0.6, 0.3, 0.4)))
    for folder in (step_folder(run, 8), run / "best"):
        state = json.loads((folder / "state.json").read_text())
        del state["sha256"]
        (folder / "state.json").write_text(json.dumps(state))
    assert train(run, Guess([])) == whole


def test_the_best_never_vanish(tmp_path: Path, monkeypatch):
    """Killed between the renames that replace the folder."""

    class Killed(BaseException):
        pass

    run, rename = tmp_path / "run", Path.rename
    train(run, Guess(scored(0.5)), SHORT)

    def until_killed(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".best."):
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", until_killed)
    with pytest.raises(Killed):
        train(run, Guess(scored(0.6)), replace(SHORT, steps=8))
    monkeypatch.undo()
    assert not (run / "best").exists()
    assert checkpoint.chosen_checkpoint(run) == run / "best"
    best = checkpoint.read_best(run)
    assert best == {"step": 4, "numbers": {"score": 0.5, "other": 5.0}}
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 4)))
