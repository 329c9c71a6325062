"""Files of tensors: what they hold, and which tensors are refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from eve_vl.train import tensor_files
from eve_vl.train.tensor_files import check_tensors, save_weights, write_tensors
from eve_vl.utils.errors import UserError


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_saved_weights_come_back_without_the_storage_around_them(tmp_path: Path, name):
    large = torch.arange(40_000.0, requires_grad=True)
    tensors = {
        "part": large[5:9],
        "across": large.view(200, 200)[:, :2].T,
        "whole": torch.ones(2).bfloat16(),
    }
    path = tmp_path / name
    save_weights(path, tensors)
    read = load_file if name.endswith("safetensors") else partial(torch.load, weights_only=True)
    saved = read(path)
    assert saved.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(saved[key], tensor)
        assert saved[key].dtype == tensor.dtype
        assert saved[key].is_contiguous()
        assert not saved[key].requires_grad
    assert path.stat().st_size < 10_000


def test_write_errors_of_saved_weights_are_one_line(tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise SafetensorError("no space left")

    monkeypatch.setattr(tensor_files, "save_file", fail)
    with pytest.raises(UserError, match=r"a.safetensors: cannot be written \(no space left\)$"):
        save_weights(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(tmp_path / "nowhere/a.pt", {"a": torch.ones(1)})
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_separately(tmp_path: Path):
    shared = torch.arange(6.0)
    tensors = {
        "a": shared,
        "b": shared,
        "c": shared[2:].view(2, 2).T,
    }
    write_tensors(tmp_path / "a", tensors, {"key": "value"})
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"key": "value"}
    saved = load_file(tmp_path / "a")
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {
        "a": [0, 1, 2, 3, 4, 5],
        "b": [0, 1, 2, 3, 4, 5],
        "c": [[2, 4], [3, 5]],
    }


@pytest.mark.parametrize(
    ("tensor", "problem"),
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
def test_only_dense_tensors_of_finite_usual_numbers_pass(tensor, problem):
    usual = {
        "b": torch.ones(3).view(3, 1).T,
        "c": torch.empty(0),
        "d": torch.tensor([2**62]),
        "e": torch.tensor(True),
    }
    check_tensors(usual, "file")
    with pytest.raises(UserError) as error:
        check_tensors(usual | {"a": tensor}, "file")
    assert str(error.value) == f"file: {problem}"
