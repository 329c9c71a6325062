"""Files of foreign weights: safetensors and torch files, read without running code."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.train import tensor_files
from eve_vl.utils.errors import UserError

NESTED = ("model", "state_dict", "module")  # where training scripts put the weights
PARALLEL_PREFIX = "module."  # of DistributedDataParallel


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights of a .safetensors or torch file without running its code.

    Removes the prefix of DistributedDataParallel. Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    tensors = (
        tensor_files.read_tensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    )
    if not all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        return tensors
    return {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = _load_torch(path)
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors: dict[str, Tensor] = {}
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                tensors[name] = value
    if not tensors:
        raise UserError(f"{path}: holds no weights by name")
    return tensors


def _load_torch(path: Path) -> Any:
    """Return the content of a torch file. Raises UserError if it holds more than tensors."""
    try:
        if _is_compressed(path):
            raise UserError(
                f"{path}: refused: it is compressed, which torch never does, and may unpack to "
                "any size"
            )
        with warnings.catch_warnings(action="ignore"):  # about how it was written
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: no torch checkpoint, or it holds more than tensors, which may run "
            "code"
        ) from None
    except Exception as error:  # torch raises nearly anything
        raise UserError(
            f"{path}: not a torch or safetensors checkpoint ({type(error).__name__})"
        ) from None


def _is_compressed(path: Path) -> bool:
    """Return whether a zip archive unpacks to more bytes than it has."""
    if not zipfile.is_zipfile(path):
        return False
    unpacked = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())
    return unpacked > path.stat().st_size


def rename(name: str, rules: Mapping[str, str | Callable[[re.Match[str]], str]]) -> str:
    """Return a name after all rules: pattern → what takes its place."""
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def renamed(
    tensors: Mapping[str, Tensor], new_name: Callable[[str], str], where: str
) -> dict[str, Tensor]:
    """Return tensors under new names. Raises UserError if two get the same name."""
    old_names: dict[str, str] = {}
    for name in tensors:
        first = old_names.setdefault(new_name(name), name)
        if first != name:
            raise UserError(
                f"{where}: {first} and {name} are the same tensor of the model; remove one from "
                "the file"
            )
    return {new: tensors[old] for new, old in old_names.items()}


def checked_tensors(
    tensors: Mapping[str, Tensor], drop: Sequence[str], where: str
) -> dict[str, Tensor]:
    """Return the tensors whose names contain no part in `drop`, in float32.

    Raises UserError for unusual tensors.
    """
    remaining = {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in drop)
    }
    tensor_files.check_tensors(remaining, where)
    for name, tensor in remaining.items():
        if tensor.is_floating_point():
            remaining[name] = tensor.float()
    return remaining
