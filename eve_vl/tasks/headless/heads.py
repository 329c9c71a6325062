"""The encoder's states for other programs."""

from collections.abc import Mapping

from torch import Tensor

from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.heads import Heads
from eve_vl.utils.errors import UserError


class HeadlessHeads(Heads):
    """Encoder without heads."""

    section = HeadlessConfig

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `last_hidden_state` (B, N, D) after the final norm.

        It holds the image's [CLS] and patches, then the text. Also `pooler_output` (B, D), the
        state of the text [CLS], of the image's where there is no text.
        """
        if labels is not None:
            raise UserError("an encoder without heads has no loss: leave out labels")
        encoded = self.encode(tensors)
        return {"last_hidden_state": encoded.x_BND, "pooler_output": encoded.cls_BD}
