"""What tasks need to know of a loaded run."""

from typing import Any, Protocol

import torch

from eve_vl.config import Config
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.tasks.task import Task


class Run(Protocol):
    """A loaded run (`run.loading.LoadedRun`)."""

    config: Config
    tokenizer: Tokenizer
    task: Task[Any]
    step: int

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        ...

    @property
    def evaluator(self) -> Any:
        """Its metrics and baselines (`tasks.evaluator.Evaluator`)."""
        ...
