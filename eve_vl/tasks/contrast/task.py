"""The base of tasks with comparable features and a matching head.

Letters: B batch, I images, N texts, C pairs of images and texts, K kinds of keys, D width, d width
of features, X contrasts.
"""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.data.batches import normalize
from eve_vl.model.initialization import TEMPERATURE
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.tasks.contrast import pair_scores
from eve_vl.tasks.contrast.contrast import Contrast
from eve_vl.tasks.contrast.grad_cache import add_contrast_of_step
from eve_vl.tasks.contrast.keys import shares_key
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.routing import Routers
from eve_vl.tasks.task import Task

Settings = TypeVar("Settings", bound=RetrievalConfig | ContrastMatchConfig)


class ContrastTask(Task[Settings]):
    """A task with these heads: features that compare, and the probability of a match."""

    contrast: Contrast
    is_comparable = True

    def build(self) -> None:
        """Build the heads of contrast and matching."""
        self.contrast = Contrast(self.encoder, self.settings)
        self.is_comparable = self.contrast.num_contrasts > 0
        super().build()

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Compute contrast over all micro-batches of a step."""
        micro_batches = super().before_step(micro_batches)
        if self.is_comparable and len(micro_batches) > 1:
            return add_contrast_of_step(self.contrast, self.encoder, micro_batches)
        return micro_batches

    def after_step(self, progress: float) -> None:
        """Bound the temperatures, and remember the features of a step.

        progress: share of the steps done.
        """
        self.contrast.after_step(progress)

    @torch.no_grad()
    def reset_temperatures(self, batch: Any) -> str:
        """Reset temperatures of another run that are too low for a batch; return a note.

        That is where the contrastive loss is above that of a uniform guess (LOG.md, 2026-11-30).
        Empty without a reset.
        """
        if not self.is_comparable:
            return ""
        features = self.contrast.unimodal(self.encoder, batch)
        keys_BK = self.contrast.keys(batch)
        uniform = math.log(len(keys_BK))
        target_BB = objectives.even_targets(shares_key(keys_BK, keys_BK))
        notes = []
        for number, head in enumerate(self.contrast.heads):
            image_Bd = features.image_BXd[:, number]
            text_Bd = features.text_BXd[:, number]
            loss = objectives.contrastive(
                image_Bd, text_Bd, image_Bd, text_Bd, target_BB, head.temperature
            ).item()
            if loss > uniform and head.temperature < TEMPERATURE:
                notes.append(
                    f"temperature reset from {head.temperature.item():.3g} to {TEMPERATURE}: "
                    f"contrastive loss {loss:.2f} on training rows, "
                    f"of a uniform guess {uniform:.2f}"
                )
                head.temperature.fill_(TEMPERATURE)
        return "; ".join(notes)

    @property
    def memory(self) -> dict[str, Tensor]:
        """The remembered features, which a checkpoint keeps."""
        return self.contrast.memory.rows

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        if not self.is_comparable:
            return super().feature_dim
        return self.contrast.features.image.out_features

    def _state(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the projected state of an image or a text, float32 (B, d).

        Without contrast it is the state.
        """
        final_norm = getattr(self.settings, "final_norm", True)
        state_BD, _ = self.contrast.pooled(self.encoder, image, text, final_norm=final_norm)
        if not self.is_comparable:
            return state_BD
        head = self.contrast.features
        projection = head.image if text is None else head.text
        return projection(state_BD).float()

    def match(
        self,
        images_BCHW: Tensor,
        ids_BT: Tensor,
        is_padding_BT: Tensor | None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Routers]:
        """Return the match logits (B, 2) of pairs, class 1 = match, and routers.

        pairs: which image and which text each pair is made of, two times int64 (B,); None: row by
        row.
        """
        image = self.encoder.image(normalize(images_BCHW))
        text = self.encoder.text(ids_BT, is_padding_BT)
        if pairs is not None:
            image_rows, text_rows = pairs
            image = index_tokens(image, image_rows)
            text = index_tokens(text, text_rows)
        return self.contrast.match(self.encoder, image, text)

    def match_each(self, image: Tokens, ids_NT: Tensor, is_padding_NT: Tensor | None) -> Tensor:
        """Return the match logits of each embedded image with each text, (I, N, 2)."""
        num_images = len(image.x_BND)
        num_texts = len(ids_NT)
        text = self.encoder.text(ids_NT, is_padding_NT)
        pair_C = torch.arange(num_images * num_texts, device=ids_NT.device)
        logits = []
        for pairs in pair_C.split(pair_scores.PAIRS_AT_ONCE):
            images = index_tokens(image, pairs // num_texts)
            texts = index_tokens(text, pairs % num_texts)
            logits.append(self.contrast.match(self.encoder, images, texts)[0])
        return torch.cat(logits).view(num_images, num_texts, 2)

    @property
    def orders_by_sum(self) -> bool:
        """Whether re-ranking orders by the sum of match and contrast (task.rerank_by)."""
        return getattr(self.settings, "rerank_by", "match") == "sum"

    def pair_scores(
        self,
        images_BCHW: Tensor,
        ids_BT: Tensor,
        is_padding_BT: Tensor | None,
        similarity_B: Tensor,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the scores that re-ranking orders pairs by, float32 (B,).

        See task.rerank_by. similarity_B: products of their features. pairs: as in `match`.
        """
        logits_B2, _ = self.match(images_BCHW, ids_BT, is_padding_BT, pairs)
        no_B, yes_B = logits_B2.float().unbind(1)
        if self.orders_by_sum:
            return yes_B - no_B + similarity_B / self.contrast.features.temperature
        return yes_B

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of images, of texts and, if matched, of pairs."""
        routers: Routers = []
        if self.is_comparable:
            routers += self.contrast.unimodal(self.encoder, batch).routers
        if self.contrast.match_head is not None:
            routers += self.match(batch.images_BCHW, batch.ids_BT, batch.is_padding_BT)[1]
        return routers


AnyContrastTask = ContrastTask[Any]
