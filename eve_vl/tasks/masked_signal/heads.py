"""The token head for other programs.

Letters: B batch, T text tokens, D width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eve_vl import objectives
from eve_vl.tasks.heads import IGNORED, Heads
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.task import PAIR


class MaskedSignalHeads(Heads):
    """Token head."""

    section = MaskedSignalConfig

    def __init__(self, task: Any):
        super().__init__(task)
        if not task.settings.mlm_weight:
            self.missing = "the head for tokens, but task.mlm_weight is 0"

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, T, V) of texts with [MASK] and whole images.

        labels: int64 (B, T), the masked tokens, -100 elsewhere; the loss is their mean
        cross-entropy in nats.
        """
        encoded = self.encode({name: tensors[name] for name in PAIR})
        logits_BTV = self.task.token_head(encoded.text_BTD)
        if labels is None:
            return {"logits": logits_BTV}
        is_masked_BT = labels != IGNORED
        loss = objectives.masked_tokens(
            logits_BTV[is_masked_BT], labels[is_masked_BT], is_masked_BT.sum().clamp(min=1)
        )
        # transformers expects only the tokens' loss and the balance loss of the weighted sum
        return {"loss": loss + self.task.output({}, encoded.routers).loss, "logits": logits_BTV}
