"""Predictors of the tasks.

Calls: answer, verify, classify, match, zero_shot, fill_mask, reconstruct, explain.

Letters: B batch, A answers, C classes, n images, m texts, P patches, K kept patches, M masked tokens, T text tokens, V
vocabulary.
"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from eve_vl.config import (
    ClassificationConfig,
    ContrastMatchConfig,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    VQAConfig,
)
from eve_vl.data.batches import normalize
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.evaluation.zero_shot import ClassScore, read_prompts
from eve_vl.evaluation.zero_shot import ZeroShot as PromptScorer
from eve_vl.metrics.vqa import normalize as normalize_answer
from eve_vl.predict.base import Predictor, best_classes
from eve_vl.predict.explain import CLS, Evidence, Heatmap, heatmap
from eve_vl.predict.inputs import (
    GivenImage,
    chunked,
    given_image,
    given_images,
    given_text,
    given_texts,
    in_batches,
    listed,
)
from eve_vl.predict.requests import (
    Answer,
    Classify,
    Explain,
    FillMask,
    Match,
    Reconstruct,
    Verify,
    ZeroShot,
)
from eve_vl.tasks.classifiers import NLVR2, VQA, Classification
from eve_vl.tasks.retrieval import ContrastMatch, ContrastTask
from eve_vl.utils.errors import UserError, nearest, printable
from eve_vl.utils.frozen import Frozen


class ScoredAnswer(Frozen):
    """An answer of the run's list with its probability of being right."""

    answer: str
    probability: float

    def __str__(self) -> str:
        return f"{self.probability:7.4f}  {printable(self.answer)}"


class Judgement(Frozen):
    """Whether a statement is true, with the probability that the statement is true."""

    is_true: bool
    probability: float

    def __str__(self) -> str:
        return f"{str(self.is_true).lower()} (probability of being true {self.probability:.4f})"


