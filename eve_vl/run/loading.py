"""Run folders as models, their lock, and untrained models of configs."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from eve_vl import builtin
from eve_vl.config import Config, config_from_dict
from eve_vl.data.kinds.labels import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluator import Evaluator, evaluator_of
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train import checkpoint, processes
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user, read_json

LOCK = ".lock"
IN_USE = "is in use by {}; wait for it to end, or choose another folder with --out"
_HELD: dict[str, object] = {}  # folders that this process has locked: fcntl does not lock out its other threads


@dataclass(kw_only=True)
class LoadedRun:
    """A run loaded from its folder."""

    config: Config
    tokenizer: Tokenizer
    task: Task[Any]
    step: int
    folder: Path

    @property
    def name(self) -> str:
        """Name of its run folder, for any of its checkpoints."""
        return root_of(self.folder.absolute()).name or "run"

    @property
    def shown(self) -> str:
        """Its folder, or builtin:NAME for a run shipped with the package."""
        named = builtin.name_of(self.folder)
        return named if builtin.is_named(named) else str(self.folder)

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return next(self.task.parameters()).device

    @property
    def evaluator(self) -> Evaluator[Any]:
        """The run's metrics and baselines."""
        return evaluator_of(self.task)


def root_of(checkpoint_folder: Path) -> Path:
    """Return the run folder of a checkpoint; a folder of neither kind is one itself."""
    if checkpoint_folder.parent.name == checkpoint.CHECKPOINTS:
        return checkpoint_folder.parents[1]
    return checkpoint_folder.parent if checkpoint_folder.name == checkpoint.BEST else checkpoint_folder


def load_run(path: Path | str, device: torch.device | None = None) -> LoadedRun:
    """Load a run folder or one of its checkpoints, in evaluation mode.

    A run folder gives its best weights, else its newest. Compares weights, tokenizer and labels with their checksums. The
    config may be edited, e.g. for data that has moved. Raises UserError.
    """
    folder = checkpoint.chosen_checkpoint(expand_user(path))
    step = checkpoint.verify(folder, to_resume=False)["step"]
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", ends=config.model.reads_text_end)
    with torch.device("meta"):  # random initial values would take longer than reading the file
        task = build_task(config, tokenizer, read_labels(folder, config))
    checkpoint.load_model(folder, task)
    return LoadedRun(config=config, tokenizer=tokenizer, task=task.to(device or "cpu").eval(), step=step, folder=folder)


def build_task(config: Config, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> Task[Any]:
    """Return the untrained task of a config, sized for a tokenizer and labels."""
    return build_untrained(config, Sizes(vocab_size=tokenizer.vocab_size, mask_id=tokenizer.mask_id, labels=tuple(labels)))


def build_untrained(config: Config, sizes: Sizes) -> Task[Any]:
    """Return the untrained task of a config from sizes alone."""
    return task_class(type(config.task))(config, sizes)


def read_labels(folder: Path, config: Config) -> list[str]:
    """Return the labels in a run or checkpoint folder.

    Empty for a task without labels. Raises UserError.
    """
    name = task_class(type(config.task)).labels_file
    return read_answers(folder / name) if name is not None else []


def read_config(folder: Path) -> Config:
    """Read the config.json of a run or checkpoint folder. Raises UserError."""
    path = folder / "config.json"
    return config_from_dict(read_json(path, dict), str(path))


def settings_folder(init: Path, scratch: bool, out: Path) -> Path:
    """Return the folder with config and tokenizer of an --init run. Raises UserError.

    That is `out` if it can resume; the run folder itself if only its shape is wanted (scratch); else its chosen checkpoint.
    """
    if checkpoint.checkpoint_folders(out):
        return out
    if scratch and all((init / name).is_file() for name in ("config.json", "tokenizer.json")):
        return init
    return checkpoint.chosen_checkpoint(init)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock a run folder against other trainings.

    Every process must call this, and the main one holds the lock. Makes missing folders, and deletes them if they stay empty.
    Raises UserError in every process if another training holds the lock or the folder cannot be written.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    key, holder = os.path.realpath(run), object()
    is_holder = is_main() and _HELD.setdefault(key, holder) is holder  # in one step
    file, problem = _acquire(run) if is_holder else (None, IN_USE.format("another thread") if is_main() else None)
    problem = processes.gather_objects(problem)[0]
    try:
        if problem is not None:
            raise UserError(f"{run}: {problem}")
        yield
    finally:
        if file is not None:
            (run / LOCK).unlink(missing_ok=True)
            file.close()
        if is_holder:
            del _HELD[key]
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()


def _acquire(run: Path) -> tuple[IO[str] | None, str | None]:
    """Return the locked file, or the problem that prevents a lock."""
    path, file = run / LOCK, None
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", errors="replace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, not kept by loader workers of a killed run
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            return None, IN_USE.format(f"process {holder}")
        except OSError:  # a file system without locks
            return file, None
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:  # its last holder has deleted it
            file.close()
            return _acquire(run)
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
    except OSError as error:  # such as a full disk
        with contextlib.suppress(OSError):
            if file is not None:
                path.unlink(missing_ok=True)
                file.close()
        return None, f"cannot be written ({error.strerror}); make room, or choose another folder with --out"
    return file, None
