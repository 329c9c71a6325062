"""Image–text retrieval, trained by contrast and matching.

A search compares features and re-ranks the best by the matching head; without contrast the matching head scores every pair.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages
from eve_vl.model.encoder import initialize
from eve_vl.tasks.contrastive import Contrast, ContrastTask
from eve_vl.tasks.task import Sizes
from eve_vl.train.trainer import StepOutput


class Retrieval(ContrastTask[RetrievalConfig]):
    """Encoder, feature and matching heads."""

    section = RetrievalConfig
    dataset = CaptionedImages
    is_validated = True
    """Whether validation chose its weights: not if a pre-trained run serves as retrieval."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.contrast = Contrast(self.encoder, self.settings)
        self.is_comparable = self.contrast.num_contrasts > 0
        initialize(self, config.model)

    def init_weights_from(self, tensors: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of another run that this one can start from; ranking scores start as its match logit."""
        kept = super().init_weights_from(tensors, labels)
        for name in ("contrast.match_head.weight", "contrast.match_head.bias") if self.contrast.num_ranked else ():
            if name in kept:
                kept[name] = kept[name][-1:]
        return kept

    def forward(self, batch: CaptionBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.itc_weight, task.itm_weight, the model's balance weight)."""
        losses, terms, routers = self.contrast(self.encoder, batch)
        return self.output(losses, routers, **terms)
