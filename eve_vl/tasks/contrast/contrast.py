"""Image–text contrast (ITC) and matching (ITM): heads and losses.

Letters: B batch, K kept patches or kinds of keys, N all tokens or texts to match an image with, D width, d width of features, X
contrasts, C candidates over all processes, A those and remembered ones, R singular values.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
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
from eve_vl.tasks.contrast.negatives import CrossBatchMemory, shares_key
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Routers
from eve_vl.train.processes import gather_rows
from eve_vl.train.random_state import get_rng_state, set_rng_state
from eve_vl.train.running_averages import running_averages_restored
from eve_vl.utils.frozen import Frozen

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


@contextlib.contextmanager
def replayed(state: dict[str, Tensor]) -> Iterator[None]:
    """Replay random numbers from a state, and restore the present state afterwards."""
    now = get_rng_state()
    set_rng_state(state)
    try:
        yield
    finally:
        set_rng_state(now)


def label_states(label_BL: Tensor, label_CL: Tensor) -> tuple[Tensor, Tensor]:
    """Return label vectors over all labels of the second rows.

    1 is present, -1 absent, 0 unknown; see `PairBatch.label_BL`. The first rows are among the second.
    """
    known, column_CL = label_CL.abs().unique(return_inverse=True)
    column_BL = torch.searchsorted(known, label_BL.abs())
    zeros = [
        torch.zeros(len(each), len(known), device=known.device) for each in (label_BL, label_CL)
    ]
    state_BL = zeros[0].scatter_(1, column_BL, label_BL.sign().float())
    return state_BL, zeros[1].scatter_(1, column_CL, label_CL.sign().float())


class CachedContrast(Frozen):
    """Losses of contrast over all micro-batches of a step, and their gradients."""

    rng_state: dict[str, Tensor]
    """The random state before the features were computed."""
    losses: dict[str, Tensor]
    gradients: dict[str, tuple[Tensor, ...]]
    """By loss: its gradients by the features of images and of texts, (B, X, d), and by the temperatures."""
    terms: dict[str, Tensor]
    hard_negatives: negatives.HardNegatives | None

    def losses_of(self, *values: Tensor) -> dict[str, Tensor]:
        """Return the losses with gradients by the values: features and temperatures."""
        losses = {}
        for name, loss in self.losses.items():
            products = (
                (value * by).sum() for value, by in zip(values, self.gradients[name], strict=True)
            )
            product = sum(products, start=torch.zeros(()))
            losses[name] = loss + product - product.detach()
        return losses


class Contrast(nn.Module):
    """The heads of contrast and matching with their losses; either may be missing."""

    features: ContrastHead
    """The head of the first contrast, used in search; missing without contrast."""

    def __init__(self, encoder: Backbone, task: RetrievalConfig | ContrastMatchConfig):
        super().__init__()
        model, retrieval = encoder.config, task if isinstance(task, RetrievalConfig) else None
        drawn = "local" if task.itc_weight else "random_half"
        self.settings = (
            task
            if isinstance(task, ContrastMatchConfig)
            else ContrastMatchConfig(itm_negatives=drawn)
        )
        self.num_contrasts = 0 if not task.itc_weight else 1 if retrieval else encoder.num_contrasts
        dims = model.embed_dim, model.text_width, task.projection_dim or model.embed_dim
        is_siglip = getattr(model, "towers", "") == "siglip"
        heads = [ContrastHead(*dims, is_siglip=is_siglip) for _ in range(self.num_contrasts)]
        if heads:
            self.features = heads[0]
        self.more_features = nn.ModuleList(heads[1:])
        self.takes_mean = retrieval is not None and retrieval.pooling == "mean"
        self.dedup_captions = (
            retrieval.dedup_captions if retrieval else self.settings.itc_targets == "same_text"
        )
        self.memory = CrossBatchMemory(task.memory_batches)
        self.num_ranked = (
            retrieval.ranking_candidates if retrieval and retrieval.itm_loss == "ranking" else 0
        )
        form = {
            "standardize": retrieval is not None and retrieval.itm_batchnorm,
            "ranks": self.num_ranked > 0,
        }
        self.match_head = ITMHead(encoder.pair_dim, **form) if task.itm_weight > 0 else None

    @property
    def heads(self) -> list[Any]:
        """The heads of all contrasts, first to last."""
        return [self.features, *self.more_features] if self.num_contrasts else []

    def forward(
        self, encoder: Backbone, batch: CaptionBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Routers]:
        """Return the losses by name, scalars for the log, and routers."""
        whole: CachedContrast | None = batch.contrast
        losses, terms, routers, image, text, compared, hard_negatives = (
            {},
            {},
            [],
            None,
            None,
            None,
            None,
        )
        if self.num_contrasts:
            with contextlib.nullcontext() if whole is None else replayed(whole.rng_state):
                image, text, image_BXd, text_BXd, routers = self.unimodal(encoder, batch)
            temperatures = self._temperatures
            if whole is None:
                losses, terms = self._losses(image_BXd, text_BXd, [batch], temperatures)
                hard_negatives = self._fetched(
                    encoder, [batch], image_BXd, text_BXd, temperatures[0]
                )[0]
            else:
                losses, terms = (
                    whole.losses_of(image_BXd, text_BXd, *temperatures),
                    dict(whole.terms),
                )
                hard_negatives = whole.hard_negatives
            compared = image_BXd[:, 0], text_BXd[:, 0], temperatures[0]
        if self.match_head is not None:
            if hard_negatives is not None:
                image, text, is_match = negatives.add_negatives(encoder, batch, hard_negatives)
            else:
                image = (
                    encoder.image(batch.pixels()) if image is None or self._masks_image else image
                )
                text = (
                    encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
                    if text is None
                    else text
                )
                keys_BK = self.keys(batch)
                if self.num_ranked:
                    images, texts = negatives.random_texts(keys_BK, self.num_ranked)
                elif self.settings.itm_negatives == "random_half" or compared is None:
                    images, texts = negatives.random_half(keys_BK)
                else:
                    images, texts = negatives.hard(keys_BK, *compared)
                image, text = index_tokens(image, images), index_tokens(text, texts)
                shares_K = keys_BK[images] == keys_BK[texts]
                is_match = shares_K.any(
                    1
                )  # negatives do not match, unless a batch shows one image only
            logits, match_routers = self.match(
                encoder, image, text, num_passes=len(is_match) // len(batch.ids_BT)
            )
            losses["itm"], terms["itm_acc"] = self._matching(logits, is_match, len(batch.ids_BT))
            routers += match_routers
        return losses, terms, routers

    def _matching(self, logits: Tensor, is_match: Tensor, B: int) -> tuple[Tensor, Tensor]:
        """Return the matching loss, and the share of right pairs (ranking: images)."""
        if not self.num_ranked:
            return objectives.matching(logits, is_match), (
                logits.argmax(1) == is_match.long()
            ).float().mean()
        score_BN, is_true_BN = logits[:, 1].view(-1, B).T, is_match.view(-1, B).T
        is_first_B = score_BN.argmax(1) == 0
        return objectives.listwise_ranking(score_BN, is_true_BN), is_first_B.float().mean()

    def unimodal(
        self, encoder: Backbone, batch: Batch
    ) -> tuple[Tokens, Tokens, Tensor, Tensor, Routers]:
        """Return the embedded images and texts, their features (B, X, d), and routers."""
        keep_BK = batch.keep_BK if self._masks_image and isinstance(batch, MaskedImages) else None
        image = (
            encoder.image(batch.pixels())
            if keep_BK is None
            else encoder.image(batch.pixels(), keep_BK)
        )
        text = encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
        image_X, image_routers = self.states(encoder, image, None)
        text_X, text_routers = self.states(encoder, None, text)
        image_BXd = torch.stack(
            [head.image_features(x) for head, x in zip(self.heads, image_X, strict=True)], dim=1
        )
        text_BXd = torch.stack(
            [head.text_features(x) for head, x in zip(self.heads, text_X, strict=True)], dim=1
        )
        return image, text, image_BXd, text_BXd, [*image_routers, *text_routers]

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

    @property
    def _masks_image(self) -> bool:
        return self.training and self.settings.itc_masked_image

    @property
    def _temperatures(self) -> list[nn.Parameter]:
        return [head.temperature for head in self.heads]

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Bound the temperatures, and remember the features of a step.

        progress: share of the steps done. Within `forward` the bounds would not reach a parameter in shards.
        """
        for temperature in self._temperatures:
            temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        self.memory.add_step(progress)

    def keys(self, batch: CaptionBatch) -> Tensor:
        """Return the image of each pair and, if merged, its caption, int64 (B, 1 or 2).

        Pairs that share one of them are no negatives of each other.
        """
        return torch.stack(
            [batch.image_id_B, batch.caption_B] if self.dedup_captions else [batch.image_id_B],
            dim=1,
        )

    def _targets(self, batches: Sequence[CaptionBatch]) -> LazyRows:
        """Return the contrast targets of pairs among the pairs of all processes, (B, C)."""
        labels = [
            batch.label_BL
            for batch in batches
            if isinstance(batch, PairBatch) and batch.label_BL is not None
        ]
        if labels:
            label_BL = torch.cat(labels)
            state_BL, state_CL = label_states(label_BL, gather_rows(label_BL))
            return LazyRows(lambda rows: objectives.semantic_targets(state_BL[rows], state_CL))
        keys_BK = torch.cat([self.keys(batch) for batch in batches])
        if self.settings.itc_targets == "diagonal":
            keys_BK = negatives.global_row_index(keys_BK)[:, None]
        keys_CK = gather_rows(keys_BK)
        return LazyRows(lambda rows: objectives.even_targets(shares_key(keys_BK[rows], keys_CK)))

    def _losses(
        self,
        image_BXd: Tensor,
        text_BXd: Tensor,
        batches: Sequence[CaptionBatch],
        temperatures: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses among the pairs of all processes, and scalars for the log.

        `itc` is the mean over all contrasts, the others are of the first.
        """
        image_CXd, text_CXd, target_BC = (
            gather_rows(image_BXd),
            gather_rows(text_BXd),
            self._targets(batches),
        )
        keys_BK = torch.cat([self.keys(batch) for batch in batches])
        image_AXd, text_AXd, target_BA, is_ignored_BA = self.memory.extend(
            image_CXd, text_CXd, target_BC, keys_BK
        )
        parts = zip(
            *(each.unbind(1) for each in (image_BXd, text_BXd, image_AXd, text_AXd)), strict=True
        )
        itc = [
            objectives.contrastive(
                image_Bd, text_Bd, image_Ad, text_Ad, target_BA, temperature, is_ignored_BA
            )
            for (image_Bd, text_Bd, image_Ad, text_Ad), temperature in zip(
                parts, temperatures, strict=True
            )
        ]
        losses, terms = {"itc": torch.stack(itc).mean()}, {}
        if self.settings.svd_form != "off":
            value_R = objectives.singular_values(image_CXd[:, 0], text_CXd[:, 0])
            sigma1 = value_R[0] / len(image_CXd)
            losses["svd"] = (
                sigma1 if self.settings.svd_form == "sigma1" else value_R[0] / value_R.sum()
            )
            terms = {
                "sigma1": sigma1.detach(),
                "effective_rank": objectives.effective_rank(value_R.detach()),
            }
        return losses, terms

    def over_all(self, encoder: Backbone, micro_batches: list[CaptionBatch]) -> list[CaptionBatch]:
        """Return the micro-batches with their share of a contrast over all of them.

        This is GradCache (Gao et al. 2021). Every pair keeps all the others as negatives, with any accumulation. Features
        are first computed without a gradient, then the losses and their gradients by the features. `forward` repeats the
        features, with the same dropout.
        """
        rng_states, parts = [], []
        with (
            torch.no_grad(),
            running_averages_restored(encoder),
        ):  # `forward` updates them, once as without accumulation
            for batch in micro_batches:
                rng_states.append(get_rng_state())
                parts.append(self.unimodal(encoder, batch)[2:4])
        image, text = (torch.cat(part).requires_grad_() for part in zip(*parts, strict=True))
        temperatures = [each.detach().clone().requires_grad_() for each in self._temperatures]
        losses, terms = self._losses(image, text, micro_batches, temperatures)
        hard_negatives = self._fetched(encoder, micro_batches, image, text, temperatures[0])
        sizes, num = [len(image) for image, _ in parts], len(micro_batches)
        gradients: list[dict[str, tuple[Tensor, ...]]] = [{} for _ in micro_batches]
        for name, loss in losses.items():
            by_all = torch.autograd.grad(
                loss, [image, text, *temperatures], retain_graph=True, materialize_grads=True
            )
            by_image, by_text = (
                (num * by).split(sizes) for by in by_all[:2]
            )  # the training loop divides by num
            for mine, *by_both in zip(gradients, by_image, by_text, strict=True):
                mine[name] = *by_both, *by_all[2:]
        shared = {"losses": {name: loss.detach() for name, loss in losses.items()}, "terms": terms}
        rows = zip(rng_states, gradients, hard_negatives, strict=True)
        cached = [
            CachedContrast(rng_state=rng, gradients=by, hard_negatives=each, **shared)
            for rng, by, each in rows
        ]
        return [
            dataclasses.replace(batch, contrast=own)
            for batch, own in zip(micro_batches, cached, strict=True)
        ]

    @torch.no_grad()
    def _fetched(
        self,
        encoder: Backbone,
        batches: Sequence[CaptionBatch],
        image_BXd: Tensor,
        text_BXd: Tensor,
        temperature: Tensor,
    ) -> Sequence[negatives.HardNegatives | None]:
        """Return each micro-batch's negatives of the step; None if it uses its own."""
        if self.match_head is None or self.settings.itm_negatives != "global":
            return [None] * len(batches)
        pairs = [batch for batch in batches if isinstance(batch, PairBatch)]
        keys_BK, limit = (
            torch.cat([self.keys(batch) for batch in batches]),
            encoder.sizes.text_length,
        )
        return negatives.gather_hard_negatives(
            pairs, image_BXd[:, 0], text_BXd[:, 0], keys_BK, temperature, limit
        )

    def match(
        self, encoder: Backbone, image: Tokens, text: Tokens, num_passes: int = 1
    ) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of pairs, class 1 = match, and routers.

        They are read off the text [CLS]. num_passes: equal parts of the batch that the published code takes one after the
        other.
        """
        assert self.match_head is not None
        cls_BD, routers = encoder.cls(image, text, num_passes=num_passes)
        return self.match_head(cls_BD), routers
