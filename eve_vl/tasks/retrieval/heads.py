"""Features and the matching head of retrieval for other programs.

Letters: B pairs, I images, C texts, d width of features.
"""

from collections.abc import Mapping

from torch import Tensor

from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.tasks.contrast.heads import ContrastHeads
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import PAIR
from eve_vl.utils.errors import UserError


class RetrievalHeads(ContrastHeads):
    """Features and matching head of retrieval."""

    section = RetrievalConfig

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `image_embeds` (I, d) and `text_embeds` (C, d) and, given both, scores.

        With contrast the scores are `logits_per_image` (I, C), similarity over the temperature, and
        `logits_per_text`; with a matching head and I = C also `match_logits` (B, 2), row by row.

        labels: int64 (B,) of true pairs in order, equal where two pairs show the same image, which
        makes them no negatives of each other. In training mode with labels, only the loss is
        computed.
        """
        task = self.task
        images, ids, is_padding = (tensors.get(name) for name in PAIR)
        if images is None and ids is None:
            raise UserError("give pixel_values, input_ids or both")
        outputs: dict[str, Tensor] = {}
        if labels is not None:
            outputs["loss"] = self._loss(images, ids, is_padding, labels)
            if task.training:
                return outputs
        if images is not None:
            outputs["image_embeds"] = task.image_features(images)
        if ids is not None:
            outputs["text_embeds"] = task.text_features(ids, is_padding)
        if images is None or ids is None:
            return outputs
        if task.is_comparable:
            similarity_IC = task.contrast.features.logits(
                outputs["image_embeds"], outputs["text_embeds"]
            )
            outputs["logits_per_image"] = similarity_IC
            outputs["logits_per_text"] = similarity_IC.T
        if task.contrast.match_head is not None and len(images) == len(ids):
            outputs["match_logits"] = task.match(images, ids, is_padding)[0]
        return outputs

    def _loss(
        self, images: Tensor | None, ids: Tensor | None, is_padding: Tensor | None, labels: Tensor
    ) -> Tensor:
        """Return the loss of true pairs. Raises UserError if they are no pairs."""
        problem = (
            "labels need as many pixel_values and input_ids: an image and its text in each row"
        )
        if images is None or ids is None or is_padding is None:
            raise UserError(problem)
        if not len(images) == len(ids) == len(labels):
            raise UserError(problem)
        batch = CaptionBatch(
            where=(),
            images_BCHW=images,
            ids_BT=ids,
            is_padding_BT=is_padding,
            image_id_B=labels,
            caption_B=labels,
        )
        return self.task(batch).loss
