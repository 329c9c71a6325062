"""Image–text contrast (ITC) and matching with hard negatives (ITM): how retrieval is fine-tuned and EVE's rivals pre-train.

Letters: B batch, N all tokens, D width, d width of features, C candidates over all processes, X kinds of keys.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tyro.conf import Positional

from eve_vl import objectives
from eve_vl.config import ContrastMatchConfig, RetrievalConfig
from eve_vl.data.batch import Batch, CaptionBatch, normalize
from eve_vl.data.inputs import GivenImage, Images, Strings, chunked, given_images, given_texts, listed
from eve_vl.data.prompts import read_prompts
from eve_vl.model.backbone import Backbone
from eve_vl.model.embed import pick
from eve_vl.model.heads import ContrastHead, MatchHead
from eve_vl.model.rows import Tokens
from eve_vl.tasks.calls import Calls, JsonFlags, PictureFlags, Verb, in_batches
from eve_vl.tasks.look import Evidence
from eve_vl.tasks.task import PAIR, Computation, Routers, Task, pair_tokens
from eve_vl.tasks.zero_shot import By, ClassScore, ZeroShot
from eve_vl.train.checkpoint import get_rng_state, set_rng_state
from eve_vl.train.distributed import gather_rows

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
Settings = TypeVar("Settings", bound=RetrievalConfig | ContrastMatchConfig)


@contextlib.contextmanager
def replayed(state: dict[str, Tensor]) -> Iterator[None]:
    """Draw the same random numbers once more, and afterwards go on as if nothing had been drawn."""
    now = get_rng_state()
    set_rng_state(state)
    try:
        yield
    finally:
        set_rng_state(now)


@dataclass(frozen=True, kw_only=True)
class WholeBatch:
    """What contrast over all micro-batches of a step says of one of them: the loss, and its gradient by the features."""

    rng_state: dict[str, Tensor]
    """Before the features were computed."""
    loss: Tensor
    gradients: tuple[Tensor, ...]
    """By the features of pictures and of texts, (B, d), and by the temperature."""

    def loss_of(self, *values: Tensor) -> Tensor:
        """Return the loss over all micro-batches, with this one's share of its gradient by the features and the temperature."""
        products = ((value * by).sum() for value, by in zip(values, self.gradients, strict=True))
        product = sum(products, start=torch.zeros(()))
        return self.loss + product - product.detach()


