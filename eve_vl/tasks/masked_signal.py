"""Pre-training by masked signal modelling: rebuild hidden pixels or hidden tokens from what is left and the other modality.

Source: the paper's "Pre-training Task"; masking ratios from its Fig. 4, the joint-masking ablation from its Table 5. Rows of
pictures alone or of texts alone (`data.rows`) train one of the two, for pre-training in stages.

Letters: B batch, P patches, K kept patches, M hidden patches or masked tokens, T text tokens, N all tokens, D width,
X values in a patch, V vocabulary.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional

from eve_vl import objectives
from eve_vl.config import Config, EveModelConfig, MaskedSignalConfig
from eve_vl.data.batch import MaskedPictures, MaskedTexts, PairBatch
from eve_vl.data.dataset import MaskedPairs
from eve_vl.data.inputs import GivenImage, ImageLike, Images, Strings, given_image, given_images, given_text, given_texts
from eve_vl.data.masking import generator, mask_patches, mask_tokens
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.errors import UserError
from eve_vl.metrics import masked_signal as metrics
from eve_vl.model.backbone import Encoded
from eve_vl.model.embed import hide, patchify, put, take, to_pictures
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import TokenHead
from eve_vl.model.pixel_decoder import PixelDecoder
from eve_vl.tasks.calls import Calls, Verb, best_classes, in_batches
from eve_vl.tasks.glimpse import glimpse
from eve_vl.tasks.look import Evidence
from eve_vl.tasks.task import Evaluated, Routers, Sizes, Task, pair_tokens
from eve_vl.tasks.verdict import Against
from eve_vl.train.distributed import gather_objects, sum_over_processes, world_size
from eve_vl.train.trainer import StepOutput

TOKENS, PATCHES = "masked tokens", "masked patches"
IGNORED = -100  # label of a token that is not masked, as everywhere in transformers
MaskedBatch = PairBatch | MaskedPictures | MaskedTexts
Settings = TypeVar("Settings", bound=MaskedSignalConfig)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A token as people would read it, and its probability; those of the whole vocabulary add up to 1."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class FilledText:
    """A text whose masks are filled with the best guesses, and the guesses for each mask, best first."""

    text: str
    guesses: tuple[tuple[Guess, ...], ...]

    def __str__(self) -> str:
        lines = [
            f"[MASK] {number}: " + ", ".join(f"{guess.text} {guess.probability:.4f}" for guess in guesses)
            for number, guesses in enumerate(self.guesses, start=1)
        ]
        return "\n".join([self.text, *lines])


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A picture as the run sees it, with patches in grey, and with these rebuilt; uint8 (image_size, image_size, 3)."""

    original: np.ndarray
    masked: np.ndarray
    rebuilt: np.ndarray

    def __str__(self) -> str:
        return "original, masked, rebuilt"


@dataclass(frozen=True, kw_only=True)
class FillMaskFlags:
    """Flags of `eve fill-mask`."""

    image: Positional[Path]
    """Picture file."""
    text: Positional[str]
    """Text with one or more [MASK]."""
    top: int = 5
    """How many guesses to show for each."""
    json: Path | None = None
    """Also write the result to this file."""


@dataclass(frozen=True, kw_only=True)
class ReconstructFlags:
    """Flags of `eve reconstruct`."""

    image: Positional[Path]
    """Picture file."""
    text: Positional[str]
    """Its caption."""
    share: float | None = None
    """Share of patches to hide; default: as in pre-training."""
    seed: int = 0
    """Which patches are hidden."""
    out: Path = Path("reconstruct.png")
    """Picture to write: original, masked, rebuilt."""


