"""Are two items, each an image with a text, the same? The encoder reads each with the same weights, a head compares the two
[CLS] states (MLIM).

Training may leave out the images or the texts of both items (modality dropout), so that neither is leant on alone; evaluation
shows both, and tells how each does alone.

Letters: B batch, R rows of one kind, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, PairConfig
from eve_vl.data.batch import normalize
from eve_vl.data.kinds.pairs import ItemBatch, ItemRows
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import SiameseHead
from eve_vl.tasks.task import FIELDS, Classifier, Routers, Sizes


class ItemPairs(Classifier[PairConfig]):
    """The task: encoder and the head that compares."""

    section = PairConfig
    dataset = ItemRows
    class_names = ("not the same", "the same")
    reads = ("left", "right", "ids", "is_padding", "right_ids", "right_is_padding")

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.find_unused_parameters |= self.settings.modality_dropout  # a batch may show no images, or no texts
        self.compare_head = SiameseHead(config.model.embed_dim)
        initialize(self, config.model)

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = the same, and the routers' statistics of each pass."""
        (left_BD, right_BD), routers = self.states(tensors, "image_text")
        return self.compare_head(left_BD, right_BD), routers

    def states(self, tensors: Sequence[Any], shown: str) -> tuple[Tensor, Routers]:
        """Return the [CLS] states of both items, (2, B, D), and the routers' statistics of each pass. tensors: what `reads`
        names. shown: pairs of images and texts, images alone or texts alone."""
        left_BCHW, right_BCHW, *texts = tensors
        states, routers = [], []
        for images_BCHW, ids_BT, is_padding_BT in ((left_BCHW, *texts[:2]), (right_BCHW, *texts[2:])):
            image = None if shown == "text" else self.encoder.image(normalize(images_BCHW))
            text = None if shown == "image" else self.encoder.text(ids_BT, is_padding_BT)
            cls_BD, of_pass = self.encoder.cls(image, text)
            states.append(cls_BD)
            routers += of_pass
        return torch.stack(states), routers

    def predict(self, batch: ItemBatch) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of a batch's pairs as they are shown, and the routers' statistics of each pass."""
        tensors = [getattr(batch, FIELDS[name]) for name in self.reads]
        states, order, routers = [], [], []
        for kind in dict.fromkeys(batch.shown):
            rows = [row for row, shown in enumerate(batch.shown) if shown == kind]
            row_R = torch.tensor(rows, device=batch.ids_BT.device)
            states_2RD, of_passes = self.states(
                [each if each is None else each.index_select(0, row_R) for each in tensors], kind
            )
            states.append(states_2RD)
            order.append(row_R)
            routers += of_passes
        left_BD, right_BD = torch.cat(states, dim=1)[:, torch.cat(order).argsort()]
        return self.compare_head(left_BD, right_BD), routers

    def targets(self, batch: ItemBatch) -> Tensor:
        """Return the class of each pair, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)
