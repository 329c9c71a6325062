"""Comparison of two items (MLIM): both go through one encoder, a head compares their [CLS] states.

Letters: B batch, C channels, R rows of one kind, D width, H height, W width of the image, T text
tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eve_vl.data.batches import normalize
from eve_vl.model.heads import SiameseHead
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pair.item_rows import ItemBatch, ItemRows
from eve_vl.tasks.classifier.task import FIELDS, Classifier
from eve_vl.tasks.task import Routers

ITEM_FIELDS = FIELDS | {"right_ids": "right_ids_BT", "right_is_padding": "right_is_padding_BT"}
"""Fields of an `ItemBatch` by the argument of `ItemPairs.logits`."""


class ItemPairs(Classifier[PairConfig]):
    """Comparison of two items: encoder and siamese head."""

    section = PairConfig
    dataset = ItemRows
    class_names = ("not the same", "the same")
    reads = ("left", "right", "ids", "is_padding", "right_ids", "right_is_padding")

    def build(self) -> None:
        """Build the head that compares two items."""
        self.passes_vary = self.settings.modality_dropout  # a batch may show no images, or no texts
        self.find_unused_parameters |= self.passes_vary
        self.compare_head = SiameseHead(self.config.model.embed_dim)

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = the same, and router statistics per pass."""
        (left_BD, right_BD), routers = self.states(tensors, "image_text")
        return self.compare_head(left_BD, right_BD), routers

    def states(self, tensors: Sequence[Any], shown: str) -> tuple[Tensor, Routers]:
        """Return the [CLS] states of both items, (2, B, D), and router statistics.

        tensors: those that `reads` names. shown: image_text, image or text.
        """
        left_BCHW, right_BCHW, ids_BT, is_padding_BT, right_ids_BT, right_is_padding_BT = tensors
        left_BD, left_routers = self._item_state(left_BCHW, ids_BT, is_padding_BT, shown)
        right_BD, right_routers = self._item_state(
            right_BCHW, right_ids_BT, right_is_padding_BT, shown
        )
        return torch.stack([left_BD, right_BD]), [*left_routers, *right_routers]

    def _item_state(
        self, images_BCHW: Tensor, ids_BT: Tensor, is_padding_BT: Tensor | None, shown: str
    ) -> tuple[Tensor, Routers]:
        """Return the [CLS] states (B, D) of one item each, and router statistics."""
        image = None
        text = None
        if shown != "text":
            image = self.encoder.image(normalize(images_BCHW))
        if shown != "image":
            text = self.encoder.text(ids_BT, is_padding_BT)
        return self.encoder.cls(image, text)

    def predict(self, batch: ItemBatch) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of a batch's pairs as shown, and router statistics."""
        tensors = [getattr(batch, ITEM_FIELDS[name]) for name in self.reads]
        states = []
        row_parts = []
        routers = []
        for kind in dict.fromkeys(batch.shown):
            rows = [row for row, shown in enumerate(batch.shown) if shown == kind]
            row_R = torch.tensor(rows, device=batch.ids_BT.device)
            states_2RD, part_routers = self.states(_rows_of(tensors, row_R), kind)
            states.append(states_2RD)
            row_parts.append(row_R)
            routers += part_routers
        in_order_B = torch.cat(row_parts).argsort()
        left_BD, right_BD = torch.cat(states, dim=1)[:, in_order_B]
        return self.compare_head(left_BD, right_BD), routers

    def targets(self, batch: ItemBatch) -> Tensor:
        """Return the class of each pair, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)


def _rows_of(tensors: Sequence[Tensor | None], row_R: Tensor) -> list[Tensor | None]:
    """Return some rows of each tensor; missing tensors stay so."""
    return [None if tensor is None else tensor.index_select(0, row_R) for tensor in tensors]
