"""The files of a checkpoint: weights, and state.json with the checksums of all others."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eve_vl.train.tensor_files import (
    SafetensorError,
    check_tensors,
    describe_shape,
    read_tensors,
    write_tensors,
)
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError

# files that decide an answer; config.json may be edited
ANSWERING = re.compile(r"model\.safetensors|(?!config\.json).*\.json")
ADVICE = "; earlier checkpoints are intact, make room and run the same command again"
WRITE_ERRORS = (OSError, SafetensorError)
MAX_PROBLEMS = 5  # in one error message


def write_files(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    metadata: Mapping[str, dict[str, str]] | None = None,
) -> dict[str, str]:
    """Write safetensors and text files; return their checksums by name.

    metadata: of safetensors files, by name. Raises one of WRITE_ERRORS.
    """
    paths = []
    for name, content in tensors.items():
        path = folder / f"{name}.safetensors"
        write_tensors(path, content, (metadata or {}).get(name))
        paths.append(path)
    for name, text in texts.items():
        path = folder / name
        path.write_bytes(text.encode())
        paths.append(path)
    paths.sort()
    for path in paths:
        file_io.sync(path)
    return {path.name: checksum(path) for path in paths}


def write_state(folder: Path, state: Mapping[str, Any], checksums: Mapping[str, str]) -> None:
    """Write state.json, the last file of a folder."""
    content = {**state, "sha256": dict(sorted(checksums.items()))}
    (folder / "state.json").write_text(json.dumps(content, indent=1))


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with file_io.open_ordinary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_error(folder: Path, reason: object) -> UserError:
    """Return the error of a damaged checkpoint or best folder."""
    fix = "restore it from a copy, or delete this folder to continue without it"
    return UserError(f"{folder}: damaged ({reason}); {fix}")


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of state.json with a valid `step`. Raises UserError."""
    try:
        state = file_io.read_json(folder / "state.json", dict)
    except UserError as error:
        raise damaged_error(folder, error) from None
    if not file_io.has_fields(state, step=int) or state["step"] < 0:
        raise damaged_error(folder, "state.json holds no step")
    new_parameters = state.get("new") or []
    is_list = isinstance(new_parameters, list)
    if not is_list or not all(isinstance(name, str) for name in new_parameters):
        raise damaged_error(folder, "state.json lists new parameters that are no names")
    return state


def verify(folder: Path, *, to_resume: bool = True) -> dict[str, Any]:
    """Compare files of a checkpoint with their checksums; return state.json.

    to_resume: all files; else those that decide an answer but config.json, which may be edited.
    Raises UserError.
    """
    state = read_state(folder)
    checksums = state.get("sha256", {})  # none in runs of earlier versions
    if not isinstance(checksums, dict):
        raise damaged_error(folder, "state.json holds no checksums")
    for name, expected in checksums.items():
        if not to_resume and not ANSWERING.fullmatch(name):
            continue
        if name != Path(name).name:
            raise damaged_error(folder, f"state.json names a file in another folder: {name}")
        if _checksum_or_damaged(folder, name) != expected:
            raise damaged_error(folder, f"{name} is not what was written, by its checksum")
    return state


def _checksum_or_damaged(folder: Path, name: str) -> str:
    try:
        return checksum(folder / name)
    except FileNotFoundError:
        raise damaged_error(folder, f"{name} is missing") from None
    except OSError as error:
        raise damaged_error(folder, f"{name}: {error.strerror}") from None


def read_model(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name. Raises UserError."""
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    check_tensors(tensors, path)
    return tensors


def load_model(folder: Path, model: nn.Module) -> None:
    """Load weights strictly; a model on the meta device takes over the file's tensors.

    Raises UserError with the keys that are missing, unknown or of another shape.
    """
    tensors = read_model(folder)
    expected = model.state_dict()
    problems = sorted(_misfits(tensors, expected))
    if problems:
        text = "; ".join(problems[:MAX_PROBLEMS])
        if len(problems) > MAX_PROBLEMS:
            text += f" and {len(problems) - MAX_PROBLEMS} more"
        raise UserError(f"{folder / 'model.safetensors'}: does not fit the model: {text}")
    is_meta = any(tensor.is_meta for tensor in expected.values())
    weights = {}
    for name, tensor in tensors.items():
        weight = tensor
        if is_meta:
            # a copy in aligned memory: products of unaligned matrices of a mapped file differ in
            # the last bit
            weight = tensor.to(expected[name].dtype, copy=True)
        if hasattr(expected[name], "to_local"):
            # FSDP takes a third of torch's time to import, and only training has shards
            from eve_vl.train.shard import sharded_as

            weight = sharded_as(weight, expected[name])
        weights[name] = weight
    model.load_state_dict(weights, assign=is_meta)


def _misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterable[str]:
    """Yield a text for each tensor that a model lacks or does not expect."""
    for name in expected.keys() - tensors.keys():
        yield f"{name} is missing"
    for name, tensor in tensors.items():
        if name not in expected:
            yield f"{name} is unknown"
        elif describe_shape(tensor) != describe_shape(expected[name]):
            shape = describe_shape(tensor)
            yield f"{name} has shape {shape}, expected {describe_shape(expected[name])}"
