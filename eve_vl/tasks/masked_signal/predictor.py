"""The calls of pre-trained runs: fill in masked tokens, reconstruct patches.

Letters: K kept patches, T text tokens, M masked tokens, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.predict.batching import in_batches
from eve_vl.predict.gradcam import Evidence
from eve_vl.predict.user_images import UserImage, user_image, user_images
from eve_vl.predict.user_texts import user_text, user_texts
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.requests import FillMask, Reconstruct
from eve_vl.tasks.predictor import Predictor, best_classes
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.frozen import Frozen

WEIGHT_OF_CALL = {
    "fill_mask": "mlm_weight",
    "explain": "mlm_weight",
    "reconstruct": "mim_weight",
}


class Guess(Frozen):
    """A token as text, and its probability over the whole vocabulary."""

    text: str
    probability: float


class FilledText(Frozen):
    """A caption with its masks filled, and the guesses for each mask, best first."""

    text: str
    guesses: tuple[tuple[Guess, ...], ...]

    def __str__(self) -> str:
        lines = [self.text]
        for number, guesses in enumerate(self.guesses, start=1):
            texts = [f"{guess.text} {guess.probability:.4f}" for guess in guesses]
            lines.append(f"[MASK] {number}: {', '.join(texts)}")
        return "\n".join(map(printable, lines))


class Reconstruction(Frozen):
    """An image as the run reads it, masked in grey, and reconstructed.

    All are uint8 (image_size, image_size, 3).
    """

    original: np.ndarray
    masked: np.ndarray
    reconstructed: np.ndarray

    def __str__(self) -> str:
        return "original, masked, reconstructed"


class MaskedSignalPredictor(Predictor):
    """Calls of a pre-trained run."""

    section = MaskedSignalConfig

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        calls = []
        if self.task.settings.mlm_weight:
            calls += ["fill_mask", "explain"]
        if self.task.settings.mim_weight:
            calls.append("reconstruct")
        return tuple(calls)

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call.

        None if no run of it does.
        """
        weight = WEIGHT_OF_CALL.get(call)
        if weight is None:
            return None
        flag = f"--task.{weight}".replace("_", "-")
        value = getattr(self.task.settings, weight)
        return f"eve pretrain with {flag} 1 (here it is {value:g}) and another --out"

    @torch.no_grad()
    def fill_mask(self, request: FillMask, batch_size: int = 64) -> FilledText | list[FilledText]:
        """Return the best tokens for each "[MASK]" of each row."""

        def fill(images: Sequence[UserImage], texts: Sequence[str]) -> list[FilledText]:
            ids = []
            masks = []
            for text in texts:
                ids_T, is_masked_T = self._with_masks(text)
                ids.append(ids_T)
                masks.append(is_masked_T)
            batch = self.inputs.masked_pairs(images, ids, masks=masks)
            logits_MV = self.task.predict_tokens(self.task.encode(batch, mask=True), batch)
            guesses = [self._guesses(row_V, request.top) for row_V in logits_MV.softmax(1)]
            filled_texts = []
            start = 0
            for text in texts:
                end = start + text.count(MASK_TEXT)
                filled_texts.append(filled(text, guesses[start:end]))
                start = end
            return filled_texts

        return in_batches(
            fill, batch_size, (user_images, request.image), (user_texts, request.text)
        )

    def _guesses(self, probability_V: Tensor, top: int) -> tuple[Guess, ...]:
        guesses = []
        for token, probability in best_classes(probability_V, top):
            text = self.inputs.tokenizer.word(token)
            guesses.append(Guess(text=text, probability=probability))
        return tuple(guesses)

    def _with_masks(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of a text and its mask.

        Raises UserError without a [MASK], or for one beyond the limit.
        """
        limit = self.inputs.config.max_text_tokens
        if MASK_TEXT not in text:
            raise UserError(
                f'nothing to fill in: write {MASK_TEXT} in the text, as in "a {MASK_TEXT} circle"'
            )
        ids_T, _, is_masked_T = self.inputs.tokenizer.encode_with_masks(text, limit)
        if is_masked_T.sum() < text.count(MASK_TEXT):
            raise UserError(
                f"a {MASK_TEXT} lies beyond the {limit} tokens that this run reads; "
                "shorten the text"
            )
        return ids_T, is_masked_T

    @torch.no_grad()
    def reconstruct(self, request: Reconstruct) -> Reconstruction:
        """Return an image with patches masked and reconstructed.

        They are reconstructed from the others and the caption.
        """
        if request.seed < 0:
            raise UserError(f"seed {request.seed} is negative")
        rng = generator(request.seed)
        keep_K = self._patches_to_keep(request, rng)
        ids_T, is_special_T = self.inputs.tokens(user_text(request.text))
        masks = None
        if self.task.settings.joint_masking:
            masks = [mask_tokens(is_special_T, self.task.settings.text_mask_ratio, rng)]
        image = user_image(request.image)
        batch = self.inputs.masked_pairs([image], [ids_T], masks=masks, keep_K=keep_K)
        images = self.task.reconstructions(batch)
        return Reconstruction(
            original=images["original"][0],
            masked=images["masked"][0],
            reconstructed=images["reconstructed"][0],
        )

    def _patches_to_keep(self, request: Reconstruct, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of the visible patches, sorted, int64. Raises UserError."""
        num_patches = self.inputs.config.num_patches
        share = request.share
        if share is None:
            share = self.task.settings.image_mask_ratio
        if not 0 < share < 1:
            raise UserError(f"share {share} is not in (0, 1)")
        if request.keep is None:
            keep_K, _ = mask_patches(num_patches, share, rng)
        else:
            keep_K = np.unique(np.array(request.keep, dtype=np.int64))
        has_right_number = 0 < len(keep_K) < num_patches
        if not has_right_number or keep_K[0] < 0 or keep_K[-1] >= num_patches:
            raise UserError(
                f"keep {request.keep}: give at least one of the patches 0 to {num_patches - 1}, "
                "and not all of them"
            )
        return keep_K

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        if positions is None:
            raise UserError(
                "explain: a pre-trained run explains a masked word; "
                "name a word of the text with --word (word=)"
            )
        ids_T, _ = self.inputs.tokens(text)
        is_masked_T = np.isin(np.arange(len(ids_T)), positions)
        batch = self.inputs.masked_pairs(images, [ids_T], masks=[is_masked_T])
        word = self.inputs.tokenizer.decode(ids_T[is_masked_T])
        return Evidence(
            logits=lambda task: task.predict_tokens(task.encode(batch, mask=True), batch),
            classes=batch.ids_BT[batch.is_masked_BT],
            masks_word=True,
            words=f'the masked "{word}"',
        )


def filled(text: str, guesses: Sequence[tuple[Guess, ...]]) -> FilledText:
    """Return a text with the first guess for each of its masks."""
    first_part, *parts = text.split(MASK_TEXT)
    words = [first_part]
    for mask_guesses, part in zip(guesses, parts, strict=True):
        words += [mask_guesses[0].text, part]
    return FilledText(text="".join(words), guesses=tuple(guesses))
