"""The one checkpoint format: a folder that holds everything a run needs to go on or to be used.

    checkpoints/step_00001000/
        model.safetensors       weights
        optimizer.safetensors   moments by parameter name
        rng_0.safetensors …     random generators, one file per process
        state.json              step, samples consumed, versions
        config.json, tokenizer.json

    best/                       the weights that were best on validation, for tasks that choose by a number
        model.safetensors, state.json (step, numbers), config.json, tokenizer.json

A folder is written under a temporary name and renamed when it is complete, so a crash or a full disk leaves the previous
checkpoint whole. No pickle is written or read.
"""

import json
import os
import random
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eve_vl.errors import UserError

CHECKPOINTS = "checkpoints"
BEST = "best"
OPTIMIZER_KEYS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum"})  # what AdamW and Muon keep of a parameter


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = (run / CHECKPOINTS).glob("step_*")
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name) and path.is_dir())


def chosen_checkpoint(path: Path) -> Path:
    """Return the best or else the newest checkpoint of a run folder, or `path` itself if it is one. Raises UserError."""
    for folder in (path, path / BEST):
        if (folder / "state.json").is_file():
            return folder
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    folders = checkpoint_folders(path)
    if not folders:
        raise UserError(f"{path}: holds no checkpoint (expected {path / CHECKPOINTS}/step_…); is it a run folder?")
    return folders[-1]


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_durably(temporary, content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def save_checkpoint(
    run: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng_states: list[dict[str, Tensor]],
    texts: dict[str, str],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`.

    rng_states: one per process. texts: further files by name. state: JSON values.
    Raises UserError when the disk is full or the folder cannot be written; older checkpoints are then untouched.
    """
    folder = run / CHECKPOINTS / f"step_{step:08d}"
    tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, optimizer)}
    tensors |= {f"rng_{rank}": rng for rank, rng in enumerate(rng_states)}
    _write_folder(folder, tensors, texts | {"state.json": json.dumps({"step": step, **state}, indent=1)})
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def save_best(run: Path, *, step: int, model: nn.Module, texts: dict[str, str], numbers: dict[str, float]) -> Path:
    """Write the weights that are best so far, with the numbers that say so. Raises UserError as `save_checkpoint` does."""
    folder = run / BEST
    state = {"state.json": json.dumps({"step": step, "numbers": numbers}, indent=1)}
    _write_folder(folder, {"model": model.state_dict()}, texts | state)
    return folder


def read_best(run: Path) -> dict[str, Any] | None:
    """Return step and numbers of the best weights so far, None if there are none."""
    path = run / BEST / "state.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _write_folder(folder: Path, tensors: dict[str, dict[str, Tensor]], texts: dict[str, str]) -> None:
    """Write a folder of safetensors files and texts as a whole or not at all. Raises UserError."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in tensors.items():
            write_tensors(temporary / f"{name}.safetensors", content)
        for name, text in texts.items():
            _write_durably(temporary / name, text.encode())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{folder}: cannot save ({reason}); earlier checkpoints are whole, make room and run the same command again"
        ) from None


def read_model(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name. Raises UserError."""
    return read_tensors(folder / "model.safetensors")


def save_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a .safetensors or else a torch file as a whole or not at all. Raises UserError."""
    temporary = path.with_name(f".{path.name}.tmp")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        if path.suffix == ".safetensors":
            write_tensors(temporary, whole)
        else:
            torch.save(whole, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises UserError."""
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def load_model(folder: Path, model: nn.Module) -> None:
    """Load weights strictly. Raises UserError naming keys that are missing, unknown or of another shape."""
    path, tensors = folder / "model.safetensors", read_model(folder)
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}: does not fit the model: {'; '.join(sorted(problems)[:5])}{more}")
    model.load_state_dict(tensors, assign=True)


def load_training_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, Any]:
    """Load weights, optimiser and this process's generators; return the content of state.json."""
    load_model(folder, model)
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        state = json.loads((folder / "state.json").read_text())
        rng = load_file(folder / f"rng_{rank}.safetensors") if rank < state["num_processes"] else None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: damaged ({error}); delete this folder to go on from the one before") from None
    kept: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(".")
        kept[name][key] = tensor
    named = dict(model.named_parameters())
    if not kept.keys() <= named.keys() or not all(values.keys() in OPTIMIZER_KEYS for values in kept.values()):
        raise UserError(f"{folder}/optimizer.safetensors does not fit the model; delete this folder to go on without it")
    for name, values in kept.items():
        optimizer.state[named[name]] = {key: value.to(named[name].device) for key, value in values.items()}
    if rng is not None:  # a run that goes on with more processes starts their generators anew
        set_rng_state(rng)
    return state


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter name."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def get_rng_state() -> dict[str, Tensor]:
    """Return the state of every generator of this process as tensors: torch, CUDA, NumPy and Python."""
    _, keys, position, *_ = np.random.get_state()
    version, internal, gauss = random.getstate()
    assert version == 3
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position], dtype=torch.int64),  # pyright: ignore
        "python": torch.tensor(internal, dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Undo `get_rng_state`."""
    torch.set_rng_state(states["torch"])
    keys = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys[:-1], dtype=np.uint32), keys[-1], 0, 0.0))
    gauss = states["python_gauss"].item()
    random.setstate((3, tuple(states["python"].tolist()), None if gauss != gauss else gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, and wait until it is on the disk."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