class ScoredLabel(Frozen):
    """A label with its probability of being right."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.probability:7.4f}  {printable(self.label)}"


class VQAPredictor(Predictor):
    """Calls of a VQA run."""

    section = VQAConfig
    task: VQA

    @torch.no_grad()
    def answer(
        self, asked: Answer, batch_size: int = 64
    ) -> list[ScoredAnswer] | list[list[ScoredAnswer]]:
        """Return the best answers of each row."""

        def best(
            images: Sequence[GivenImage], questions: Sequence[str]
        ) -> list[list[ScoredAnswer]]:
            probability_BA = self.task.probabilities(
                self.task.predict(self.inputs.pairs(images, questions))[0]
            )
            rows = (best_classes(probability_A, asked.top) for probability_A in probability_BA)
            return [
                [ScoredAnswer(answer=self.task.answers[a], probability=value) for a, value in row]
                for row in rows
            ]

        return in_batches(
            best, batch_size, (given_images, asked.image), (given_texts, asked.question)
        )

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch, known = self.inputs.pairs(images, [text]), [None]
        if answer is not None and not (
            known := self.task.answer_ids.get(normalize_answer(answer), ())
        ):
            raise UserError(f"no answer {nearest(answer, self.task.answers)}")
        return self._label_evidence(lambda task: task.predict(batch)[0], known[0], "answer")


class NLVR2Predictor(Predictor):
    """Calls of an NLVR2 run."""

    section = NLVR2Config
    task: NLVR2
    num_images = 2

    @torch.no_grad()
    def verify(self, asked: Verify, batch_size: int = 64) -> Judgement | list[Judgement]:
        """Return whether each statement is true."""

        def judged(*columns: Sequence[Any]) -> list[Judgement]:
            probability_B = self.task.predict(self.inputs.statements(*columns))[0].softmax(1)[:, 1]
            return [
                Judgement(is_true=value > 0.5, probability=value)
                for value in probability_B.tolist()
            ]

        left, right = (partial(given_images, where=f"{side} image") for side in ("left", "right"))
        return in_batches(
            judged,
            batch_size,
            (left, asked.left),
            (right, asked.right),
            (given_texts, asked.statement),
        )

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.statements(images[:1], images[1:], [text])
        return Evidence(
            logits=lambda task: task.predict(batch)[0], classes=[1], words="the label true"
        )


class ClassificationPredictor(Predictor):
    """Calls of a classification run."""

    section = ClassificationConfig
    task: Classification

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return ("classify",) if self.task.settings.inputs == "text" else ("classify", "explain")

    @torch.no_grad()
    def classify(
        self, asked: Classify, batch_size: int = 64
    ) -> list[ScoredLabel] | list[list[ScoredLabel]]:
        """Return the most probable labels of each row."""
        reads = self.task.settings.inputs
        for what, value in (("image", asked.image), ("text", asked.text)):
            if (value is not None) != (reads in (what, "both")):
                raise UserError(
                    f"classify: this run reads {reads}; {'give' if value is None else 'leave out'} the {what}"
                )
        given = (given_images, asked.image), (given_texts, asked.text)

        def best(*columns: Sequence[Any]) -> list[list[ScoredLabel]]:
            tensors = [self.inputs.images(columns[0])] if asked.image is not None else []
            tensors += self.inputs.texts(columns[-1]) if asked.text is not None else ()
            classes = (
                best_classes(row_C, asked.top)
                for row_C in self.task.probabilities(self.task.logits(*tensors)[0])
            )
            return [
                [
                    ScoredLabel(label=self.task.sizes.labels[c], probability=value)
                    for c, value in row
                ]
                for row in classes
            ]

        return in_batches(best, batch_size, *(one for one in given if one[1] is not None))

    def explain(self, asked: Explain) -> Heatmap:
        """Return where in the image the run finds evidence for a label.

        In a run that reads images only, the image's [CLS] attends, by default in the last block, after which the head reads it.
        """
        if self.task.settings.inputs == "both":
            return super().explain(asked)
        if asked.text or asked.word is not None or asked.right is not None:
            raise UserError("explain: this run reads images only; leave out text, word and right")
        image = asked.image
        images = [
            given_image(image[0] if isinstance(image, list | tuple) and len(image) == 1 else image)
        ]
        block = -1 if asked.block is None else asked.block
        return heatmap(
            self.task,
            self._evidence(images, "", None, asked.answer),
            images,
            None,
            word=CLS,
            block=block,
        )

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        labels, tensors = (
            self.task.sizes.labels,
            (self.inputs.images(images), *(self.inputs.texts([text]) if text else ())),
        )
        if answer is not None and answer not in labels:
            raise UserError(f"no label {nearest(answer, labels)}")
        chosen = None if answer is None else labels.index(answer)
        return self._label_evidence(lambda task: task.logits(*tensors)[0], chosen, "label")


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

        def guessed(images: Sequence[GivenImage], texts: Sequence[str]) -> list[FilledText]:
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

        return in_batches(
            guessed, batch_size, (given_images, asked.image), (given_texts, asked.text)
        )

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
        ids_T, is_special_T = self.inputs.tokens(given_text(asked.text))
        masks = (
            [mask_tokens(is_special_T, settings.text_mask_ratio, rng)]
            if settings.joint_masking
            else None
        )
        batch = self.inputs.masked_pairs(
            [given_image(asked.image)], [ids_T], masks=masks, keep_K=keep_K
        )
        return Reconstruction(
            **{name: images[0] for name, images in self.task.reconstructions(batch).items()}
        )

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
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


class ContrastPredictor(Predictor):
    """Calls of a run with contrast or a matching head."""

    section = RetrievalConfig
    task: ContrastTask[Any]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return (
            ("match", "zero_shot", "explain")
            if self.task.contrast.match_head is not None
            else ("zero_shot",)
        )

    def zero_shot(
        self, asked: ZeroShot, batch_size: int = 64
    ) -> list[ClassScore] | list[list[ClassScore]]:
        """Return the best classes of each image."""
        scorer = PromptScorer(
            self.task, self.inputs.tokenizer, read_prompts(asked.prompts)[0], asked.by
        )
        given = given_images, asked.image
        return in_batches(
            lambda images: scorer.best(self.inputs.images(images), asked.top), batch_size, given
        )

    @torch.no_grad()
    def match(self, asked: Match, batch_size: int = 64) -> float | np.ndarray:
        """Return the probability of each pair, float32 (n, m); each image is encoded once."""
        images, texts = given_images(asked.image), given_texts(asked.text)
        ids = [self.inputs.texts(chunk) for chunk in chunked(texts, batch_size)]
        rows = [np.zeros((0, len(texts)), np.float32)]
        for chunk in chunked(images, max(1, batch_size // max(len(texts), 1))):
            tokens = self.task.encoder.image(normalize(self.inputs.images(chunk)))
            found = [
                self.task.match_each(tokens, *texts).softmax(2)[:, :, 1].cpu().numpy()
                for texts in ids
            ]
            rows.append(np.hstack([np.zeros((len(chunk), 0), np.float32), *found]))
        is_one = listed(asked.image) is None and listed(asked.text) is None
        return float(rows[1][0, 0]) if is_one else np.vstack(rows)

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        batch = self.inputs.pairs(images, [text])
        pair = batch.images_BCHW, batch.ids_BT, batch.is_padding_BT
        return Evidence(logits=lambda task: task.match(*pair)[0], classes=[1], words="the match")


class ContrastMatchPredictor(MaskedSignalPredictor, ContrastPredictor):
    """Calls of a run pre-trained by contrast, matching and masked signals."""

    section = ContrastMatchConfig
    task: ContrastMatch  # pyright: ignore[reportIncompatibleVariableOverride]

    def offered(self) -> tuple[str, ...]:
        """Return the calls that the run's heads allow."""
        return tuple(
            dict.fromkeys(ContrastPredictor.offered(self) + MaskedSignalPredictor.offered(self))
        )

    def _evidence(
        self, images: list[GivenImage], text: str, positions: list[int] | None, answer: str | None
    ) -> Evidence:
        masks_word = self.task.settings.mlm_weight and positions is not None
        kind = (
            MaskedSignalPredictor
            if masks_word or self.task.contrast.match_head is None
            else ContrastPredictor
        )
        return kind._evidence(self, images, text, positions, answer)
