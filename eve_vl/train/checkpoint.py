"""The one checkpoint format: all that a run needs to resume or to be used.

    checkpoints/step_00001000/
        model.safetensors       weights
        live.safetensors        with train.ema_decay: the weights to continue from; model.safetensors has averages
        memory.safetensors      with task.memory_batches: features of the last steps
        optimizer.safetensors   moments by parameter name; of several processes, optimizer_N.safetensors and live_N.safetensors
                                have the share of process N, see `training_state`
        rng_0.safetensors …     random generators and the open log window, per process
        state.json              step, processes, threads, checksums of the other files; written last
        config.json, tokenizer.json, and answers.json or classes.json for a task with a list of labels

    best/                       the weights to use, for tasks with a main metric; see `train.best`
        model.safetensors, state.json (step, numbers, scores per row, checksums), config.json and the like, as above
    checkpoints/highest/        the weights with the highest main metric, while best/ holds later ones that may be as good

A crash or a full disk leaves the previous checkpoint and the previous best weights intact. No pickle is read.
"""

import contextlib
import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.train.processes import from_main
from eve_vl.train.shard import like
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError

CHECKPOINTS = "checkpoints"
BEST = "best"
HIGHEST = f"{CHECKPOINTS}/highest"
STEP = re.compile(r"step_([0-9]{8,18})")
ANSWERING = re.compile(r"model\.safetensors|(?!config\.json).*\.json")  # config.json may be edited
LIVE = "live"
MEMORY = "memory"
METER = "meter."  # prefix in rng_*.safetensors of sums of the open log window
COUNTS = "/counts"  # name in a meter's state of: steps, seconds, loading seconds, CPU core-seconds
ADVICE = "; earlier checkpoints are intact, make room and run the same command again"
WRITE_ERRORS = (OSError, safetensors.SafetensorError)
PLAIN = {
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
}


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
    for old in folder.glob(".step_*.old"):
        file_io.recover(old.with_name(old.stem.removeprefix(".")))
    return sorted(
        path for path in folder.glob("step_*") if STEP.fullmatch(path.name) and path.is_dir()
    )


def known_checkpoints(run: Path) -> list[Path]:
    """Return the main process's `checkpoint_folders`, on every process.

    On a network disk, others may see older ones.
    """
    return from_main(lambda: checkpoint_folders(run))


