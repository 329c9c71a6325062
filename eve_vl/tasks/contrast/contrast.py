"""Image–text contrast (ITC) and matching (ITM): heads and losses.

Letters: B pairs of a batch, C pairs of all processes, A those and remembered ones, K kept patches
or kinds of keys, N all tokens, D width, d width of features, X contrasts, R singular values.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.data.batches import Batch
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.data.masked_batches import MaskedImages, PairBatch
from eve_vl.model.backbone import Backbone
from eve_vl.model.heads import ContrastHead, ITMHead
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.objectives import LazyRows
from eve_vl.tasks.contrast import negatives
from eve_vl.tasks.contrast.cached_contrast import CachedContrast, replayed
from eve_vl.tasks.contrast.global_negatives import (
    HardNegatives,
    add_negatives,
    gather_hard_negatives,
)
from eve_vl.tasks.contrast.keys import global_row_index, label_states, shares_key
from eve_vl.tasks.contrast.memory import CrossBatchMemory
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.routing import Routers
from eve_vl.tasks.task import Losses
from eve_vl.train.processes import gather_rows
from eve_vl.utils.frozen import Frozen

MIN_TEMPERATURE = 0.001
MAX_TEMPERATURE = 0.5


class UnimodalFeatures(Frozen):
    """Images and texts of a batch, each encoded without the other."""

    image: Tokens
    """The embedded images."""
    text: Tokens
    """The embedded texts."""
    image_BXd: Tensor
    text_BXd: Tensor
    routers: Routers


class Contrast(nn.Module):
    """The heads of contrast and matching with their losses; either may be missing."""

    features: ContrastHead
    """The head of the first contrast, used in search; missing without contrast."""

    def __init__(self, encoder: Backbone, task: RetrievalConfig | ContrastMatchConfig):
        super().__init__()
        self._read_settings(encoder, task)
        model = encoder.config
        is_siglip = getattr(model, "towers", "") == "siglip"
        heads = []
        for _ in range(self.num_contrasts):
            width = task.projection_dim or model.embed_dim
            heads.append(
                ContrastHead(model.embed_dim, model.text_width, width, is_siglip=is_siglip)
            )
        if heads:
            self.features = heads[0]
        self.more_features = nn.ModuleList(heads[1:])
        self.memory = CrossBatchMemory(task.memory_batches)
        self.match_head = None
        if task.itm_weight > 0:
            ranks = self.num_ranked > 0
            self.match_head = ITMHead(encoder.pair_dim, standardize=self.standardize, ranks=ranks)

    def _read_settings(
        self, encoder: Backbone, task: RetrievalConfig | ContrastMatchConfig
    ) -> None:
        """Read the options of a section; each of the two lacks some."""
        if isinstance(task, RetrievalConfig):
            self.num_contrasts = 1
            self.takes_mean = task.pooling == "mean"
            self.dedup_captions = task.dedup_captions
            self.num_ranked = task.ranking_candidates if task.itm_loss == "ranking" else 0
            self.standardize = task.itm_batchnorm
            self.keeps_patches = False
            self.itc_targets = "image"
            self.itm_negatives = "local"
            self.svd_form = "off"
        else:
            self.num_contrasts = encoder.num_contrasts
            self.takes_mean = False
            self.dedup_captions = task.itc_targets == "same_text"
            self.num_ranked = 0
            self.standardize = False
            self.keeps_patches = task.itc_masked_image
            self.itc_targets = task.itc_targets
            self.itm_negatives = task.itm_negatives
            self.svd_form = task.svd_form
        if not task.itc_weight:
            self.num_contrasts = 0

    @property
    def heads(self) -> list[Any]:
        """The heads of all contrasts, first to last."""
        return [self.features, *self.more_features] if self.num_contrasts else []

    @property
    def temperatures(self) -> list[nn.Parameter]:
        """The temperatures of all contrasts, first to last."""
        return [head.temperature for head in self.heads]

    def forward(self, encoder: Backbone, batch: CaptionBatch) -> Losses:
        """Return the losses of contrast and matching, scalars for the log, and routers."""
        if not self.num_contrasts:
            if self.match_head is None:
                return Losses()
            return self.matching_losses(encoder, batch, None, None)
        cached: CachedContrast | None = batch.contrast
        if cached is None:
            features = self.unimodal(encoder, batch)
            image_BXd = features.image_BXd
            text_BXd = features.text_BXd
            losses = self.contrast_losses(image_BXd, text_BXd, [batch], self.temperatures)
            temperature = self.features.temperature
            partners = self.fetch_negatives(encoder, [batch], image_BXd, text_BXd, temperature)[0]
        else:
            with replayed(cached.rng_state):
                features = self.unimodal(encoder, batch)
            values = (features.image_BXd, features.text_BXd, *self.temperatures)
            losses = Losses(cached.losses_of(*values), dict(cached.terms))
            partners = cached.hard_negatives
        losses.routers = features.routers
        if self.match_head is not None:
            losses.add(self.matching_losses(encoder, batch, features, partners))
        return losses

    # contrast

    def unimodal(self, encoder: Backbone, batch: Batch) -> UnimodalFeatures:
        """Return the features of images and texts, each encoded without the other."""
        if self.sees_part_of_image and isinstance(batch, MaskedImages):
            image = encoder.image(batch.pixels(), batch.keep_BK)
        else:
            image = encoder.image(batch.pixels())
        text = encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
        image_states, image_routers = self.states(encoder, image, None)
        text_states, text_routers = self.states(encoder, None, text)
        images = []
        for head, state_BD in zip(self.heads, image_states, strict=True):
            images.append(head.image_features(state_BD))
        texts = []
        for head, state_BD in zip(self.heads, text_states, strict=True):
            texts.append(head.text_features(state_BD))
        return UnimodalFeatures(
            image=image,
            text=text,
            image_BXd=torch.stack(images, dim=1),
            text_BXd=torch.stack(texts, dim=1),
            routers=[*image_routers, *text_routers],
        )

    @property
    def sees_part_of_image(self) -> bool:
        """Whether contrast sees only the kept patches (FLIP): in training with itc_masked_image."""
        return self.training and self.keeps_patches

    def states(
        self, encoder: Backbone, image: Tokens | None, text: Tokens | None
    ) -> tuple[list[Tensor], Routers]:
        """Return the states (B, D) of an image or a text, one per contrast, and routers."""
        if self.num_contrasts > 1:
            return encoder.for_contrast(image, text)
        state_BD, routers = self.pooled(encoder, image, text)
        return [state_BD], routers

    def pooled(
        self,
        encoder: Backbone,
        image: Tokens | None,
        text: Tokens | None,
        *,
        final_norm: bool = True,
    ) -> tuple[Tensor, Routers]:
        """Return the state of the first contrast, and the routers' statistics."""
        if not self.takes_mean:
            return encoder.cls(image, text, final_norm=final_norm)
        encoded = encoder.encode(image, text)
        return encoded.mean_BD, encoded.routers

    def contrast_losses(
        self,
        image_BXd: Tensor,
        text_BXd: Tensor,
        batches: Sequence[CaptionBatch],
        temperatures: Sequence[Tensor],
    ) -> Losses:
        """Return the losses among the pairs of all processes, and scalars for the log.

        `itc` is the mean over all contrasts, the others are of the first.
        """
        image_CXd = gather_rows(image_BXd)
        text_CXd = gather_rows(text_BXd)
        target_BC = self.targets(batches)
        keys_BK = torch.cat([self.keys(batch) for batch in batches])
        candidates = self.memory.extend(image_CXd, text_CXd, target_BC, keys_BK)
        losses_X = []
        for temperature, image_Bd, text_Bd, image_Ad, text_Ad in zip(
            temperatures,
            image_BXd.unbind(1),
            text_BXd.unbind(1),
            candidates.image_AXd.unbind(1),
            candidates.text_AXd.unbind(1),
            strict=True,
        ):
            loss = objectives.contrastive(
                image_Bd,
                text_Bd,
                image_Ad,
                text_Ad,
                candidates.target_BA,
                temperature,
                candidates.is_ignored_BA,
            )
            losses_X.append(loss)
        losses = Losses({"itc": torch.stack(losses_X).mean()})
        if self.svd_form != "off":
            losses.add(self.singular_value_loss(image_CXd[:, 0], text_CXd[:, 0]))
        return losses

    def singular_value_loss(self, image_Cd: Tensor, text_Cd: Tensor) -> Losses:
        """Return the term of the largest singular value of the similarities (`task.svd_form`)."""
        value_R = objectives.singular_values(image_Cd, text_Cd)
        sigma1 = value_R[0] / len(image_Cd)
        loss = sigma1 if self.svd_form == "sigma1" else value_R[0] / value_R.sum()
        effective_rank = objectives.effective_rank(value_R.detach())
        return Losses({"svd": loss}, {"sigma1": sigma1.detach(), "effective_rank": effective_rank})

    def keys(self, batch: CaptionBatch) -> Tensor:
        """Return the image of each pair and, if merged, its caption, int64 (B, 1 or 2).

        Pairs that share one of them are no negatives of each other.
        """
        if self.dedup_captions:
            return torch.stack([batch.image_id_B, batch.caption_B], dim=1)
        return batch.image_id_B[:, None]

    def targets(self, batches: Sequence[CaptionBatch]) -> LazyRows:
        """Return the contrast targets of pairs among the pairs of all processes, (B, C)."""
        if self.itc_targets == "semantic":
            return semantic_targets(batches)
        keys_BK = torch.cat([self.keys(batch) for batch in batches])
        if self.itc_targets == "diagonal":
            keys_BK = global_row_index(keys_BK)[:, None]
        keys_CK = gather_rows(keys_BK)
        return LazyRows(lambda rows: objectives.even_targets(shares_key(keys_BK[rows], keys_CK)))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Bound the temperatures, and remember the features of a step.

        progress: share of the steps done. Within `forward` the bounds would not reach a parameter
        in shards.
        """
        for temperature in self.temperatures:
            temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        self.memory.add_step(progress)

    # matching

    def matching_losses(
        self,
        encoder: Backbone,
        batch: CaptionBatch,
        features: UnimodalFeatures | None,
        partners: HardNegatives | None,
    ) -> Losses:
        """Return the matching loss, the share of right pairs, and routers.

        features: of contrast, None without it. partners: negatives of the whole step; None: those
        of the batch are sampled.
        """
        if partners is not None:
            image, text, is_match = add_negatives(encoder, batch, partners)
        else:
            image, text, is_match = self.pairs_of_batch(encoder, batch, features)
        B = len(batch.ids_BT)
        logits, routers = self.match(encoder, image, text, num_passes=len(is_match) // B)
        if self.num_ranked:
            score_BN = logits[:, 1].view(-1, B).T
            loss = objectives.listwise_ranking(score_BN, is_match.view(-1, B).T)
            is_right = score_BN.argmax(1) == 0
        else:
            loss = objectives.matching(logits, is_match)
            is_right = logits.argmax(1) == is_match.long()
        return Losses({"itm": loss}, {"itm_acc": is_right.float().mean()}, routers)

    def pairs_of_batch(
        self, encoder: Backbone, batch: CaptionBatch, features: UnimodalFeatures | None
    ) -> tuple[Tokens, Tokens, Tensor]:
        """Return embedded images and texts of true and sampled pairs, and whether they match."""
        if features is None or self.sees_part_of_image:
            image = encoder.image(batch.pixels())
        else:
            image = features.image
        if features is None:
            text = encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
        else:
            text = features.text
        keys_BK = self.keys(batch)
        image_rows, text_rows = self.sample_pairs(keys_BK, features)
        # negatives do not match, unless a batch shows one image only
        is_match = (keys_BK[image_rows] == keys_BK[text_rows]).any(1)
        return index_tokens(image, image_rows), index_tokens(text, text_rows), is_match

    def sample_pairs(
        self, keys_BK: Tensor, features: UnimodalFeatures | None
    ) -> tuple[Tensor, Tensor]:
        """Return image rows and text rows of the pairs to match, int64."""
        if self.num_ranked:
            return negatives.random_texts(keys_BK, self.num_ranked)
        if features is None or self.itm_negatives == "random_half":
            return negatives.random_half(keys_BK)
        image_Bd = features.image_BXd[:, 0]
        text_Bd = features.text_BXd[:, 0]
        return negatives.hard(keys_BK, image_Bd, text_Bd, self.features.temperature)

    @torch.no_grad()
    def fetch_negatives(
        self,
        encoder: Backbone,
        batches: Sequence[CaptionBatch],
        image_BXd: Tensor,
        text_BXd: Tensor,
        temperature: Tensor,
    ) -> Sequence[HardNegatives | None]:
        """Return each micro-batch's negatives of the step; None if it samples its own."""
        if self.match_head is None or self.itm_negatives != "global":
            return [None] * len(batches)
        pairs = [batch for batch in batches if isinstance(batch, PairBatch)]
        keys_BK = torch.cat([self.keys(batch) for batch in batches])
        return gather_hard_negatives(
            pairs,
            image_BXd[:, 0],
            text_BXd[:, 0],
            keys_BK,
            temperature,
            encoder.sizes.text_length,
        )

    def match(
        self, encoder: Backbone, image: Tokens, text: Tokens, num_passes: int = 1
    ) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of pairs, class 1 = match, and routers.

        They are read off the text [CLS]. num_passes: equal parts of the batch that the published
        code takes one after the other.
        """
        assert self.match_head is not None
        cls_BD, routers = encoder.cls(image, text, num_passes=num_passes)
        return self.match_head(cls_BD), routers


def semantic_targets(batches: Sequence[CaptionBatch]) -> LazyRows:
    """Return targets by the agreement of labels (MedCLIP), (B, C)."""
    labels = []
    for batch in batches:
        assert isinstance(batch, PairBatch) and batch.label_BL is not None
        labels.append(batch.label_BL)
    label_BL = torch.cat(labels)
    state_BL, state_CL = label_states(label_BL, gather_rows(label_BL))
    return LazyRows(lambda rows: objectives.semantic_targets(state_BL[rows], state_CL))