class Contrast(nn.Module):
    """The two heads, and the losses that join them with an encoder."""

    def __init__(self, embed_dim: int, task: RetrievalConfig | ContrastMatchConfig):
        super().__init__()
        self.features = ContrastHead(embed_dim, task.projection_dim or embed_dim)
        standardize = isinstance(task, RetrievalConfig) and task.standardize_match
        self.takes_mean = isinstance(task, RetrievalConfig) and task.pooling == "mean"
        self.merges_captions = isinstance(task, RetrievalConfig) and task.merge_captions
        self.match_head = MatchHead(embed_dim, standardize=standardize) if task.itm_weight > 0 else None

    def forward(self, encoder: Backbone, batch: CaptionBatch) -> tuple[dict[str, Tensor], dict[str, Tensor], Routers]:
        """Return the losses `itc` and, with a matching head, `itm`, of true pairs; scalars for the log; the routers."""
        whole: WholeBatch | None = batch.contrast
        with contextlib.nullcontext() if whole is None else replayed(whole.rng_state):
            image, text, image_Bd, text_Bd, routers = self.alone(encoder, batch)
        temperature, terms = self._clamped_temperature(), {}
        if whole is None:
            losses = {"itc": self._contrast(image_Bd, text_Bd, self._keys(batch), temperature)}
        else:
            losses = {"itc": whole.loss_of(image_Bd, text_Bd, temperature)}
        if self.match_head is not None:
            with torch.no_grad():
                similarity_BB = image_Bd @ text_Bd.T / temperature
            logits, is_match, match_routers = self._hard_pairs(encoder, image, text, self._keys(batch), similarity_BB)
            losses["itm"] = objectives.matching(logits, is_match)
            terms["itm_acc"] = (logits.argmax(1) == is_match.long()).float().mean()
            routers += match_routers
        return losses, terms, routers

    def alone(self, encoder: Backbone, batch: Batch) -> tuple[Tokens, Tokens, Tensor, Tensor, Routers]:
        """Return pictures and texts embedded, their features (B, d), and the routers of both passes."""
        image, text = encoder.image(batch.pixels()), encoder.text(batch.ids_BT, batch.is_padding_BT, batch.num_real)
        image_BD, image_routers = self.pooled(encoder, image, None)
        text_BD, text_routers = self.pooled(encoder, None, text)
        features = self.features.image_features(image_BD), self.features.text_features(text_BD)
        return image, text, *features, [*image_routers, *text_routers]

    def pooled(
        self, encoder: Backbone, image: Tokens | None, text: Tokens | None, *, final_norm: bool = True
    ) -> tuple[Tensor, Routers]:
        """Return the state (B, D) of a picture or of a text alone that its features are made of, and the routers."""
        if not self.takes_mean:
            return encoder.cls(image, text, final_norm=final_norm)
        encoded = encoder.encode(image, text)
        return encoded.mean_BD, encoded.routers

    @torch.no_grad()
    def _clamped_temperature(self) -> nn.Parameter:
        return self.features.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)  # pyright: ignore[reportReturnType]

    def _keys(self, batch: CaptionBatch) -> Tensor:
        """Return what pairs that are no negatives of each other share one of, int64 (B, 1 or 2): the picture, and the words."""
        return torch.stack([batch.picture_B, batch.caption_B] if self.merges_captions else [batch.picture_B], dim=1)

    def _contrast(self, image_Bd: Tensor, text_Bd: Tensor, keys_BX: Tensor, temperature: Tensor) -> Tensor:
        """Return the contrastive loss of pairs among those of all processes."""
        is_match_BC = (keys_BX[:, None] == gather_rows(keys_BX)).any(2)
        candidates = gather_rows(image_Bd), gather_rows(text_Bd)
        return objectives.contrastive(image_Bd, text_Bd, *candidates, is_match_BC, temperature)

    def over_all(self, encoder: Backbone, micro_batches: list[CaptionBatch]) -> list[CaptionBatch]:
        """Return the micro-batches of a step with what contrast over all of them says of each, so that accumulation leaves
        every pair all the others to be told from (GradCache, Gao et al. 2021): features are computed without a gradient first,
        then the loss and its gradient by the features, and in `forward` the features once more, with the same dropout."""
        rng_states, parts = [], []
        with torch.no_grad():
            for batch in micro_batches:
                rng_states.append(get_rng_state())
                parts.append(self.alone(encoder, batch)[2:4])
        image, text = (torch.cat(part).requires_grad_() for part in zip(*parts, strict=True))
        temperature = self._clamped_temperature().detach().clone().requires_grad_()
        loss = self._contrast(image, text, torch.cat([self._keys(batch) for batch in micro_batches]), temperature)
        *by_features, by_temperature = torch.autograd.grad(loss, [image, text, temperature])
        sizes, num = [len(image) for image, _ in parts], len(micro_batches)
        by_image, by_text = ((num * gradient).split(sizes) for gradient in by_features)  # for the loop divides by the number
        wholes = [
            WholeBatch(rng_state=state, loss=loss.detach(), gradients=(*by_both, by_temperature))
            for state, *by_both in zip(rng_states, by_image, by_text, strict=True)
        ]
        return [dataclasses.replace(batch, contrast=whole) for batch, whole in zip(micro_batches, wholes, strict=True)]

    def _hard_pairs(
        self, encoder: Backbone, image: Tokens, text: Tokens, keys_BX: Tensor, similarity_BB: Tensor
    ) -> tuple[Tensor, Tensor, Routers]:
        """Match the B true pairs, B texts with a hard wrong picture and B pictures with a hard wrong text, in one pass."""
        is_match_BB = (keys_BX[:, None] == keys_BX).any(2)
        own_B = torch.arange(len(keys_BX), device=keys_BX.device)
        wrong_image_B = objectives.hard_negatives(similarity_BB.T, is_match_BB)
        wrong_text_B = objectives.hard_negatives(similarity_BB, is_match_BB)
        images, texts = torch.cat([own_B, wrong_image_B, own_B]), torch.cat([own_B, own_B, wrong_text_B])
        logits, routers = self.match(encoder, pick(image, images), pick(text, texts), num_passes=3)
        # negatives do not match, unless a batch shows one picture only
        return logits, is_match_BB[images, texts], routers

    def match(self, encoder: Backbone, image: Tokens, text: Tokens, num_passes: int = 1) -> tuple[Tensor, Routers]:
        """Return logits (B, 2) of pairs, class 1 = match, read off the text [CLS], and the routers of each pass.

        num_passes: equal parts of the batch that the published code takes one after the other.
        """
        assert self.match_head is not None
        cls_BD, routers = encoder.cls(image, text, num_passes=num_passes)
        return self.match_head(cls_BD), routers


