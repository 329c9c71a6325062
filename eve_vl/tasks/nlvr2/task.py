"""The truth of statements about two images (NLVR2).

The encoder reads each of two images with the statement; a head reads both results.

Letters: B statements of a batch, X statements with each of their images, H height, W width, T text
tokens, N all tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.data.batches import normalize
from eve_vl.data.kinds.statements import StatementBatch, StatementRows
from eve_vl.model.heads import MLPHead, PairedAttentionHead, SiameseHead
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.tasks.classifier.task import Classifier
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.routing import Routers

# width of an attention head of the paired head, if the backbone has no number of heads
PAIRED_HEAD_WIDTH = 64


class NLVR2(Classifier[NLVR2Config]):
    """Encoder and one of three heads."""

    section = NLVR2Config
    dataset = StatementRows
    class_names = ("False", "True")
    reads = ("left", "right", "ids", "is_padding")

    def build(self) -> None:
        """Build the head."""
        D = self.encoder.pair_dim
        width = self.config.model.embed_dim
        match self.settings.head:
            case "concat":
                self.concat_head = MLPHead(2 * D, 2 * D, 2)
            case "compare":
                self.compare_head = SiameseHead(D)
            case "paired":
                default = max(width // PAIRED_HEAD_WIDTH, 1)
                num_heads = getattr(self.config.model, "num_heads", default)
                self.paired_head = PairedAttentionHead(width, num_heads)
        if self.settings.second_image_type_embedding:
            # type embedding of the right image minus that of the left
            self.right_bias = nn.Parameter(torch.empty(width))

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = true, and the routers' statistics of each pass."""
        left_BCHW, right_BCHW, ids_BT, is_padding_BT = tensors
        image = self._images(left_BCHW, right_BCHW)
        text = self._statements_twice(ids_BT, is_padding_BT, num_real)
        if self.settings.head == "paired":
            encoded = self.encoder.encode(image, text, num_passes=2)
            left_BND, right_BND = encoded.x_BND.unflatten(0, (2, -1))
            is_padding_BN = encoded.is_padding_BN
            if is_padding_BN is not None:
                is_padding_BN = is_padding_BN[: len(ids_BT)]
            return self.paired_head(left_BND, right_BND, is_padding_BN), encoded.routers
        cls_XD, routers = self.encoder.cls(image, text, num_passes=2)
        left_BD, right_BD = cls_XD.unflatten(0, (2, -1))
        if self.settings.head == "compare":
            return self.compare_head(left_BD, right_BD), routers
        return self.concat_head(torch.cat([left_BD, right_BD], dim=1)), routers

    def _images(self, left_BCHW: Tensor, right_BCHW: Tensor) -> Tokens:
        """Embed all left images, then all right ones."""
        image = self.encoder.image(torch.cat([normalize(left_BCHW), normalize(right_BCHW)]))
        if self.settings.second_image_type_embedding:
            B = len(left_BCHW)
            image.x_BND = torch.cat([image.x_BND[:B], image.x_BND[B:] + self.right_bias])
        return image

    def _statements_twice(
        self, ids_BT: Tensor, is_padding_BT: Tensor, num_real: int | None
    ) -> Tokens:
        """Embed all statements, for the left images, and repeat them for the right ones."""
        row_X = torch.arange(len(ids_BT), device=ids_BT.device).repeat(2)
        text = index_tokens(self.encoder.text(ids_BT, is_padding_BT), row_X)
        text.num_real = None if num_real is None else 2 * num_real
        return text

    def targets(self, batch: StatementBatch) -> Tensor:
        """Return the class of each row, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)
