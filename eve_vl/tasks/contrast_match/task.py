"""Pre-training by contrast, matching and masked signals."""

import dataclasses
from typing import Any

import torch

from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.task import MaskedSignalTask
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.routing import Routers
from eve_vl.tasks.task import Task
from eve_vl.train.step import StepOutput


class ContrastMatch(MaskedSignalTask[ContrastMatchConfig], ContrastTask[ContrastMatchConfig]):
    """Masked signals, features that compare, and a matching head."""

    section = ContrastMatchConfig

    def forward(self, batch: PairBatch) -> StepOutput:
        """Return the weighted sum of the losses.

        Weights: task.…_weight, the model's balance weight.
        """
        losses = self.masked_losses(batch)
        losses.add(self.contrast(self.encoder, batch))
        return self.output(losses.losses, losses.routers, **losses.terms)

    def as_task(self, name: str) -> Task[Any] | None:
        """Return these weights as retrieval without any fine-tuning."""
        searches = self.is_comparable or self.contrast.match_head is not None
        if name != Retrieval.section.name or not searches:
            return None
        settings = RetrievalConfig(
            itc_weight=self.settings.itc_weight,
            itm_weight=self.settings.itm_weight,
            projection_dim=self.settings.projection_dim,
            rerank=0,  # no validation has shown that re-ranking helps; --rerank sets it
        )
        with torch.device("meta"):
            task = Retrieval(dataclasses.replace(self.config, task=settings), self.sizes)
        task.encoder = self.encoder
        task.contrast = self.contrast
        task.is_validated = False
        return task.eval()

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of all passes of a step.

        Matching is without wrong pairs.
        """
        routers: Routers = []
        if self.settings.mim_weight or self.settings.mlm_weight:
            routers += MaskedSignalTask.routers(self, batch)
        return routers + ContrastTask.routers(self, batch)