@dataclass(frozen=True, kw_only=True)
class MatchFlags(JsonFlags, PictureFlags):
    """Flags of `eve match`."""

    text: Positional[str]
    """What may be true of it."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotFlags(JsonFlags, PictureFlags):
    """Flags of `eve zero-shot`."""

    prompts: Positional[str]
    """JSON file of what is said of each class, {"class": ["text", …], …}; phantoms: of the built-in phantoms."""
    by: By = "mean"
    """What of its prompts' scores the score of a class is."""
    top: int = 5
    """How many classes to show."""


class ContrastCalls(Calls):
    """What a run with contrast or a matching head does for people."""

    task: "ContrastTask[Any]"
    verbs: ClassVar[dict[str, Verb]] = Calls.verbs | {
        "match": Verb(flags=MatchFlags, show="{:.4f}".format, values=lambda probability: {"probability": probability}),
        "zero_shot": Verb(
            flags=ZeroShotFlags,
            show=lambda classes: "\n".join(f"{each.score:8.4f}  {each.label}" for each in classes),
            values=lambda classes: {"classes": [dataclasses.asdict(each) for each in classes]},
        ),
    }

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("match", "zero_shot", "look") if self.task.contrast.match_head is not None else ("zero_shot",)

    def zero_shot(
        self, image: Images, prompts: str | Path | Mapping[str, Any], by: By = "mean", top: int = 5, batch_size: int = 64
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the `top` classes whose prompts a picture is most like, best first; of each of several pictures such a list.

        prompts: {"class": ["text", …], …}, or a JSON file of it, or `phantoms`; see `data.prompts.read_prompts`. by: whether a
        class scores the mean or the max of its prompts. Scores are cosines of features, or log-odds of a match where a run has
        a matching head alone: no probabilities.
        """
        scorer = ZeroShot(self, read_prompts(prompts)[0], by)
        return in_batches(lambda images: scorer.best(self.inputs.images(images), top), batch_size, (given_images, image))

    @torch.no_grad()
    def match(self, image: Images, text: Strings, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability that a picture and a text belong together; if one of the two is a list, or both are, that of
        each of n pictures with each of m texts, float32 (n, m). Each picture is read once.

        In training, two of three pairs were made not to, and hard to tell from those that do.
        """
        images, texts = given_images(image), given_texts(text)
        ids = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        rows = [np.zeros((0, len(texts)), np.float32)]
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            rows.append(np.hstack([np.zeros((len(chunk), 0), np.float32), *(self._matched(tokens, *texts) for texts in ids)]))
        is_one = listed(image) is None and listed(text) is None
        return float(rows[1][0, 0]) if is_one else np.vstack(rows)

    def _matched(self, image: Tokens, ids_BT: Tensor, is_padding_BT: Tensor) -> np.ndarray:
        """Return the probability that each of some pictures, embedded, belongs to each of some texts."""
        num_images, num_texts, encoder = len(image.x_BND), len(ids_BT), self.task.encoder
        rows = torch.arange(num_images * num_texts, device=ids_BT.device)
        pairs = pick(image, rows // num_texts), pick(encoder.text(ids_BT, is_padding_BT), rows % num_texts)
        return self.task.contrast.match(encoder, *pairs)[0].softmax(1)[:, 1].view(num_images, num_texts).cpu().numpy()

    def _evidence(self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = batch.images_BCHW, batch.ids_BT, batch.is_padding_BT
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")


class ContrastTask(Task[Settings]):
    """What tasks with these heads share: features that compare, and the probability of a match."""

    contrast: Contrast
    is_comparable = True

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Let contrast see all micro-batches of a step."""
        micro_batches = super().before_step(micro_batches)
        return self.contrast.over_all(self.encoder, micro_batches) if len(micro_batches) > 1 else micro_batches

    def alone(self, image: Tokens | None, text: Tokens | None) -> Tensor:
        """Return the projected state of a picture or of a text alone, float32 (B, d)."""
        state_BD, _ = self.contrast.pooled(self.encoder, image, text, final_norm=getattr(self.settings, "final_norm", True))
        return (self.contrast.features.image if text is None else self.contrast.features.text)(state_BD).float()

    def match(self, images_BCHW: Tensor, ids_BT: Tensor, is_padding_BT: Tensor | None) -> tuple[Tensor, Routers]:
        """Return the matching head's logits (B, 2) of pairs, class 1 = match, and the routers."""
        image, text = self.encoder.image(normalize(images_BCHW)), self.encoder.text(ids_BT, is_padding_BT)
        return self.contrast.match(self.encoder, image, text)

    @property
    def orders_by_sum(self) -> bool:
        """Whether re-ranking orders by the sum of match and contrast (task.rerank_by)."""
        return getattr(self.settings, "rerank_by", "match") == "sum"

    def pair_scores(self, images_BCHW: Tensor, ids_BT: Tensor, is_padding_BT: Tensor | None, similarity_B: Tensor) -> Tensor:
        """Return what re-ranking orders pairs by (task.rerank_by), float32 (B,). similarity_B: products of their features."""
        no_B, yes_B = self.match(images_BCHW, ids_BT, is_padding_BT)[0].float().unbind(1)
        return yes_B - no_B + similarity_B / self.contrast.features.temperature if self.orders_by_sum else yes_B

    def routers(self, batch: Any) -> Routers:
        """Return what the routers do with the pictures alone, the texts alone and, with a matching head, the pairs."""
        image, text, *_, routers = self.contrast.alone(self.encoder, batch)
        return routers + (self.contrast.match(self.encoder, image, text)[1] if self.contrast.match_head is not None else [])

    def computations(self) -> dict[str, Computation]:
        """Return what the run computes, by the name of its file."""
        computations = super().computations()
        if self.contrast.match_head is not None:
            order, temperature = "the second alone", self.contrast.features.temperature
            if self.orders_by_sum:
                order = f"the second less the first plus the features' dot product over {temperature:.6g}"
            meaning = f"no match, match; their softmax is the probability; {order} puts candidates in order"
            logits = lambda *pair: self.match(*pair)[0]  # noqa: E731
            computations["matcher"] = Computation(inputs=PAIR, output="logits", meaning=meaning, compute=logits)
        return computations

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of contrast and matching in a step."""
        num_image, num_text = pair_tokens(self.config)
        reads = "all" if self.contrast.takes_mean else "cls"
        flops = {
            "contrast, image alone": self.encoder.flops(num_image, 0, reads),
            "contrast, text alone": self.encoder.flops(0, num_text, reads),
        }
        if self.contrast.match_head is not None:
            flops["matching, three fusion passes"] = 3 * self.encoder.flops(num_image, num_text, "cls")
        return flops