class MaskedSignalCalls(Calls):
    """What a pre-trained run does for people."""

    task: "MaskedSignalTask[Any]"
    verbs: ClassVar[dict[str, Verb]] = Calls.verbs | {
        "fill_mask": Verb(flags=FillMaskFlags, show=str, values=asdict),
        "reconstruct": Verb(
            flags=ReconstructFlags,
            show=str,
            values=lambda _: {},
            pictures=lambda shown: [shown.original, shown.masked, shown.rebuilt],
        ),
    }

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        task = self.task.settings
        return ("fill_mask", "look") * bool(task.mlm_weight) + ("reconstruct",) * bool(task.mim_weight)

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call that this one's heads do not; None if none would."""
        weight = {"fill_mask": "mlm_weight", "look": "mlm_weight", "reconstruct": "mim_weight"}.get(call)
        return weight and f"eve pretrain with task.{weight} above 0 (here it is {getattr(self.task.settings, weight):g})"

    @torch.no_grad()
    def fill_mask(self, image: Images, text: Strings, top: int = 5, batch_size: int = 64) -> FilledText | list[FilledText]:
        """Return the `top` best tokens for each "[MASK]" of a text, all guessed at once; of lists, row by row."""

        def guessed(images: Sequence[GivenImage], texts: Sequence[str]) -> list[FilledText]:
            ids, masks = zip(*map(self._with_masks, texts), strict=True)
            batch, word = self.inputs.masked_pairs(images, ids, masks=masks), self.inputs.tokenizer.word
            probability_MV = self.task.predict_tokens(self.task.encode(batch, mask=True), batch).softmax(1)
            rows = (tuple(Guess(text=word(v), probability=p) for v, p in best_classes(row_V, top)) for row_V in probability_MV)
            guesses = [tuple(islice(rows, text.count(MASK_TEXT))) for text in texts]
            best = (guess.text for of_text in guesses for guess, *_ in of_text)
            filled = (re.sub(re.escape(MASK_TEXT), lambda _: next(best), text) for text in texts)
            return [FilledText(text=text, guesses=of_text) for text, of_text in zip(filled, guesses, strict=True)]

        return in_batches(guessed, batch_size, (given_images, image), (given_texts, text))

    def _with_masks(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a text and which are masks. Raises UserError if there are none, or too many tokens before one."""
        limit = self.inputs.config.max_text_tokens
        if MASK_TEXT not in text:
            raise UserError(f'nothing to fill in: write {MASK_TEXT} in the text, as in "a {MASK_TEXT} circle"')
        ids_T, _, is_masked_T = self.inputs.tokenizer.encode_with_masks(text, limit)
        if is_masked_T.sum() < text.count(MASK_TEXT):
            raise UserError(f"a {MASK_TEXT} lies beyond the {limit} tokens that this run reads of a text")
        return ids_T, is_masked_T

    @torch.no_grad()
    def reconstruct(
        self, image: ImageLike, text: str, *, share: float | None = None, keep: Sequence[int] | None = None, seed: int = 0
    ) -> Reconstruction:
        """Hide patches of a picture and return it rebuilt from the others and the text.

        share: how much to hide, drawn with `seed`; None: task.image_mask_ratio. keep: instead, the patches to leave, counted
        from 0 row by row. Where targets were normalised per patch, each hidden patch gets its true mean and contrast.
        """
        sizes, settings, rng = self.inputs.config, self.task.settings, generator(seed)
        P = sizes.num_patches
        ratio = settings.image_mask_ratio if share is None else share
        if not 0 < ratio < 1:
            raise UserError(f"share {share} is not in (0, 1)")
        keep_K = mask_patches(P, ratio, rng)[0] if keep is None else np.unique(np.array(keep, dtype=np.int64))
        if not 0 < len(keep_K) < P or keep_K[0] < 0 or keep_K[-1] >= P:
            raise UserError(f"keep {keep}: give at least one of the patches 0 to {P - 1}, and not all of them")
        ids_T, is_special_T = self.inputs.tokens(given_text(text))
        is_masked_T = mask_tokens(is_special_T, settings.text_mask_ratio, rng) if settings.joint_masking else None
        masks = None if is_masked_T is None else [is_masked_T]
        batch = self.inputs.masked_pairs([given_image(image)], [ids_T], masks=masks, keep_K=keep_K)
        patches_BPX = self.task.patches(batch)
        shown = patches_BPX, hide(patches_BPX, batch.hidden_BM), self.task.rebuild(batch)
        original, masked, rebuilt = (to_pictures(patches, sizes.patch_size)[0] for patches in shown)
        return Reconstruction(original=original, masked=masked, rebuilt=rebuilt)

    def _evidence(
        self, images: Sequence[GivenImage], text: str, positions: Sequence[int] | None, answer: str | None
    ) -> Evidence:
        self._no_answer(answer)
        if positions is None:
            raise UserError("a pre-trained run looks for a hidden word: name a word of the text with --word (word=)")
        tokenizer, ids_T = self.inputs.tokenizer, self.inputs.tokens(text)[0]
        is_masked_T = np.isin(np.arange(len(ids_T)), positions)
        batch = self.inputs.masked_pairs(images, [ids_T], masks=[is_masked_T])
        return Evidence(
            logits=lambda task: task.predict_tokens(task.encode(batch, mask=True), batch),
            classes_R=batch.ids_BT[batch.is_masked_BT],
            hides_word=True,
            words=f'the hidden "{tokenizer.decode(ids_T[is_masked_T])}"',
        )


class MaskedSignalTask(Task[Settings]):
    """Encoder, token head and pixel decoder, with the losses that join them; rivals add losses of their own."""

    dataset = MaskedPairs
    calls = MaskedSignalCalls
    against = (
        Against("mlm_acc", TOKENS, "mlm_acc_unigram", "always guessing the most frequent word"),
        Against("mlm_acc", TOKENS, "mlm_acc_wrong_image", "with a wrong picture", "uses the picture"),
        Against("mim_mse", PATCHES, "mim_mse_mean_baseline", "painting the mean of the neighbours", lower=True),
        Against("mim_mse", PATCHES, "mim_mse_wrong_caption", "with a wrong caption", "uses the caption", lower=True),
    )
    glimpse = glimpse

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        task = self.settings
        self.main_loss = "mlm_loss" if task.mlm_weight else "mim_mse" if task.mim_weight else None
        if task.mlm_weight:
            self.token_head = TokenHead(config.model.embed_dim, sizes.vocab_size)
        if task.mim_weight:
            block = config.model if isinstance(config.model, EveModelConfig) else EveModelConfig()
            shape = {"depth": task.decoder_depth, "dim": task.decoder_dim, "num_heads": task.decoder_num_heads}
            self.pixel_decoder = PixelDecoder(config.model.embed_dim, config.input.patch_dim, block, **shape)

    @property
    def leaves_unused(self) -> bool:
        """Whether rows hold one modality alone, so that the other's parameters get no gradient."""
        return self.config.data.rows != "pairs"

    def before_step(self, micro_batches: list[Any]) -> list[Any]:
        """Tell each micro-batch how many tokens those of this step mask on average."""
        if isinstance(micro_batches[0], MaskedTexts):
            mean = mean_masked(micro_batches)
            micro_batches = [dataclasses.replace(batch, num_targets=mean) for batch in micro_batches]
        return super().before_step(micro_batches)

    def masked_losses(self, batch: MaskedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor], Routers]:
        """Return the losses `mim` and `mlm`, as far as they have a weight and rows for it, scalars for the log and the
        routers."""
        task, losses, terms, routers = self.settings, {}, {}, []
        joint = self.encode(batch, keep=True, mask=True) if task.joint_masking else None
        if task.mim_weight and isinstance(batch, MaskedPictures):
            encoded = joint or self.encode(batch, keep=True)
            routers += encoded.routers
            target_BMX = take(self.targets(self.patches(batch)), batch.hidden_BM)
            losses["mim"] = objectives.masked_pixels(self.predict_pixels(encoded, batch), target_BMX)
        if task.mlm_weight and isinstance(batch, MaskedTexts):
            encoded = joint or self.encode(batch, mask=True)
            routers += encoded.routers if joint is None else []
            logits_MV = self.predict_tokens(encoded, batch)
            targets_M = batch.ids_BT[batch.is_masked_BT]
            num_targets = mean_masked([batch]) if batch.num_targets is None else batch.num_targets
            losses["mlm"] = objectives.masked_tokens(logits_MV, targets_M, num_targets)
            terms["mlm_acc"] = (logits_MV.argmax(-1) == targets_M).sum() / num_targets
        return losses, terms, routers

    def patches(self, batch: MaskedPictures) -> Tensor:
        """Return the patches of the pictures (B, P, X), in [-1, 1]."""
        return patchify(batch.pixels(), self.config.input.patch_size)

    def encode(self, batch: MaskedBatch, *, keep: bool = False, mask: bool = False) -> Encoded:
        """Encode what a batch holds with only the kept patches (`keep`) and/or with [MASK] for masked tokens (`mask`)."""
        image = text = None
        if isinstance(batch, MaskedPictures):
            image = self.encoder.image(batch.pixels(), batch.keep_BK if keep else None)
        if isinstance(batch, MaskedTexts):
            ids_BT = batch.ids_BT.masked_fill(batch.is_masked_BT, self.sizes.mask_id) if mask else batch.ids_BT
            text = self.encoder.text(ids_BT, batch.is_padding_BT)
        return self.encoder.encode(image, text)

    def predict_pixels(self, encoded: Encoded, batch: MaskedPictures) -> Tensor:
        """Return the hidden patches (B, M, X) in the space of the targets."""
        return self.pixel_decoder(encoded, batch.keep_BK, batch.hidden_BM)

    def predict_tokens(self, encoded: Encoded, batch: MaskedTexts) -> Tensor:
        """Return logits (M, V) of the masked tokens alone, in the order of batch.is_masked_BT."""
        return self.token_head(encoded.text_BTD[batch.is_masked_BT])

    def rebuild(self, batch: MaskedPictures) -> Tensor:
        """Return the patches (B, P, X) with the hidden ones predicted, the others as they were.

        Where targets are normalised per patch, predictions are scaled back with the hidden patches' true mean and standard
        deviation, as in the pictures of MAE.
        """
        patches_BPX = self.patches(batch)
        encoded = self.encode(batch, keep=True, mask=self.settings.joint_masking)
        predicted_BMX = self.predict_pixels(encoded, batch)
        if self.settings.normalize_targets:
            mean, std = objectives.patch_statistics(take(patches_BPX, batch.hidden_BM))
            predicted_BMX = predicted_BMX * std + mean
        return put(patches_BPX, batch.hidden_BM, predicted_BMX)

    def targets(self, patches_BPX: Tensor) -> Tensor:
        """Return what is to be predicted for each patch: its pixels, raw or normalised per patch."""
        if not self.settings.normalize_targets:
            return patches_BPX
        mean, std = objectives.patch_statistics(patches_BPX)
        return (patches_BPX - mean) / std

    @torch.no_grad()
    def evaluated(self, loader: Iterable[MaskedBatch]) -> Evaluated:
        """Return the numbers of `metrics.masked_signal` over all processes; deterministic."""
        sums = metrics.Sums()
        for batch in loader:
            self.add_to(sums, batch)
        sums = metrics.Sums.whole(gather_objects(sums))
        row_scores = {row: float(right / count) for row, (right, count) in sums.by_row("mlm_acc").items()}
        return Evaluated(numbers=sums.result(), row_scores=row_scores)

    def add_to(self, sums: metrics.Sums, batch: MaskedBatch) -> None:
        """Evaluate one batch and, of pairs, with a wrong partner too."""
        task = self.settings
        if task.mlm_weight and isinstance(batch, MaskedTexts):
            targets_M, row_M = batch.ids_BT[batch.is_masked_BT], batch.is_masked_BT.nonzero()[:, 0]
            rows = cast("dict[str, Any]", {"mlm_acc": batch})
            if isinstance(batch, PairBatch) and batch.wrong is not None:
                rows["mlm_acc_wrong_image"] = dataclasses.replace(batch, images_BCHW=batch.wrong.images_BCHW)
            for name, each in rows.items():
                encoded = self.encode(each, keep=task.joint_masking, mask=True)
                sums.add_tokens(name, self.predict_tokens(encoded, batch), targets_M, row_M, batch.where)
        if task.mim_weight and isinstance(batch, MaskedPictures):
            patches_BPX, rows = self.patches(batch), cast("dict[str, Any]", {"mim_mse": batch})
            hidden_BMX = take(self.targets(patches_BPX), batch.hidden_BM)
            if isinstance(batch, PairBatch) and batch.wrong is not None:
                rows["mim_mse_wrong_caption"] = batch.with_text_of(batch.wrong)
            for name, each in rows.items():
                encoded = self.encode(each, keep=True, mask=task.joint_masking)
                sums.add_pixels(name, self.predict_pixels(encoded, batch), hidden_BMX, batch.where)
            neighbours_BMX, image_BMX = metrics.visible_means(patches_BPX, batch.keep_BK, batch.hidden_BM)
            for name, guess_BMX in (("mim_mse_mean_baseline", neighbours_BMX), ("mim_mse_image_mean", image_BMX)):
                # of targets normalised per patch, a patch's own mean is 0: the best that any single colour could do
                guess_BMX = torch.zeros_like(guess_BMX) if task.normalize_targets else guess_BMX
                sums.add_pixels(name, guess_BMX, hidden_BMX, batch.where)

    def routers(self, batch: MaskedBatch) -> Routers:
        """Return what the routers do in each pass that masks; in one over the whole pair where training masks nothing."""
        task = self.settings
        has_pictures, has_texts = isinstance(batch, MaskedPictures), isinstance(batch, MaskedTexts)
        passes = [(True, False)] if task.mim_weight and has_pictures else []
        passes += [(False, True)] if task.mlm_weight and has_texts else []
        passes = [(True, True)] if task.joint_masking else passes or [(False, False)]
        return [routers for keep, mask in passes for routers in self.encode(batch, keep=keep, mask=mask).routers]

    @property
    def missing_head(self) -> str | None:
        """What `outputs` needs and this run lacks, in words."""
        return None if self.settings.mlm_weight else "the head for tokens, but task.mlm_weight is 0"

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `logits` (B, T, V) of texts with [MASK] where a token is hidden, beside whole pictures.

        labels: int64 (B, T), the hidden tokens, -100 elsewhere; the loss is their mean cross-entropy in nats.
        """
        image, text = self.encoder.image(tensors["pixels"]), self.encoder.text(tensors["ids"], tensors["is_padding"])
        encoded = self.encoder.encode(image, text)
        logits_BTV = self.token_head(encoded.text_BTD)
        if labels is None:
            return {"logits": logits_BTV}
        is_masked_BT = labels != IGNORED
        loss = objectives.masked_tokens(logits_BTV[is_masked_BT], labels[is_masked_BT], is_masked_BT.sum().clamp(min=1))
        # of the weighted sum, transformers wants the tokens' loss and the balance loss alone
        loss = loss + self.output({}, encoded.routers).loss
        return {"loss": loss, "logits": logits_BTV}

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of each part of a step."""
        task, D, rows = self.settings, self.config.model.embed_dim, self.config.data.rows
        num_image, T = pair_tokens(self.config)
        P = num_image - 1
        num_hidden = min(max(round(P * task.image_mask_ratio), 1), P - 1)
        num_masked = max(1, round((T - 1) * task.text_mask_ratio))
        num_seen, num_read = num_image - num_hidden, T * (rows != "pictures")
        flops: dict[str, float] = {}
        if task.mim_weight:
            flops["image pass"] = self.encoder.flops(num_seen, num_read)
            flops["pixel decoder"] = self.pixel_decoder.flops(num_seen + num_read, num_hidden)
        if task.mlm_weight:
            if not task.joint_masking:
                flops["text pass"] = self.encoder.flops(num_image * (rows != "texts"), T)
            flops["token head"] = 2 * num_masked * D * (D + self.sizes.vocab_size)
        return flops


class MaskedSignal(MaskedSignalTask[MaskedSignalConfig]):
    """EVE's pre-training."""

    section = MaskedSignalConfig

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        initialize(self, config.model)

    def forward(self, batch: MaskedBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.mim_weight, task.mlm_weight, the model's balance weight)."""
        losses, terms, routers = self.masked_losses(batch)
        return self.output(losses, routers, **terms)


def mean_masked(micro_batches: Sequence[MaskedTexts]) -> Tensor:
    """Return how many tokens a micro-batch of a step masks on average, over all processes, at least 1 in all: float32 scalar.

    Losses are divided by it, so that gradients that are averaged over micro-batches and processes are those of the whole batch.
    """
    count = sum_over_processes(torch.stack([batch.is_masked_BT.sum().float() for batch in micro_batches]).sum())
    return count.clamp(min=1) / (world_size() * len(micro_batches))
