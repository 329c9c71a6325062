"""An encoder without heads that came from elsewhere: a start for other runs, and features of pictures or of texts."""

from typing import Any

from eve_vl.config import Config, EncoderOnlyConfig
from eve_vl.data.dataset import RowDataset
from eve_vl.errors import UserError
from eve_vl.model.encoder import initialize
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.trainer import StepOutput


class EncoderOnly(Task[EncoderOnlyConfig]):
    """The encoder alone."""

    section = EncoderOnlyConfig
    dataset = RowDataset

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)

    @classmethod
    def kind(cls, config: Config) -> str:
        """Raise UserError: there is nothing to train or to measure."""
        raise UserError("the task encoder has no losses and no numbers: start another run from this one with --init")

    def forward(self, batch: Any) -> StepOutput:
        """Raise UserError."""
        raise UserError("the task encoder has no losses: nothing to learn")
