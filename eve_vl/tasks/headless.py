"""An encoder without heads that came from elsewhere: a start for other runs, and features of images or of texts.

Letters: B batch, N tokens, D width.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eve_vl.config import Config, HeadlessConfig
from eve_vl.data.dataset import RowDataset
from eve_vl.model.encoder import initialize
from eve_vl.tasks.task import Sizes, Task
from eve_vl.train.trainer import StepOutput
from eve_vl.utils.errors import UserError


class Headless(Task[HeadlessConfig]):
    """The encoder alone."""

    section = HeadlessConfig
    dataset = RowDataset

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)

    @classmethod
    def kind(cls, config: Config) -> str:
        """Raise UserError: there is nothing to train or to measure."""
        raise UserError("the task headless has no losses and no numbers: start another run from this one with --init")

    def forward(self, batch: Any) -> StepOutput:
        """Raise UserError."""
        raise UserError("the task headless has no losses: nothing to learn")

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `last_hidden_state` (B, N, D) after the final norm, the image's [CLS] and patches first, then the text, and
        `pooler_output` (B, D), the state of the text [CLS], of the image's where there is no text."""
        if labels is not None:
            raise UserError("an encoder without heads has no loss: leave out labels")
        if not tensors:
            raise UserError("give pixel_values, input_ids or both")
        image = self.encoder.image(tensors["pixels"]) if "pixels" in tensors else None
        text = self.encoder.text(tensors["ids"], tensors["is_padding"]) if "ids" in tensors else None
        encoded = self.encoder.encode(image, text)
        return {"last_hidden_state": encoded.x_BND, "pooler_output": encoded.cls_BD}
