"""Pre-training by contrast (ITC) and matching (ITM) beside masked signals: what EVE is compared with (paper Tables 1 and 6).

Letters: B batch, D width.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from eve_vl.config import Config, ContrastMatchConfig, RetrievalConfig
from eve_vl.data.masking import PairBatch
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics.masked_signal import Sums
from eve_vl.model.encoder import initialize
from eve_vl.tasks.contrastive import Contrast, ContrastTask
from eve_vl.tasks.masked_signal import MaskedBatch, MaskedSignalTask
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.task import Routers, Sizes, Task
from eve_vl.train.trainer import StepOutput


class ContrastMatch(MaskedSignalTask[ContrastMatchConfig], ContrastTask[ContrastMatchConfig]):
    """Masked signals, features that compare, and a matching head."""

    section = ContrastMatchConfig
    against = (
        *MaskedSignalTask.against,
        Baseline("itc_acc", "comparison", 0.5, "chance"),
        Baseline("itm_acc", "pair", 0.5, "chance"),
    )

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.contrast = Contrast(self.encoder, self.settings)
        self.is_comparable = self.contrast.num_contrasts > 0
        initialize(self, config.model)

    def forward(self, batch: PairBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.…_weight, the model's balance weight)."""
        losses, terms, routers = self.masked_losses(batch)
        contrast_losses, contrast_terms, contrast_routers = self.contrast(self.encoder, batch)
        return self.output(losses | contrast_losses, [*routers, *contrast_routers], **terms, **contrast_terms)

    def add_to(self, sums: Sums, batch: MaskedBatch, names: Sequence[str]) -> None:
        """Evaluate one batch: masked signals, `itc_acc`, the share of images and texts that are more alike to their own
        partner than to a wrong one, and `itm_acc`, the share of true and of wrong pairs told apart; chance is 0.5 for both."""
        super().add_to(sums, batch, names)
        assert isinstance(batch, PairBatch) and batch.wrong is not None
        rows = torch.arange(len(batch.where))
        if self.is_comparable:
            image_Bd, text_Bd = self.image_features(batch.images_BCHW), self.text_features(batch.ids_BT, batch.is_padding_BT)
            wrong_image_Bd = self.image_features(batch.wrong.images_BCHW)
            wrong_text_Bd = self.text_features(batch.wrong.ids_BT, batch.wrong.is_padding_BT)
            own_B = (image_Bd * text_Bd).sum(1)
            for other_B in ((wrong_image_Bd * text_Bd).sum(1), (image_Bd * wrong_text_Bd).sum(1)):
                sums.add("itc_acc", names, rows, own_B > other_B)
        if self.contrast.match_head is not None:
            for pairs, is_match in ((batch, True), (batch.with_text_of(batch.wrong), False)):
                logits_B2, _ = self.match(pairs.images_BCHW, pairs.ids_BT, pairs.is_padding_BT)
                sums.add("itm_acc", names, rows, logits_B2.argmax(1) == int(is_match))

    def seen_as(self, name: str) -> Task[Any] | None:
        """Return these weights as retrieval that nobody has trained."""
        if name != Retrieval.section.name or not (self.is_comparable or self.contrast.match_head is not None):
            return None
        weights = {weight: getattr(self.settings, weight) for weight in ("itc_weight", "itm_weight", "projection_dim")}
        settings = RetrievalConfig(**weights, rerank=0)  # no validation has shown that re-ranking helps; --rerank tries it
        with torch.device("meta"):
            task = Retrieval(dataclasses.replace(self.config, task=settings), self.sizes)
        task.encoder, task.contrast, task.main_metric = self.encoder, self.contrast, None  # it has chosen no weights
        return task.eval()

    def routers(self, batch: Any) -> Routers:
        """Return what the routers do in all passes of a step, those of matching without their wrong pairs."""
        masks = self.settings.mim_weight or self.settings.mlm_weight
        return (MaskedSignalTask.routers(self, batch) if masks else []) + ContrastTask.routers(self, batch)

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of each part of a step."""
        return MaskedSignalTask.flops(self) | ContrastTask.flops(self)