def chosen_checkpoint(path: Path) -> Path:
    """Return the best or else the newest checkpoint of a run folder.

    Returns `path` itself if it is a checkpoint. Raises UserError.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run folder")
    file_io.recover(path / BEST)
    for folder in (path, path / BEST):
        if (folder / "state.json").is_file():
            return folder
    if path.is_file():
        raise UserError(
            f"{path}: is a file, not a run folder; of published weights make one: eve convert {path} FOLDER"
        )
    folders = checkpoint_folders(path)
    if (
        not folders
        and (config := path / "config.json").is_file()
        and b'"model_type"' in config.read_bytes()
    ):
        raise UserError(
            f"{path}: was saved by transformers; make a run folder of it: hf.to_run(model, processor, FOLDER)"
        )
    if not folders:
        runs = sorted(
            each
            for each in path.glob("[!.]*")
            if (each / BEST / "state.json").is_file() or checkpoint_folders(each)
        )
        fix = f"name a run in it, such as {runs[0]}" if runs else "is it a run folder?"
        raise UserError(
            f"{path}: holds no checkpoint (expected {path / CHECKPOINTS}/step_…); {fix}"
        )
    return folders[-1]


def delete_folders(*folders: Path) -> None:
    """Delete folders without a moment in which half of one looks complete."""
    for folder in folders:
        with contextlib.suppress(OSError):  # hidden first
            folder.rename(hidden := folder.with_name(f".{folder.name}.eve-old.tmp"))
            shutil.rmtree(hidden)


def save_best(
    run: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    texts: Mapping[str, str],
    numbers: Mapping[str, float],
    rows: Mapping[str, float] | None = None,
) -> Path:
    """Write the best weights so far with their numbers.

    rows: the score of each validation row. Raises UserError as `save_checkpoint` does.
    """
    state = {"step": step, "numbers": to_json(numbers)} | ({"rows": rows} if rows else {})
    return _write_folder(run / BEST, {"model": model}, texts, state)


def copy_best(run: Path, source: str, target: str) -> None:
    """Copy BEST to HIGHEST or back, atomically. Raises UserError."""
    with (
        file_io.reporting_write_errors(run / target),
        file_io.atomic_folder(run / target) as temporary,
    ):
        shutil.copytree(run / source, temporary, dirs_exist_ok=True)


def read_best(run: Path, name: str = BEST) -> dict[str, Any] | None:
    """Return step, numbers and scores per row of BEST or HIGHEST; None without any.

    Raises UserError.
    """
    file_io.recover(run / name)
    if not (run / name / "state.json").is_file():
        return None
    state = {"rows": {}, **verify(run / name)}  # none in runs of earlier versions
    numbers = (
        from_json(state["numbers"]) if file_io.has_fields(state, numbers=dict, rows=dict) else None
    )
    for values in (numbers, state["rows"]):
        if not file_io.has_fields(values, **dict.fromkeys(values or (), float)):
            raise damaged(run / name, "state.json holds no numbers")
    return {"step": state["step"], "numbers": numbers, "rows": state["rows"]}


def _write_folder(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    state: Mapping[str, Any],
) -> Path:
    """Write a folder of tensors, texts and state.json with checksums atomically.

    Raises UserError.
    """
    with (
        file_io.reporting_write_errors(folder, *WRITE_ERRORS, advice=ADVICE),
        file_io.atomic_folder(folder) as temporary,
    ):
        write_state(temporary, state, write_files(temporary, tensors, texts))
    return folder


def write_files(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    metadata: Mapping[str, dict[str, str]] | None = None,
) -> dict[str, str]:
    """Write safetensors and text files; return their checksums by name.

    metadata: of safetensors files, by name. Raises one of WRITE_ERRORS.
    """
    for name, content in tensors.items():
        write_tensors(folder / f"{name}.safetensors", content, (metadata or {}).get(name))
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    paths = [
        folder / name for name in sorted([*(f"{name}.safetensors" for name in tensors), *texts])
    ]
    for path in paths:
        file_io.sync(path)
    return {path.name: checksum(path) for path in paths}


def write_state(folder: Path, state: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Write state.json, the last file of a folder."""
    (folder / "state.json").write_text(
        json.dumps({**state, "sha256": dict(sorted(sums.items()))}, indent=1)
    )


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file. Raises OSError."""
    with file_io.open_ordinary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path, reason: object) -> UserError:
    """Return the error of a damaged checkpoint or best folder."""
    return UserError(
        f"{folder}: damaged ({reason}); restore it from a copy, or delete this folder to continue without it"
    )


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of state.json with a valid `step`. Raises UserError."""
    try:
        state = file_io.read_json(folder / "state.json", dict)
    except UserError as error:
        raise damaged(folder, error) from None
    if not file_io.has_fields(state, step=int) or state["step"] < 0:
        raise damaged(folder, "state.json holds no step")
    if not isinstance(new := state.get("new") or [], list) or not all(
        isinstance(name, str) for name in new
    ):
        raise damaged(folder, "state.json lists new parameters that are no names")
    return state


def verify(folder: Path, *, to_resume: bool = True) -> dict[str, Any]:
    """Compare files of a checkpoint with their checksums; return state.json.

    to_resume: all files; else those that decide an answer but config.json, which may be edited. Raises UserError.
    """
    state = read_state(folder)
    sums = state.get("sha256", {})  # none in runs of earlier versions
    if not isinstance(sums, dict):
        raise damaged(folder, "state.json holds no checksums")
    for name in sums if to_resume else [name for name in sums if ANSWERING.fullmatch(name)]:
        if name != Path(name).name:
            raise damaged(folder, f"state.json names a file in another folder: {name}")
        try:
            found = checksum(folder / name)
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            raise damaged(
                folder, f"{name} is missing" if is_missing else f"{name}: {error.strerror}"
            ) from None
        if found != sums[name]:
            raise damaged(folder, f"{name} is not what was written, by its checksum")
    return state


