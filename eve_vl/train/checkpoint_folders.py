"""The folders of a run that hold weights: names, order, choice and deletion.

    checkpoints/step_00001000/
        model.safetensors       weights
        live.safetensors        with train.ema_decay: the weights to continue from, next to the
                                averages in model.safetensors
        memory.safetensors      with task.memory_batches: features of the last steps
        optimizer.safetensors   moments by parameter name; of several processes,
                                optimizer_N.safetensors and live_N.safetensors have the share of
                                process N, see `tensor_shares`
        rng_0.safetensors …     random generators and the open log window, per process
        state.json              step, processes, threads, checksums of the other files; written last
        config.json, tokenizer.json, and answers.json or classes.json for a task with labels

    best/                       the weights to use, for tasks with a main metric; see `best_weights`
        model.safetensors, state.json (step, numbers, scores per row, checksums), config.json and
        the like, as above
    checkpoints/highest/        the weights with the highest main metric, while best/ holds later
                                ones that may be as good

A crash or a full disk leaves the previous checkpoint and the previous best weights intact. No
pickle is read.
"""

import contextlib
import re
import shutil
from pathlib import Path

from eve_vl.train.processes import from_main
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError

CHECKPOINTS = "checkpoints"
BEST = "best"
HIGHEST = f"{CHECKPOINTS}/highest"
STEP_NAME = re.compile(r"step_([0-9]{8,18})")


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = run / CHECKPOINTS
    for replaced in folder.glob(".step_*.old"):
        file_io.recover(replaced.with_name(replaced.stem.removeprefix(".")))
    steps = [path for path in folder.glob("step_*") if STEP_NAME.fullmatch(path.name)]
    return sorted(path for path in steps if path.is_dir())


def checkpoint_folders_of_main(run: Path) -> list[Path]:
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
            f"{path}: is a file, not a run folder; "
            f"of published weights make one: eve convert {path} FOLDER"
        )
    folders = checkpoint_folders(path)
    if folders:
        return folders[-1]
    config = path / "config.json"
    if config.is_file() and b'"model_type"' in config.read_bytes():
        raise UserError(
            f"{path}: was saved by transformers; "
            "make a run folder of it: hf.to_run(model, processor, FOLDER)"
        )
    runs = sorted(folder for folder in path.glob("[!.]*") if _holds_weights(folder))
    fix = f"name a run in it, such as {runs[0]}" if runs else "is it a run folder?"
    raise UserError(f"{path}: holds no checkpoint (expected {path / CHECKPOINTS}/step_…); {fix}")


def _holds_weights(run: Path) -> bool:
    return (run / BEST / "state.json").is_file() or bool(checkpoint_folders(run))


def delete_folders(*folders: Path) -> None:
    """Delete folders without a moment in which half of one looks complete."""
    for folder in folders:
        hidden = folder.with_name(f".{folder.name}.eve-old.tmp")
        with contextlib.suppress(OSError):
            folder.rename(hidden)
            shutil.rmtree(hidden)
