"""An encoder without heads and losses."""

from eve_vl.config import Config
from eve_vl.data.row_dataset import RowDataset
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError


class NoRows(RowDataset):
    """The dataset of a task without losses and metrics."""

    @classmethod
    def kind_of(cls, config: Config) -> str:
        """Raise UserError: there is nothing to train or to measure."""
        raise UserError(
            "the task headless has no losses and no numbers: "
            "start another run from this one with --init"
        )


class Headless(Task[HeadlessConfig]):
    """An encoder from elsewhere: a start for other runs, and a source of features."""

    section = HeadlessConfig
    dataset = NoRows
