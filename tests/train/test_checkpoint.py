"""Checkpoints: weights on the meta device, detected damage."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import (
    best_folder,
    checkpoint_files,
    checkpoint_folders,
    checkpoint_writer,
    random_state,
    tensor_files,
    training_state,
)
from eve_vl.train.optimizer import build_optimizer, optimizer_tensors
from eve_vl.utils.errors import UserError
from helpers.number_task import CONFIG, Guess, scored, step_folder, train, weights

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
    return best_folder.save_best(
        run, step=3, model=model.state_dict() | more, texts={"config.json": "{}"}, numbers={}
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_come_back(tmp_path: Path, device):
    torch.manual_seed(0)
    model = Tied()
    folder = save(tmp_path, model)
    torch.manual_seed(1)
    with torch.device(device):
        other = Tied()
    checkpoint_files.load_model(folder, other)
    assert device == "meta" or other.head.weight is other.words.weight
    trains = [
        {name: p.requires_grad for name, p in each.named_parameters(remove_duplicate=False)}
        for each in (model, other)
    ]
    assert trains[0] == trains[1]
    assert other.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items()
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loading_is_strict(tmp_path: Path, device):
    folder = save(tmp_path, nn.Linear(3, 2), extra=torch.ones(1))
    with torch.device(device):
        model = nn.Linear(4, 2)
    with pytest.raises(
        UserError, match=r"extra is unknown; weight has shape \(2, 3\), expected \(2, 4\)"
    ):
        checkpoint_files.load_model(folder, model)


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


def edit_tensors(
    name: str, change: Callable[[dict[str, Tensor]], object]
) -> Callable[[Path], None]:
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
        (
            flip_a_bit("model.safetensors"),
            "damaged (model.safetensors is not what was written, by its checksum)",
        ),
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
        (
            lambda folder: (folder / "state.json").write_text("[]"),
            "state.json: cannot be read (JSON list",
        ),
        (lambda folder: (folder / "state.json").write_text("[" * 99_999), "state.json: "),
        (lambda folder: (folder / "state.json").write_bytes(b"\xff"), "state.json: "),
        (cut("model.safetensors"), "model.safetensors: cannot be read"),
        (cut("optimizer.safetensors"), "damaged ("),
        (cut("rng_0.safetensors"), "damaged ("),
        (
            edit_model(lambda t: t["weight"].fill_(torch.nan)),
            "model.safetensors: weight holds NaN or infinity",
        ),
        (
            edit_model(lambda t: t.update(weight=torch.ones(3).long())),
            "weight has shape (3,) of whole numbers, expected (3,)",
        ),
        (
            edit_model(lambda t: t.update(weight=torch.ones(3).bool())),
            "weight has shape (3,) of whole numbers, expected (3,)",
        ),
        (
            edit_model(lambda t: t.update(weight=torch.ones(3).double())),
            "weight is float64, expected dense numbers",
        ),
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
    assert message.endswith(
        "; restore it from a copy, or delete this folder to continue without it"
    )
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


def test_a_crash_while_old_checkpoints_are_deleted_leaves_no_half_of_one(
    tmp_path: Path, monkeypatch
):
    run, rmtree = tmp_path / "run", shutil.rmtree

    def until_killed(path: str | Path, **how: Any) -> None:
        if Path(path).name == ".step_00000002.eve-old.tmp" and Path(path).exists():
            (Path(path) / "state.json").unlink()
            raise KeyboardInterrupt
        rmtree(path, **how)

    monkeypatch.setattr("shutil.rmtree", until_killed)
    with pytest.raises(KeyboardInterrupt):
        train(run, Guess(scored(*[0.5] * 4)), replace(CONFIG, keep_checkpoints=1))
    monkeypatch.undo()
    assert checkpoint_folders.checkpoint_folders(run) == [step_folder(run, 4)]
    (run / ".best.eve-ab12.tmp").mkdir()
    train(run, Guess(scored(*[0.5] * 4)), replace(CONFIG, keep_checkpoints=1))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000008"]
    assert not list(run.glob(".*.tmp"))


def test_an_impossible_state_of_a_generator_is_damage(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5)), replace(SHORT, save_every=4))
    path = step_folder(run, 4) / "rng_0.safetensors"
    states = load_file(path)
    states["numpy"][0] = 2**40
    save_file(states, path)
    edit_state(sha256={})(path.parent)
    with pytest.raises(
        UserError, match=r"damaged \(.*\); .*delete this folder to continue without it$"
    ):
        train(run, Guess([]), replace(SHORT, save_every=4))


def test_damaged_best_weights_are_named(tmp_path: Path):
    run = tmp_path / "run"
    train(run, Guess(scored(0.5)), SHORT)
    flip_a_bit("model.safetensors")(run / "best")
    with pytest.raises(
        UserError, match=r"best: damaged .* delete this folder to continue without it"
    ):
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
    assert checkpoint_folders.chosen_checkpoint(run) == run / "best"
    best = best_folder.read_best(run)
    assert best == {"step": 4, "numbers": {"score": 0.5, "other": 5.0}, "rows": {}}
    assert torch.equal(weights(run / "best"), weights(step_folder(run, 4)))


# Files, by hand


def test_what_a_replacement_left_behind_comes_back(tmp_path: Path):
    old = tmp_path / "checkpoints/.step_00000004.old"
    for folder in (old, tmp_path / "checkpoints/step_00000012", tmp_path / "checkpoints/step_9"):
        (folder / "deep").mkdir(parents=True)
    (tmp_path / "checkpoints/step_00000020").write_text("a file")
    assert checkpoint_folders.checkpoint_folders(tmp_path) == [
        step_folder(tmp_path, 4),
        step_folder(tmp_path, 12),
    ]
    assert not old.exists()


def test_a_write_that_fails_names_the_folder_and_says_that_older_ones_are_intact(
    tmp_path: Path, monkeypatch
):
    def fail(*_: object) -> None:
        raise SafetensorError("no space left")

    save(tmp_path, nn.Linear(2, 2))
    before = {path: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    monkeypatch.setattr(tensor_files, "save_file", fail)
    advice = "; earlier checkpoints are intact, make room and run the same command again"
    with pytest.raises(UserError) as caught:
        save(tmp_path, nn.Linear(2, 2))
    assert str(caught.value) == f"{tmp_path / 'best'}: cannot be written (no space left){advice}"
    assert {path: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before
    with pytest.raises(UserError, match=r"a.safetensors: cannot be written \(no space left\)$"):
        tensor_files.save_weights(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    with pytest.raises(UserError, match="cannot be written"):
        tensor_files.save_weights(tmp_path / "nowhere/a.pt", {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_weights_of_either_format_come_back_without_the_storage_around_them(tmp_path: Path, name):
    large = torch.arange(40_000.0, requires_grad=True)
    tensors = {
        "part": large[5:9],
        "across": large.view(200, 200)[:, :2].T,
        "whole": torch.ones(2).bfloat16(),
    }
    tensor_files.save_weights(tmp_path / name, tensors)
    read = load_file if name.endswith("safetensors") else partial(torch.load, weights_only=True)
    found = read(tmp_path / name)
    assert found.keys() == tensors.keys() and not any(each.requires_grad for each in found.values())
    for key, value in tensors.items():
        assert (
            found[key].dtype == value.dtype
            and torch.equal(found[key], value)
            and found[key].is_contiguous()
        )
    assert (tmp_path / name).stat().st_size < 10_000


def test_a_file_holds_each_tensor_once_for_each_name_and_its_metadata(tmp_path: Path):
    shared = torch.arange(6.0)
    tensor_files.write_tensors(
        tmp_path / "a", {"a": shared, "b": shared, "c": shared[2:].view(2, 2).T}, {"key": "value"}
    )
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"key": "value"}
    found = load_file(tmp_path / "a")
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [0, 1, 2, 3, 4, 5],
        "b": [0, 1, 2, 3, 4, 5],
        "c": [[2, 4], [3, 5]],
    }


@pytest.mark.parametrize("num", [5, 7])
def test_five_of_the_names_that_do_not_fit_are_listed(tmp_path: Path, num):
    folder = save(
        tmp_path, nn.Linear(2, 2), **{f"extra{number}": torch.ones(1) for number in range(num)}
    )
    with pytest.raises(UserError) as caught:
        checkpoint_files.load_model(folder, nn.Linear(2, 2))
    listed = "; ".join(f"extra{number} is unknown" for number in range(5))
    more = " and 2 more" if num == 7 else ""
    assert (
        str(caught.value)
        == f"{folder / 'model.safetensors'}: does not fit the model: {listed}{more}"
    )
    (tmp_path / "bare").mkdir()
    save_file({"bias": torch.ones(2)}, tmp_path / "bare/model.safetensors")
    with pytest.raises(UserError, match=r"does not fit the model: weight is missing$"):
        checkpoint_files.load_model(tmp_path / "bare", nn.Linear(2, 2))


def test_a_model_without_memory_takes_aligned_copies_in_its_own_types(tmp_path: Path):
    weights = {"weight": torch.randn(3, 5).half(), "bias": torch.randn(3).double().float()}
    folder = best_folder.save_best(tmp_path, step=1, model=weights, texts={}, numbers={})
    with torch.device("meta"):
        model = nn.Linear(5, 3)
    checkpoint_files.load_model(folder, model)
    assert model.weight.dtype == model.bias.dtype == torch.float32
    assert torch.equal(model.weight, weights["weight"].float()) and torch.equal(
        model.bias, weights["bias"]
    )
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(2).to_sparse(), "a is sparse_coo, expected dense numbers such as float32"),
        (
            torch.ones(2, dtype=torch.complex64),
            "a is complex64, expected dense numbers such as float32",
        ),
        (torch.ones(2, device="meta"), "a is float32, expected dense numbers such as float32"),
        (torch.ones(1).expand(5), "a says that it is (5,), but the file holds less"),
        (torch.tensor([1.0, torch.inf]), "a holds NaN or infinity"),
        (torch.tensor([torch.nan, 1.0]), "a holds NaN or infinity"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor, words):
    plain = {
        "b": torch.ones(3).view(3, 1).T,
        "c": torch.empty(0),
        "d": torch.tensor([2**62]),
        "e": torch.tensor(True),
    }
    tensor_files.check_tensors(plain, "file")
    with pytest.raises(UserError) as caught:
        tensor_files.check_tensors(plain | {"a": tensor}, "file")
    assert str(caught.value) == f"file: {words}"
    forms = [
        tensor_files.describe_shape(each)
        for each in (torch.ones(2, 3), torch.ones(1).half(), torch.ones(2).int())
    ]
    assert forms == ["(2, 3)", "(1,)", "(2,) of whole numbers"]


def test_an_answer_needs_other_files_than_a_resume(tmp_path: Path):
    folder = save(tmp_path, nn.Linear(2, 2))
    (folder / "config.json").write_text("damaged")
    assert checkpoint_files.verify(folder, to_resume=False)["step"] == 3
    with pytest.raises(UserError, match=r"damaged \(config.json is not what was written"):
        checkpoint_files.verify(folder)
    edit_state(sha256={"../best/config.json": "0"})(folder)
    with pytest.raises(
        UserError,
        match=r"damaged \(state.json names a file in another folder: ../best/config.json\)",
    ):
        checkpoint_files.verify(folder)
    edit_state(step=-1)(folder)
    with pytest.raises(UserError, match=r"state.json holds no step"):
        checkpoint_files.read_state(folder)
    edit_state(step=0)(folder)
    assert checkpoint_files.read_state(folder)["step"] == 0


def test_what_is_no_run_says_what_it_is(tmp_path: Path):
    (tmp_path / "weights.pt").touch()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"model_type": "eve"}')
    for name, words in (
        (
            "weights.pt",
            f"is a file, not a run folder; of published weights make one: eve convert {tmp_path / 'weights.pt'} FOLDER",
        ),
        (
            "hub",
            "was saved by transformers; make a run folder of it: hf.to_run(model, processor, FOLDER)",
        ),
        ("nothing", "no such run folder"),
        (
            "",
            f"holds no checkpoint (expected {tmp_path / 'checkpoints'}/step_…); is it a run folder?",
        ),
    ):
        with pytest.raises(UserError) as caught:
            checkpoint_folders.chosen_checkpoint(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {words}"
    for name in ("runs/second/best", "runs/.hidden/best", "runs/first/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("second", ".hidden"):
        (tmp_path / "runs" / name / "best/state.json").touch()
    with pytest.raises(UserError, match=f"; name a run in it, such as {tmp_path / 'runs/second'}$"):
        checkpoint_folders.chosen_checkpoint(tmp_path / "runs")


# Optimisers and generators


def test_the_optimisers_state_has_a_name_for_each_parameter_that_trains_before_any_step():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 3)]), "head": nn.Linear(3, 1)})
    model["head"].requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), TrainConfig(steps=1, optimizer="muon"))
    before = optimizer_tensors(model, optimizer)
    assert before.keys() == {
        "blocks.0.weight.momentum",
        *(f"blocks.0.bias.{name}" for name in ("step", "exp_avg", "exp_avg_sq")),
    }
    model["blocks"][0](torch.ones(1, 2)).sum().backward()  # pyright: ignore[reportIndexIssue]
    optimizer.step()
    after = optimizer_tensors(model, optimizer)
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in before.items()
    }
    assert not any(value.any() for value in before.values()) and all(
        value.any() for value in after.values()
    )


def drawn() -> list[float]:
    return [torch.rand(1).item(), np.random.rand(), random.random(), random.gauss(0, 1)]


@pytest.mark.parametrize("num_gauss", [0, 1])
def test_generators_go_on_where_they_were(num_gauss):
    """Python's makes two normal numbers at once and keeps one; NumPy's is in the midst of its keys."""
    random.seed(1)
    np.random.rand(7)
    for _ in range(num_gauss):
        random.gauss(0, 1)
    states = random_state.get_rng_state()
    expected = [drawn() for _ in range(3)]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    random_state.set_rng_state(states)
    assert [drawn() for _ in range(3)] == expected
    assert "cuda" not in states


def test_the_generator_of_a_gpu_is_kept_where_there_is_one(monkeypatch):
    kept, restored = torch.tensor([1, 2], dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: kept)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    random_state.set_rng_state(random_state.get_rng_state() | {"cuda": kept})
    assert not restored
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    states = random_state.get_rng_state()
    random_state.set_rng_state(states)
    assert restored == [kept] and states["cuda"] is kept
    random_state.set_rng_state({name: state for name, state in states.items() if name != "cuda"})
    assert len(restored) == 1


def test_a_process_that_is_new_after_a_resume_keeps_its_own_generators(tmp_path: Path):
    run, model = tmp_path / "run", nn.Linear(2, 2)
    optimizer = build_optimizer(model.named_parameters(), TrainConfig(steps=1))
    rng = random_state.get_rng_state() | {"meter.loss": torch.tensor([3.0])}
    own, shared = (
        {"model": model.state_dict(), "rng_0": rng},
        {"optimizer": optimizer_tensors(model, optimizer)},
    )
    writer = checkpoint_writer.CheckpointWriter(run, keep=2, in_background=False)
    writer.start(own, shared, {}, {"step": 7, "num_processes": 1})
    folder = step_folder(run, 7)
    for rank in (0, 1):
        random.seed(9)
        state = training_state.load_training_state(folder, model, optimizer, rank)
        assert state["meter"] == ({"loss": torch.tensor([3.0])} if rank == 0 else {})
        assert (random.random() == random.Random(9).random()) == (rank == 1)
    assert {value.dtype for value in optimizer.state[model.weight].values()} == {torch.float32}
    for step in (8, 9):
        writer.start(own, shared, {}, {"step": step, "num_processes": 1})
    assert checkpoint_folders.checkpoint_folders(run) == [step_folder(run, 8), step_folder(run, 9)]
    assert len([*(run / "checkpoints").iterdir()]) == 2
