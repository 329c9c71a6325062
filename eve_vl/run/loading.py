"""Run folders as models or as a start, their lock, and untrained models."""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from eve_vl.builtin.names import is_name, name_of
from eve_vl.config import Config, config_from_dict
from eve_vl.data.answer_list import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.evaluator import Evaluator, evaluator_of
from eve_vl.run.start_folder import start_folder
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train import checkpoint, processes
from eve_vl.utils.console import is_main, print_line
from eve_vl.utils.errors import UserError, matching
from eve_vl.utils.file_io import expand_user, read_json

LOCK, ENCODER = ".lock", "encoder."
IN_USE = "is in use by {}; wait for it to end, or choose another folder with --out"
_HELD: dict[
    str, object
] = {}  # folders that this process has locked: fcntl does not lock out its other threads


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
        named = name_of(self.folder)
        return named if is_name(named) else str(self.folder)

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
    return (
        checkpoint_folder.parent if checkpoint_folder.name == checkpoint.BEST else checkpoint_folder
    )


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
    return LoadedRun(
        config=config,
        tokenizer=tokenizer,
        task=task.to(device or "cpu").eval(),
        step=step,
        folder=folder,
    )


def build_task(config: Config, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> Task[Any]:
    """Return the untrained task of a config, sized for a tokenizer and labels."""
    return build_untrained(
        config,
        Sizes(vocab_size=tokenizer.vocab_size, mask_id=tokenizer.mask_id, labels=tuple(labels)),
    )


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
    init = start_folder(init)
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
    file, problem = (
        _acquire(run)
        if is_holder
        else (None, IN_USE.format("another thread") if is_main() else None)
    )
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
            fcntl.lockf(
                file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # unlike flock's, not kept by loader workers of a killed run
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            return None, IN_USE.format(f"process {holder}")
        except OSError:  # a file system without locks
            return file, None
        if (
            not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino
        ):  # its last holder has deleted it
            file.close()
            return _acquire(run)
        file.truncate(0)
        os.write(file.fileno(), str(os.getpid()).encode())
    except OSError as error:  # such as a full disk
        with contextlib.suppress(OSError):
            if file is not None:
                path.unlink(missing_ok=True)
                file.close()
        return (
            None,
            f"cannot be written ({error.strerror}); make room, or choose another folder with --out",
        )
    return file, None


# Starting from another run, perhaps of another task


class Transfer(NamedTuple):
    """Result of a start from another run's weights."""

    new: frozenset[str]
    """Parameters missing there or of another shape; they start at random."""
    unused: frozenset[str]
    """Parameters that this model does not have."""
    resized: str | None
    """Sentence on resized encoder weights; None without any."""


def in_its_shape(recipe: Config, start: Config, init: Path) -> Config:
    """Return the recipe in the shape of the --init run, and print what changes.

    Raises UserError if the run has another kind of encoder: it would train another system under the recipe's name.
    """
    ours, theirs, sizes = recipe.model, start.model, start.input
    if differ := ours.incompatible_fields(theirs):
        what = ", ".join(
            f"model.{name} {getattr(theirs, name)} instead of {getattr(ours, name)}"
            for name in differ
        )
        raise UserError(
            f"{init}: another system than {recipe.recipe} ({what}); start from a run of that recipe"
        )
    if (
        getattr(theirs, "positions", "") == "relative"
    ):  # its weights, resized, fit other images and shorter texts
        sizes = replace(recipe.input, patch_size=sizes.patch_size)
    shown, usual = (
        f"{model}, {size.image_size}² pixels in patches of {size.patch_size}"
        for model, size in ((theirs, sizes), (ours, recipe.input))
    )
    if shown != usual:
        print_line(f"{init} keeps its shape instead of that of {recipe.recipe}: {shown}")
    return replace(
        recipe, input=sizes, model=theirs, tokenizer=replace(recipe.tokenizer, path=None)
    )


def start_from(config: Config, task: Task[Any]) -> tuple[Collection[str], str]:
    """Copy the weights of config.init; return the new parameters and a note.

    With config.scratch the weights stay random. Raises UserError if the encoders differ in more than config.init_allow_missing
    allows.
    """
    assert config.init is not None
    if config.scratch:  # only heads count as new: both sides of a comparison train at equal rates
        heads = [name for name, _ in task.named_parameters() if not name.startswith("encoder.")]
        return heads, f"random weights, in the shape of {config.init}"
    folder = checkpoint.chosen_checkpoint(start_folder(config.init))
    processes.from_main(lambda: checkpoint.verify(folder))
    start = read_config(folder)
    tensors = task.init_weights_from(checkpoint.read_model(folder), read_labels(folder, start))
    done = transfer(tensors, task, str(folder), config.init_allow_missing, start.input.text_length)
    new = (
        f"new, at {config.train.head_lr_multiplier:g} × the learning rate: {parts(done.new)}"
        if done.new
        else None
    )
    unused = f"not used: {parts(done.unused)}" if done.unused else None
    return done.new, "; ".join(filter(None, (f"weights from {folder}", done.resized, new, unused)))


def transfer(
    tensors: Mapping[str, Tensor],
    task: Any,
    where: str,
    may_lack: Sequence[str] = (),
    text_length: int | None = None,
) -> Transfer:
    """Copy the weights of another run that fit.

    The encoder must fit as a whole, after resizing, except for names that match may_lack. where: the source of `tensors` in
    messages. text_length: of the source run. Raises UserError, also for a pattern without a match.
    """
    own = task.state_dict()
    encoder = {
        name.removeprefix(ENCODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(ENCODER)
    }
    encoder, resized = task.encoder.resized(encoder)
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}
    tensors = heads | {ENCODER + name: tensor for name, tensor in encoder.items()}
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and tensor.shape == own[name].shape
    }
    of_encoder = {
        name for name in own.keys() | tensors.keys() if name.startswith(ENCODER)
    }  # heads may differ
    may_differ = {
        name for pattern in may_lack for name in matching(pattern, of_encoder, "init_allow_missing")
    }
    if wrong := of_encoder - fitting.keys() - may_differ:
        name = min(wrong)
        here = f"{tuple(own[name].shape)} here" if name in own else "missing here"
        there = f"{tuple(tensors[name].shape)} there" if name in tensors else "missing there"
        differ = (
            f"{len(wrong)} tensors differ, the first {name}"
            if len(wrong) > 1
            else f"1 tensor differs, {name}"
        )
        problem = f"its encoder does not fit this model: {differ}: {here}, {there}; leave out the flags that change shapes"
        fix = f"give the run's --input.text-length {text_length}, or name what may start at random: --init-allow-missing"
        raise UserError(f"{where}: {problem}, {fix}")
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return Transfer(
        frozenset(own.keys() - fitting.keys()), frozenset(tensors.keys() - fitting.keys()), resized
    )


def parts(names: Iterable[str]) -> str:
    """Return the model parts of parameters, as in `answer_head, contrast.match_head`."""
    depth = {"contrast": 2, "encoder": 2}
    return ", ".join(
        sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names})
    )
