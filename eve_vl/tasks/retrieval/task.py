"""Image–text retrieval."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.train.step import StepOutput


class Retrieval(ContrastTask[RetrievalConfig]):
    """Encoder, feature and matching heads."""

    section = RetrievalConfig
    dataset = CaptionedImages
    is_validated = True
    """Whether validation chose its weights: not if a pre-trained run serves as retrieval."""

    def init_weights_from(
        self, tensors: Mapping[str, Tensor], labels: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return the weights of another run that this one can start from.

        Ranking scores start as its match logit.
        """
        weights = super().init_weights_from(tensors, labels)
        if self.contrast.num_ranked:
            for name in ("contrast.match_head.weight", "contrast.match_head.bias"):
                if name in weights:
                    weights[name] = weights[name][-1:]
        return weights

    def forward(self, batch: CaptionBatch) -> StepOutput:
        """Return the weighted sum of the losses.

        Weights: task.…_weight, the model's balance weight.
        """
        contrast = self.contrast(self.encoder, batch)
        return self.output(contrast.losses, contrast.routers, **contrast.terms)
