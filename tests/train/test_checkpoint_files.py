"""The files of a checkpoint: loading is strict, and damage is detected."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import tensor_files
from eve_vl.train.best_folder import save_best
from eve_vl.train.checkpoint_files import load_model, verify
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.checkpoint_writer import CheckpointWriter
from eve_vl.train.optimizer import build_optimizer, optimizer_tensors
from eve_vl.train.random_state import get_rng_state
from eve_vl.train.training_state import load_training_state
from eve_vl.utils.errors import UserError
from helpers.damaged_checkpoints import Damage, cut, edit_state, edit_tensors, flip_a_bit
from helpers.number_task import CONFIG, Guess, scored, step_folder, train, trainer_of

SHORT = replace(CONFIG, steps=4, val_every=4)


class TiedModel(nn.Module):
    """A word table whose weight is its head's too, and a buffer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.words.weight
        self.norm = nn.BatchNorm1d(3)
        self.norm.weight.requires_grad_(False)


def save(run: Path, model: nn.Module, **further: Tensor) -> Path:
    weights = model.state_dict() | further
    return save_best(
        run,
        step=3,
        model=weights,
        texts={"config.json": "{}"},
        numbers={},
    )


def trained_parameters(model: nn.Module) -> dict[str, bool]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: parameter.requires_grad for name, parameter in parameters}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loaded_model_has_the_saved_weights_and_ties(tmp_path: Path, device):
    model = TiedModel()
    folder = save(tmp_path, model)
    with torch.device(device):
        loaded = TiedModel()
    load_model(folder, loaded)
    assert device == "meta" or loaded.head.weight is loaded.words.weight
    assert trained_parameters(loaded) == trained_parameters(model)
    expected = model.state_dict()
    weights = loaded.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_model_on_the_meta_device_takes_aligned_copies_in_its_types(tmp_path: Path):
    """Products of unaligned matrices differ in the last bit."""
    weights = {
        "weight": torch.randn(3, 5).half(),
        "bias": torch.randn(3),
    }
    folder = save_best(
        tmp_path,
        step=1,
        model=weights,
        texts={},
        numbers={},
    )
    with torch.device("meta"):
        model = nn.Linear(5, 3)
    load_model(folder, model)
    assert model.weight.dtype == model.bias.dtype == torch.float32
    assert torch.equal(model.weight, weights["weight"].float())
    assert torch.equal(model.bias, weights["bias"])
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path):
    """Five of them."""
    unknown = {f"extra{number}": torch.ones(1) for number in range(4)}
    folder = save(tmp_path, nn.Linear(3, 2), **unknown)
    listed = "; ".join(f"{name} is unknown" for name in unknown)
    misshapen = "weight has shape (2, 3), expected (2, 4)"
    path = folder / "model.safetensors"
    with pytest.raises(UserError) as error:
        load_model(folder, nn.Linear(4, 2))
    assert str(error.value) == f"{path}: does not fit the model: {listed}; {misshapen}"

    folder = save(
        tmp_path,
        nn.Linear(3, 2),
        **unknown,
        extra4=torch.ones(1),
        last=torch.ones(1),
    )
    with pytest.raises(UserError, match=r"extra4 is unknown and 2 more$"):
        load_model(folder, nn.Linear(4, 2))

    save_file({"bias": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"does not fit the model: weight is missing$"):
        load_model(folder, nn.Linear(2, 2))


def test_failed_write_names_the_folder_and_keeps_the_one_before(tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise SafetensorError("no space left")

    folder = save(tmp_path, nn.Linear(2, 2))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(UserError) as error:
        save(tmp_path, nn.Linear(2, 2))
    assert str(error.value) == (
        f"{folder}: cannot be written (no space left); "
        "earlier checkpoints are intact, make room and run the same command again"
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def write_state(content: bytes) -> Damage:
    return lambda folder: (folder / "state.json").write_bytes(content)


def edit_weight(value: Tensor) -> Damage:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["weight"] = value

    return edit_tensors("model.safetensors", edit)


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def spoil_numpy_state(tensors: dict[str, Tensor]) -> None:
    tensors["numpy"][0].fill_(2**40)


FLIPPED = "is not what was written, by its checksum"
NO_NAMES = "state.json lists new parameters that are no names"
DAMAGES = [
    (flip_a_bit("model.safetensors"), f"damaged (model.safetensors {FLIPPED})"),
    (flip_a_bit("optimizer.safetensors"), f"optimizer.safetensors {FLIPPED}"),
    (flip_a_bit("config.json"), f"config.json {FLIPPED}"),
    (remove_tokenizer, "tokenizer.json is missing"),
    (edit_state(step=True), "state.json holds no step"),
    (edit_state(step=-1), "state.json holds no step"),
    (edit_state(new=["head", 0.5]), NO_NAMES),
    (edit_state(num_processes=0), "state.json says num_processes 0"),
    (edit_state(sha256=[]), "state.json holds no checksums"),
    (edit_state(sha256={"../best/config.json": "0"}), "state.json names a file in another folder"),
    (cut("state.json"), "state.json: "),
    (write_state(b"[]"), "state.json: cannot be read (JSON list"),
    (cut("model.safetensors"), "model.safetensors: cannot be read"),
    (cut("rng_0.safetensors"), "damaged ("),
    (edit_weight(torch.full((3,), torch.nan)), "weight holds NaN or infinity"),
    (edit_weight(torch.arange(3)), "weight has shape (3,) of whole numbers, expected (3,)"),
    (edit_weight(torch.ones(3).double()), "weight is float64, expected dense numbers"),
    (edit_tensors("rng_0.safetensors", spoil_numpy_state), "damaged ("),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(run, Guess(scored(0.5)), SHORT)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_damaged_checkpoint_is_named(run: Path, damage, problem):
    damage(step_folder(run, 4))
    with pytest.raises(UserError) as error:
        trainer_of(run, Guess([]), SHORT).resume()
    message = str(error.value)
    assert problem in message
    assert "\n" not in message
    assert message.startswith(f"{step_folder(run, 4)}: damaged (")
    assert message.endswith(
        "; restore it from a copy, or delete this folder to continue without it"
    )


def test_checkpoint_before_a_deleted_one_serves(run: Path, capsys):
    shutil.rmtree(step_folder(run, 4))
    assert train(run, Guess(scored(0.4)), SHORT)["score"] == 0.4
    assert "resuming from step 2 of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip_a_bit("model.safetensors"), "model.safetensors is not what was written"),
        (edit_state(sha256={}, numbers=3), r"state.json holds no numbers"),
    ],
)
def test_damaged_best_weights_are_named(run: Path, damage, problem):
    damage(run / "best")
    with pytest.raises(UserError, match=rf"best: damaged \({problem}.* delete this folder"):
        trainer_of(run, Guess([]), SHORT).resume()


def test_run_of_an_older_version_without_checksums_still_loads(run: Path):
    for folder in (step_folder(run, 4), run / "best"):
        state = json.loads((folder / "state.json").read_text())
        del state["sha256"]
        (folder / "state.json").write_text(json.dumps(state))
    assert train(run, Guess([]), SHORT)["score"] == 0.5


def test_answers_do_not_depend_on_an_edited_config(tmp_path: Path):
    folder = save(tmp_path, nn.Linear(2, 2))
    (folder / "config.json").write_text("edited")
    assert verify(folder, to_resume=False)["step"] == 3
    with pytest.raises(UserError, match=r"damaged \(config.json is not what was written"):
        verify(folder)
    flip_a_bit("model.safetensors")(folder)
    with pytest.raises(UserError, match=r"damaged \(model.safetensors is not what was written"):
        verify(folder, to_resume=False)


def test_process_added_after_a_resume_keeps_its_generators(tmp_path: Path):
    run = tmp_path / "run"
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model.named_parameters(), TrainConfig(steps=1))
    process_tensors = get_rng_state() | {"meter.loss": torch.tensor([3.0])}
    unshared = {"model": model.state_dict(), "rng_0": process_tensors}
    shared = {"optimizer": optimizer_tensors(model, optimizer)}
    writer = CheckpointWriter(run, keep=2, in_background=False)
    for step in (7, 8, 9):
        writer.start(unshared, shared, {}, {"step": step, "num_processes": 1})
    folders = [step_folder(run, 8), step_folder(run, 9)]
    assert checkpoint_folders(run) == folders
    assert sorted((run / "checkpoints").iterdir()) == folders
    for rank in (0, 1):
        random.seed(9)
        state = load_training_state(folders[-1], model, optimizer, rank)
        assert state["meter"] == ({"loss": torch.tensor([3.0])} if rank == 0 else {})
        assert (random.random() == random.Random(9).random()) == (rank == 1)
    assert {value.dtype for value in optimizer.state[model.weight].values()} == {torch.float32}
