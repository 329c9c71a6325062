"""Image–text contrast (ITC) and matching (ITM): the losses of retrieval, of EVE's baselines and of related systems.

Letters: B batch, K kept patches or kinds of keys, N all tokens or texts to match an image with, D width, d width of features,
X contrasts, C candidates over all processes, R singular values.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eve_vl import objectives
from eve_vl.config import ContrastMatchConfig, RetrievalConfig
from eve_vl.data.batch import Batch, normalize
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.data.masking import MaskedImages, PairBatch
from eve_vl.model.backbone import Backbone
from eve_vl.model.embeddings import index_tokens
from eve_vl.model.heads import ContrastHead, ITMHead
from eve_vl.model.packing import Tokens
from eve_vl.tasks import hard_negatives
from eve_vl.tasks.task import Routers, Task
from eve_vl.train.checkpoint import get_rng_state, set_rng_state
from eve_vl.train.collectives import gather_rows

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
PAIRS_AT_ONCE = 256  # per pass, however many images are matched with each text
Settings = TypeVar("Settings", bound=RetrievalConfig | ContrastMatchConfig)


@contextlib.contextmanager
def replayed(state: dict[str, Tensor]) -> Iterator[None]:
    """Replay random numbers from a state, and restore the present state afterwards."""
    now = get_rng_state()
    set_rng_state(state)
    try:
        yield
    finally:
        set_rng_state(now)


@contextlib.contextmanager
def running_averages_kept(model: nn.Module) -> Iterator[None]:
    """Restore the running averages of batch normalisation after the passes in this context."""
    buffers = [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def label_states(label_BL: Tensor, label_CL: Tensor) -> tuple[Tensor, Tensor]:
    """Return label vectors (1 present, -1 absent, 0 unknown) over all labels of the second rows (see `PairBatch.label_BL`).

    The first rows are among the second.
    """
    known, column_CL = label_CL.abs().unique(return_inverse=True)
    column_BL = torch.searchsorted(known, label_BL.abs())
    zeros = [torch.zeros(len(each), len(known), device=known.device) for each in (label_BL, label_CL)]
    state_BL = zeros[0].scatter_(1, column_BL, label_BL.sign().float())
    return state_BL, zeros[1].scatter_(1, column_CL, label_CL.sign().float())


@dataclass(frozen=True, kw_only=True)
class CachedContrast:
    """The losses of contrast over all micro-batches of a step, and their gradients by the features of one micro-batch."""

    rng_state: dict[str, Tensor]
    """The random state before the features were computed."""
    losses: dict[str, Tensor]
    gradients: dict[str, tuple[Tensor, ...]]
    """By loss: its gradients by the features of images and of texts, (B, X, d), and by the temperatures."""
    terms: dict[str, Tensor]
    wrong: hard_negatives.HardNegatives | None

    def losses_of(self, *values: Tensor) -> dict[str, Tensor]:
        """Return the losses over all micro-batches with the gradients of this one.

        values: the features and the temperatures.
        """
        losses = {}
        for name, loss in self.losses.items():
            products = ((value * by).sum() for value, by in zip(values, self.gradients[name], strict=True))
            product = sum(products, start=torch.zeros(()))
            losses[name] = loss + product - product.detach()
        return losses


class Contrast(nn.Module):
    """The heads of contrast and matching with their losses; either may be missing."""

    features: ContrastHead
    """The head of the first contrast, used in search; missing without contrast."""

    def __init__(self, encoder: Backbone, task: RetrievalConfig | ContrastMatchConfig):
        super().__init__()
        embed_dim, retrieval = encoder.config.embed_dim, task if isinstance(task, RetrievalConfig) else None
        drawn = "local" if task.itc_weight else "random_half"
        self.settings = task if isinstance(task, ContrastMatchConfig) else ContrastMatchConfig(itm_negatives=drawn)
        self.num_contrasts = 0 if not task.itc_weight else 1 if retrieval else encoder.num_contrasts
        heads = [ContrastHead(embed_dim, task.projection_dim or embed_dim) for _ in range(self.num_contrasts)]
        if heads:
            self.features = heads[0]
        self.more_features = nn.ModuleList(heads[1:])
        self.takes_mean = retrieval is not None and retrieval.pooling == "mean"
        self.merges_captions = retrieval.dedup_captions if retrieval else self.settings.itc_targets == "same_text"
        self.num_ranked = retrieval.ranking_candidates if retrieval and retrieval.itm_loss == "ranking" else 0
        form = {"standardize": retrieval is not None and retrieval.itm_batchnorm, "ranks": self.num_ranked > 0}
        self.match_head = ITMHead(encoder.pair_dim, **form) if task.itm_weight > 0 else None

    @property
    def heads(self) -> list[Any]:
        """The heads of all contrasts, first to last."""
        return [self.features, *self.more_features] if self.num_contrasts else []

    def forward(self, encoder: Backbone, batch: CaptionBatch) -> tuple[dict[str, Tensor], dict[str, Tensor], Routers]:
        """Return the losses `itc`, `svd` and `itm` that are switched on, scalars for the log, and the routers' statistics."""
        whole: CachedContrast | None = batch.contrast
        losses, terms, routers, image, text, similarity_BB, wrong = {}, {}, [], None, None, None, None
        if self.num_contrasts:
            with contextlib.nullcontext() if whole is None else replayed(whole.rng_state):
                image, text, image_BXd, text_BXd, routers = self.alone(encoder, batch)
            temperatures = self._clamped_temperatures()
            if whole is None:
                losses, terms = self._losses(image_BXd, text_BXd, [batch], temperatures)
                wrong = self._fetched(encoder, [batch], image_BXd, text_BXd, temperatures[0])[0]
            else:
                losses, terms = whole.losses_of(image_BXd, text_BXd, *temperatures), dict(whole.terms)
                wrong = whole.wrong
            with torch.no_grad():
                similarity_BB = objectives.similarities(image_BXd[:, 0], text_BXd[:, 0], temperatures[0])
        if self.match_head is not None:
            if wrong is not None:
                image, text, is_match = hard_negatives.add_negatives(encoder, batch, wrong)
            else:
                image = encoder.image(batch.pixels()) if image is None or self._masks_image else image
                text = encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real) if text is None else text
                keys_BK = self._keys(batch)
                is_match_BB = hard_negatives.shares_key(keys_BK, keys_BK)
                if self.num_ranked:
                    image, text, is_match = hard_negatives.random_texts(image, text, is_match_BB, self.num_ranked)
                elif self.settings.itm_negatives == "random_half" or similarity_BB is None:
                    image, text, is_match = hard_negatives.random_half(image, text, is_match_BB)
                else:
                    image, text, is_match = hard_negatives.hard(image, text, is_match_BB, similarity_BB)
            logits, match_routers = self.match(encoder, image, text, num_passes=len(is_match) // len(batch.ids_BT))
            losses["itm"], terms["itm_acc"] = self._matching(logits, is_match, len(batch.ids_BT))
            routers += match_routers
        return losses, terms, routers

    def _matching(self, logits: Tensor, is_match: Tensor, B: int) -> tuple[Tensor, Tensor]:
        """Return the matching loss, and the share of pairs (with ranking: of images) that are right."""
        if not self.num_ranked:
            return objectives.matching(logits, is_match), (logits.argmax(1) == is_match.long()).float().mean()
        score_BN, is_true_BN = logits[:, 1].view(-1, B).T, is_match.view(-1, B).T
        is_first_B = score_BN.argmax(1) == 0
        return objectives.listwise_ranking(score_BN, is_true_BN), is_first_B.float().mean()

    def alone(self, encoder: Backbone, batch: Batch) -> tuple[Tokens, Tokens, Tensor, Tensor, Routers]:
        """Return the embedded images and texts, their features (B, X, d), and the routers' statistics."""
        keep_BK = batch.keep_BK if self._masks_image and isinstance(batch, MaskedImages) else None
        image = encoder.image(batch.pixels()) if keep_BK is None else encoder.image(batch.pixels(), keep_BK)
        text = encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
        image_X, image_routers = self.states(encoder, image, None)
        text_X, text_routers = self.states(encoder, None, text)
        image_BXd = torch.stack([head.image_features(x) for head, x in zip(self.heads, image_X, strict=True)], dim=1)
        text_BXd = torch.stack([head.text_features(x) for head, x in zip(self.heads, text_X, strict=True)], dim=1)
        return image, text, image_BXd, text_BXd, [*image_routers, *text_routers]

    def states(
        self, encoder: Backbone, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> tuple[list[Tensor], Routers]:
        """Return the states (B, D) of an image or a text, one per contrast, and the routers' statistics."""
        if self.num_contrasts > 1:
            return encoder.alone(image, text, final_norm)
        state_BD, routers = self.pooled(encoder, image, text, final_norm=final_norm)
        return [state_BD], routers

    def pooled(
        self, encoder: Backbone, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> tuple[Tensor, Routers]:
        """Return the state of the first contrast, and the routers' statistics."""
        if not self.takes_mean:
            return encoder.cls(image, text, final_norm=final_norm)
        encoded = encoder.encode(image, text)
        return encoded.mean_BD, encoded.routers

    @property
    def _masks_image(self) -> bool:
        return self.training and self.settings.itc_masked_image

    @torch.no_grad()
    def _clamped_temperatures(self) -> list[nn.Parameter]:
        return [head.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE) for head in self.heads]

    def _keys(self, batch: CaptionBatch) -> Tensor:
        """Return the image and, if captions are merged, the caption of each pair, int64 (B, 1 or 2).

        Pairs that share one of them are no negatives of each other.
        """
        return torch.stack([batch.image_id_B, batch.caption_B] if self.merges_captions else [batch.image_id_B], dim=1)

    def _targets(self, batches: Sequence[CaptionBatch]) -> Tensor:
        """Return the contrast targets of pairs among the pairs of all processes, (B, C)."""
        labels = [batch.label_BL for batch in batches if isinstance(batch, PairBatch) and batch.label_BL is not None]
        if labels:
            label_BL = torch.cat(labels)
            label_CL = gather_rows(label_BL)
            return objectives.semantic_targets(*label_states(label_BL, label_CL))
        keys_BK = torch.cat([self._keys(batch) for batch in batches])
        if self.settings.itc_targets == "diagonal":
            keys_BK = hard_negatives.global_row_index(keys_BK)[:, None]
        return objectives.even_targets(hard_negatives.shares_key(keys_BK, gather_rows(keys_BK)))

    def _losses(
        self, image_BXd: Tensor, text_BXd: Tensor, batches: Sequence[CaptionBatch], temperatures: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses among the pairs of all processes, and scalars for the log.

        `itc` is the mean over all contrasts, `svd` is of the first.
        """
        image_CXd, text_CXd, target_BC = gather_rows(image_BXd), gather_rows(text_BXd), self._targets(batches)
        itc = [
            objectives.contrastive(image_BXd[:, x], text_BXd[:, x], image_CXd[:, x], text_CXd[:, x], target_BC, temperature)
            for x, temperature in enumerate(temperatures)
        ]
        losses, terms = {"itc": torch.stack(itc).mean()}, {}
        if self.settings.svd_form != "off":
            value_R = objectives.singular_values(image_CXd[:, 0], text_CXd[:, 0])
            sigma1 = value_R[0] / len(image_CXd)
            losses["svd"] = sigma1 if self.settings.svd_form == "sigma1" else value_R[0] / value_R.sum()
            terms = {"sigma1": sigma1.detach(), "effective_rank": objectives.effective_rank(value_R.detach())}
        return losses, terms

    def over_all(self, encoder: Backbone, micro_batches: list[CaptionBatch]) -> list[CaptionBatch]:
        """Return the micro-batches of a step with their share of a contrast over all of them (GradCache, Gao et al. 2021).

        Every pair keeps all the others as negatives, whatever the accumulation. Features are first computed without a gradient,
        then the losses and their gradients by the features. `forward` repeats the features, with the same dropout.
        """
        rng_states, parts = [], []
        with torch.no_grad(), running_averages_kept(encoder):  # `forward` updates them, once as without accumulation
            for batch in micro_batches:
                rng_states.append(get_rng_state())
                parts.append(self.alone(encoder, batch)[2:4])
        image, text = (torch.cat(part).requires_grad_() for part in zip(*parts, strict=True))
        temperatures = [each.detach().clone().requires_grad_() for each in self._clamped_temperatures()]
        losses, terms = self._losses(image, text, micro_batches, temperatures)
        wrong = self._fetched(encoder, micro_batches, image, text, temperatures[0])
        sizes, num = [len(image) for image, _ in parts], len(micro_batches)
        gradients: list[dict[str, tuple[Tensor, ...]]] = [{} for _ in micro_batches]
        for name, loss in losses.items():
            by_all = torch.autograd.grad(loss, [image, text, *temperatures], retain_graph=True, materialize_grads=True)
            by_image, by_text = ((num * by).split(sizes) for by in by_all[:2])  # the training loop divides by num
            for mine, *by_both in zip(gradients, by_image, by_text, strict=True):
                mine[name] = *by_both, *by_all[2:]
        losses = {name: loss.detach() for name, loss in losses.items()}
        return [
            dataclasses.replace(
                batch, contrast=CachedContrast(rng_state=rng, losses=losses, gradients=by, terms=terms, wrong=each)
            )
            for batch, rng, by, each in zip(micro_batches, rng_states, gradients, wrong, strict=True)
        ]

    def _fetched(
        self, encoder: Backbone, batches: Sequence[CaptionBatch], image_BXd: Tensor, text_BXd: Tensor, temperature: Tensor
    ) -> Sequence[hard_negatives.HardNegatives | None]:
        """Return each micro-batch's negative partners from all micro-batches and processes; None if it uses its own."""
        if self.match_head is None or self.settings.itm_negatives != "global":
            return [None] * len(batches)
        pairs = [batch for batch in batches if isinstance(batch, PairBatch)]
        keys_BK = torch.cat([self._keys(batch) for batch in batches])
        with torch.no_grad():
            limit = encoder.sizes.text_length
            return hard_negatives.gather_hard_negatives(pairs, image_BXd[:, 0], text_BXd[:, 0], keys_BK, temperature, limit)

    def match(self, encoder: Backbone, image: Tokens, text: Tokens, num_passes: int = 1) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of pairs, class 1 = match, read off the text [CLS], and the routers' statistics.

        num_passes: equal parts of the batch that the published code takes one after the other.
        """
        assert self.match_head is not None
        cls_BD, routers = encoder.cls(image, text, num_passes=num_passes)
        return self.match_head(cls_BD), routers


class ContrastTask(Task[Settings]):
    """A task with these heads: features that compare, and the probability of a match."""

    contrast: Contrast
    is_comparable = True

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Compute contrast over all micro-batches of a step."""
        micro_batches = super().before_step(micro_batches)
        sees_all = self.contrast.num_contrasts and len(micro_batches) > 1
        return self.contrast.over_all(self.encoder, micro_batches) if sees_all else micro_batches

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.contrast.features.image.out_features if self.is_comparable else super().feature_dim

    def _state(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the projected state of an image or a text, float32 (B, d); without contrast the state."""
        state_BD, _ = self.contrast.pooled(self.encoder, image, text, final_norm=getattr(self.settings, "final_norm", True))
        if not self.is_comparable:
            return state_BD
        return (self.contrast.features.image if text is None else self.contrast.features.text)(state_BD).float()

    def match(
        self,
        images_BCHW: Tensor,
        ids_BT: Tensor,
        is_padding_BT: Tensor | None,
        pairs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Routers]:
        """Return the matching head's logits (B, 2) of pairs, class 1 = match, and the routers' statistics.

        pairs: which image and which text each pair is made of, two times int64 (B,); None: row by row.
        """
        image, text = self.encoder.image(normalize(images_BCHW)), self.encoder.text(ids_BT, is_padding_BT)
        if pairs is not None:
            image, text = index_tokens(image, pairs[0]), index_tokens(text, pairs[1])
        return self.contrast.match(self.encoder, image, text)

    def match_each(self, image: Tokens, ids_NT: Tensor, is_padding_NT: Tensor | None) -> Tensor:
        """Return the matching head's logits of each embedded image with each text, (I, N, 2)."""
        num_images, num_texts = len(image.x_BND), len(ids_NT)
        rows = torch.arange(num_images * num_texts, device=ids_NT.device).split(PAIRS_AT_ONCE)
        text = self.encoder.text(ids_NT, is_padding_NT)
        pairs = ((index_tokens(image, part // num_texts), index_tokens(text, part % num_texts)) for part in rows)
        logits = [self.contrast.match(self.encoder, *pair)[0] for pair in pairs]
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
        """Return the scores that re-ranking orders pairs by (task.rerank_by), float32 (B,).

        similarity_B: products of their features. pairs: as in `match`.
        """
        no_B, yes_B = self.match(images_BCHW, ids_BT, is_padding_BT, pairs)[0].float().unbind(1)
        return yes_B - no_B + similarity_B / self.contrast.features.temperature if self.orders_by_sum else yes_B

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of images, of texts and, with a matching head, of pairs."""
        routers = self.contrast.alone(self.encoder, batch)[-1] if self.is_comparable else []
        if self.contrast.match_head is not None:
            routers = routers + self.match(batch.images_BCHW, batch.ids_BT, batch.is_padding_BT)[1]
        return routers
