"""An encoder without heads that came from elsewhere: a start for other runs, and features of images or of texts.

Letters: B batch, N tokens, D width.
"""

from typing import Any

from eve_vl.config import Config, HeadlessConfig
from eve_vl.data.dataset import RowDataset
from eve_vl.model.encoder import initialize
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.trainer import StepOutput
from eve_vl.utils.errors import UserError


class NoRows(RowDataset):
    """The dataset of a task without losses and metrics."""

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Raise UserError: there is nothing to train or to measure."""
        raise UserError("the task headless has no losses and no numbers: start another run from this one with --init")


class Headless(Task[HeadlessConfig]):
    """The encoder alone."""

    section = HeadlessConfig
    dataset = NoRows

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)

    def forward(self, batch: Any) -> StepOutput:
        """Raise UserError."""
        raise UserError("the task headless has no losses: nothing to learn")
