"""The calls of pre-trained runs: fill in masked tokens, reconstruct patches."""

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.predict.batching import in_batches
from eve_vl.predict.heatmap import Evidence
from eve_vl.predict.inputs import UserImage, user_image, user_text
from eve_vl.predict.user_images import user_images
from eve_vl.predict.user_texts import user_texts
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.requests import FillMask, Reconstruct
from eve_vl.tasks.predictor import Predictor, best_classes
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.frozen import Frozen


class Guess(Frozen):
    """A token as text, and its probability over the whole vocabulary."""

    text: str
    probability: float


class FilledText(Frozen):
    """A caption with its masks filled, and the guesses for each mask, best first."""

    text: str
    guesses: tuple[tuple[Guess, ...], ...]

    def __str__(self) -> str:
        lines = [
            f"[MASK] {number}: "
            + ", ".join(f"{guess.text} {guess.probability:.4f}" for guess in guesses)
            for number, guesses in enumerate(self.guesses, start=1)
        ]
        return "\n".join(map(printable, [self.text, *lines]))


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
        task = self.task.settings
        return ("fill_mask", "explain") * bool(task.mlm_weight) + ("reconstruct",) * bool(
            task.mim_weight
        )

    def how_to_get(self, call: str) -> str | None:
        """Return how to train a run of this task that allows a call.

        None if no run of it does.
        """
        weight = {
            "fill_mask": "mlm_weight",
            "explain": "mlm_weight",
            "reconstruct": "mim_weight",
        }.get(call)
        flag = f"--task.{weight}".replace("_", "-")
        return (
            weight
            and f"eve pretrain with {flag} 1 (here it is {getattr(self.task.settings, weight):g}) and another --out"
        )

    @torch.no_grad()
    def fill_mask(self, asked: FillMask, batch_size: int = 64) -> FilledText | list[FilledText]:
        """Return the best tokens for each "[MASK]" of each row."""

        def guessed(images: Sequence[UserImage], texts: Sequence[str]) -> list[FilledText]:
            ids, masks = zip(*map(self._with_masks, texts), strict=True)
            batch, word = (
                self.inputs.masked_pairs(images, ids, masks=masks),
                self.inputs.tokenizer.word,
            )
            probability_MV = self.task.predict_tokens(
                self.task.encode(batch, mask=True), batch
            ).softmax(1)
            classes = (best_classes(row_V, asked.top) for row_V in probability_MV)
            rows = (tuple(Guess(text=word(v), probability=p) for v, p in row) for row in classes)
            guesses = [tuple(islice(rows, text.count(MASK_TEXT))) for text in texts]
            first = (guess.text for of_text in guesses for guess, *_ in of_text)
            filled = (re.sub(re.escape(MASK_TEXT), lambda _: next(first), text) for text in texts)
            return [
                FilledText(text=text, guesses=of_text)
                for text, of_text in zip(filled, guesses, strict=True)
            ]

        return in_batches(guessed, batch_size, (user_images, asked.image), (user_texts, asked.text))

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
                f"a {MASK_TEXT} lies beyond the {limit} tokens that this run reads; shorten the text"
            )
        return ids_T, is_masked_T

    @torch.no_grad()
    def reconstruct(self, asked: Reconstruct) -> Reconstruction:
        """Return an image with patches masked and reconstructed.

        They are reconstructed from the others and the caption.
        """
        sizes, settings = self.inputs.config, self.task.settings
        P = sizes.num_patches
        ratio = settings.image_mask_ratio if asked.share is None else asked.share
        if not 0 < ratio < 1:
            raise UserError(f"share {asked.share} is not in (0, 1)")
        if asked.seed < 0:
            raise UserError(f"seed {asked.seed} is negative")
        rng = generator(asked.seed)
        keep_K = (
            mask_patches(P, ratio, rng)[0]
            if asked.keep is None
            else np.unique(np.array(asked.keep, dtype=np.int64))
        )
        if not 0 < len(keep_K) < P or keep_K[0] < 0 or keep_K[-1] >= P:
            raise UserError(
                f"keep {asked.keep}: give at least one of the patches 0 to {P - 1}, and not all of them"
            )
        ids_T, is_special_T = self.inputs.tokens(user_text(asked.text))
        masks = (
            [mask_tokens(is_special_T, settings.text_mask_ratio, rng)]
            if settings.joint_masking
            else None
        )
        batch = self.inputs.masked_pairs(
            [user_image(asked.image)], [ids_T], masks=masks, keep_K=keep_K
        )
        return Reconstruction(
            **{name: images[0] for name, images in self.task.reconstructions(batch).items()}
        )

    def _evidence(
        self, images: list[UserImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        if positions is None:
            raise UserError(
                "explain: a pre-trained run explains a masked word; name a word of the text with --word (word=)"
            )
        tokenizer, ids_T = self.inputs.tokenizer, self.inputs.tokens(text)[0]
        is_masked_T = np.isin(np.arange(len(ids_T)), positions)
        batch = self.inputs.masked_pairs(images, [ids_T], masks=[is_masked_T])
        return Evidence(
            logits=lambda task: task.predict_tokens(task.encode(batch, mask=True), batch),
            classes=batch.ids_BT[batch.is_masked_BT],
            masks_word=True,
            words=f'the masked "{tokenizer.decode(ids_T[is_masked_T])}"',
        )