def read_model(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name. Raises UserError."""
    check_tensors(tensors := read_tensors(path := folder / "model.safetensors"), path)
    return tensors


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, or else a torch file, atomically. Raises UserError."""
    errors = RuntimeError, safetensors.SafetensorError
    with file_io.reporting_write_errors(path, *errors), file_io.atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            write_tensors(temporary, tensors)
        else:  # copies: torch would write a view's whole storage
            torch.save(
                {
                    name: tensor.detach().cpu().contiguous().clone()
                    for name, tensor in tensors.items()
                },
                temporary,
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, unchecked. Raises UserError."""
    with file_io.reading(path, safetensors.SafetensorError):
        file_io.open_ordinary(path).close()  # a pipe would wait
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file. Raises UserError."""
    with (
        file_io.reading(path, safetensors.SafetensorError),
        safetensors.safe_open(path, "pt") as file,
    ):
        return file.metadata() or {}


def check_tensors(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise UserError for a tensor that is no dense array of finite, usual numbers."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in PLAIN or tensor.is_meta:
            kind = str(
                tensor.dtype if tensor.layout == torch.strided else tensor.layout
            ).removeprefix("torch.")
            raise UserError(f"{where}: {name} is {kind}, expected dense numbers such as float32")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(
                f"{where}: {name} says that it is {tuple(tensor.shape)}, but the file holds less"
            )
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and not torch.stack(tensor.aminmax()).isfinite().all()
        ):
            raise UserError(f"{where}: {name} holds NaN or infinity")


def form(tensor: Tensor) -> str:
    """Return a tensor's shape, and " of whole numbers" for integers.

    Tensors with equal results are interchangeable.
    """
    return f"{tuple(tensor.shape)}" + " of whole numbers" * (not tensor.is_floating_point())


def load_model(folder: Path, model: nn.Module) -> None:
    """Load weights strictly; a model on the meta device takes over the file's tensors.

    Raises UserError with the keys that are missing, unknown or of another shape.
    """
    path, tensors = folder / "model.safetensors", read_model(folder)
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} has shape {form(tensor)}, expected {form(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and form(tensor) != form(expected[name])
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}: does not fit the model: {'; '.join(sorted(problems)[:5])}{more}")
    is_meta = any(tensor.is_meta for tensor in expected.values())
    if is_meta:  # a copy in aligned memory: products of unaligned matrices of a mapped file differ in the last bit
        tensors = {
            name: tensor.to(expected[name].dtype, copy=True) for name, tensor in tensors.items()
        }
    model.load_state_dict(
        {name: like(tensor, expected[name]) for name, tensor in tensors.items()}, assign=is_meta
    )


def get_rng_state() -> dict[str, Tensor]:
    """Return the states of the generators of torch, CUDA, NumPy and Python as tensors."""
    _, keys, position, *_ = np.random.get_state()
    version, internal, gauss = random.getstate()
    assert version == 3
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*keys.tolist(), position], dtype=torch.int64),  # pyright: ignore
        "python": torch.tensor(internal, dtype=torch.int64),
        "python_gauss": torch.tensor(
            [float("nan") if gauss is None else gauss], dtype=torch.float64
        ),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Set the states that `get_rng_state` returned."""
    torch.set_rng_state(states["torch"])
    keys = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys[:-1], dtype=np.uint32), keys[-1], 0, 0.0))
    gauss = states["python_gauss"].item()
    random.setstate((3, tuple(states["python"].tolist()), None if gauss != gauss else gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with usual permissions.

    Tensors that share memory are written separately.
    """
    whole, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        whole[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    path.touch()
    mode = path.stat().st_mode
    save_file(whole, path, metadata)
    path.chmod(mode)
