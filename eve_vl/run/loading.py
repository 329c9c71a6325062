"""Run folders as models, and untrained models of a config."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from eve_vl.builtin.names import is_name, name_of
from eve_vl.config import Config, config_from_dict
from eve_vl.data.answer_list import read_answers
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.tasks.evaluator import Evaluator, evaluator_of
from eve_vl.tasks.task import Sizes, Task, task_class
from eve_vl.train import checkpoint_files, checkpoint_folders
from eve_vl.utils.file_io import expand_user, read_json


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
        lasting_name = name_of(self.folder)
        if is_name(lasting_name):
            return lasting_name
        return str(self.folder)

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return next(self.task.parameters()).device

    @property
    def evaluator(self) -> Evaluator[Any]:
        """The run's metrics and baselines."""
        return evaluator_of(self.task)


RANDOM_FUNCTIONS = (
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
)


class WithoutRandomValues(TorchFunctionMode):
    """A context in which RANDOM_FUNCTIONS leave their tensor as it is.

    On the meta device there are no values, but drawing them would import torch's compiler (in torch
    2.10), which takes as long as importing torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch."""
        options = kwargs or {}
        if func in RANDOM_FUNCTIONS:
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def root_of(checkpoint_folder: Path) -> Path:
    """Return the run folder of a checkpoint; a folder of neither kind is one itself."""
    if checkpoint_folder.parent.name == checkpoint_folders.CHECKPOINTS:
        return checkpoint_folder.parents[1]
    if checkpoint_folder.name == checkpoint_folders.BEST:
        return checkpoint_folder.parent
    return checkpoint_folder


def load_run(path: Path | str, device: torch.device | None = None) -> LoadedRun:
    """Load a run folder or one of its checkpoints, in evaluation mode.

    A run folder gives its best weights, else its newest. Compares weights, tokenizer and labels
    with their checksums. The config may be edited, e.g. for data that has moved. Raises UserError.
    """
    folder = checkpoint_folders.chosen_checkpoint(expand_user(path))
    step = checkpoint_files.verify(folder, to_resume=False)["step"]
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", ends=config.model.reads_text_end)
    # random initial values would take longer than reading the file
    with torch.device("meta"), WithoutRandomValues():
        task = build_task(config, tokenizer, read_labels(folder, config))
    checkpoint_files.load_model(folder, task)
    return LoadedRun(
        config=config,
        tokenizer=tokenizer,
        task=task.to(device or "cpu").eval(),
        step=step,
        folder=folder,
    )


def build_task(config: Config, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> Task[Any]:
    """Return the untrained task of a config, sized for a tokenizer and labels."""
    sizes = Sizes(vocab_size=tokenizer.vocab_size, mask_id=tokenizer.mask_id, labels=tuple(labels))
    return build_untrained(config, sizes)


def build_untrained(config: Config, sizes: Sizes) -> Task[Any]:
    """Return the untrained task of a config from sizes alone."""
    return task_class(type(config.task))(config, sizes)


def read_labels(folder: Path, config: Config) -> list[str]:
    """Return the labels in a run or checkpoint folder; none for a task without labels.

    Raises UserError.
    """
    name = task_class(type(config.task)).labels_file
    if name is None:
        return []
    return read_answers(folder / name)


def read_config(folder: Path) -> Config:
    """Read the config.json of a run or checkpoint folder. Raises UserError."""
    path = folder / "config.json"
    return config_from_dict(read_json(path, dict), str(path))
