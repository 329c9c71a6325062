"""Report pages of masked signal modelling: reconstructions and guessed tokens.

Letters: B batch, P patches, M masked patches or tokens, T tokens, X values in a patch,
V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.model.patches import gray_out, to_images
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.number_formats import number
from eve_vl.pages.numbers import Card, NumberGroup, cards_of, draw_numbers
from eve_vl.pages.rendering import Section, draw
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.examples import Choice, Example, best_choices
from eve_vl.tasks.masked_signal.caption_pieces import Piece, caption_pieces
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.task import MaskedSignalTask
from eve_vl.tasks.report import Measured, TaskReport
from eve_vl.tasks.run import Run
from eve_vl.utils.frozen import Frozen

TEMPLATE = Path(__file__).with_name("examples.html")
NUM_GUESSES = 5
TOKEN_BASELINES = {
    "mlm_acc_wrong_image": "The same with another pair's image: what the visible tokens give away.",
    "mlm_acc_unigram": "Baseline: always the most frequent masked token.",
}
PIXEL_BASELINES = {
    "mim_mse_wrong_caption": "The same with another pair's caption: what the visible patches give "
    "away.",
    "mim_mse_mean_baseline": "Baseline: each masked patch has the mean colour of the visible "
    "patches around it.",
    "mim_mse_image_mean": (
        "Baseline: every masked patch has the mean colour of all visible patches."
    ),
}

ImagesByName = dict[str, list[np.ndarray]]


class MaskedToken(Frozen):
    """One masked token with the model's guesses."""

    truth: str
    guesses: list[Choice]
    """Best guesses with the right image, best first."""
    wrong_image: Choice | None
    """Best guess with the wrong image; None for texts without images."""
    truth_probability: tuple[float, float]
    """Probability of the true token with the right and with the wrong image."""


class MaskedExample(Example):
    """One validation row; `images` are those of the image pass, if trained."""

    pieces: Sequence[Piece]
    wrong_caption: str
    with_wrong_caption: Mapping[str, np.ndarray]
    """Image reconstructed with the wrong caption."""
    seen_by_text: Mapping[str, np.ndarray]
    """Right and wrong image as the text pass saw them: masked if one pass masks both modalities."""
    masked_tokens: Sequence[MaskedToken]


@dataclass
class BatchImages:
    """Image name → the images of a batch's rows; empty without such images."""

    inputs: ImagesByName = field(default_factory=dict)
    reconstructed: ImagesByName = field(default_factory=dict)
    with_wrong_caption: ImagesByName = field(default_factory=dict)
    seen_by_text: ImagesByName = field(default_factory=dict)


class MaskedSignalReport(TaskReport):
    """Numbers and examples with right and wrong partners, next to trivial guesses."""

    name = "masked_signal"
    title = "Images and captions"
    row = "pair"
    passes = " (masked as in validation)"
    num_examples = 8
    losses = (
        Loss(
            "mlm", "Masked-token loss", "Cross-entropy of the masked tokens, in nats.", "mlm_loss"
        ),
        Loss("mim", "Masked-pixel loss", "Mean squared error of the masked patches.", "mim_mse"),
    )
    example_fields = ("task.image_mask_ratio", "task.text_mask_ratio", "task.joint_masking")

    task: MaskedSignalTask[MaskedSignalConfig]

    def __init__(self, run: Run, evaluate: Callable[..., Evaluated]):
        super().__init__(run, evaluate)
        self.modality = run.config.data.modality
        self.has_pairs = self.modality == "image_text"
        if not self.has_pairs:
            self.row = self.modality
            self.passes = ""

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers next to those of wrong partners and of trivial guesses, as HTML."""
        if not self.has_pairs:
            return super().numbers(measured)
        return draw_numbers(self.number_groups(measured.values))

    def charts(self, curves: Curves) -> list[Markup]:
        """Return charts of the numbers; of rows without partners, of everything in the log."""
        if not self.has_pairs:
            return super().charts(curves)
        return self.pair_charts(curves)

    def number_groups(self, values: Mapping[str, float]) -> list[NumberGroup]:
        """Return the numbers of masked tokens and of masked pixels."""
        settings = self.task.settings
        if "mlm_acc" in values:
            tokens = token_group(values)
        else:
            tokens = without_numbers("Masked tokens", "mlm_weight", settings.mlm_weight)
        if "mim_mse" in values:
            pixels = pixel_group(values, is_normalized=settings.normalize_targets)
        else:
            pixels = without_numbers("Masked pixels", "mim_weight", settings.mim_weight)
        return [tokens, pixels]

    def pair_charts(self, curves: Curves) -> list[Markup]:
        """Return the charts of the numbers with right and wrong partners."""
        accuracies = [
            curves.val("mlm_acc", "right image"),
            curves.val("mlm_acc_wrong_image", "wrong image"),
            curves.val("mlm_acc_unigram", "most frequent token", is_reference=True),
        ]
        errors = [
            curves.val("mim_mse", "right caption"),
            curves.val("mim_mse_wrong_caption", "wrong caption"),
            curves.val("mim_mse_mean_baseline", "mean of patches around", is_reference=True),
            curves.val("mim_mse_image_mean", "mean of image", is_reference=True),
        ]
        note = "Validation, mean squared error; lower is better."
        return [
            curves.shares("Masked-token accuracy", accuracies),
            curves.chart("Masked-pixel error", errors, note),
        ]

    def example_sections(self, num_examples: int) -> list[Section]:
        """Return the sections of images and of captions, if the rows have them."""
        examples = self.examples_to_compare(num_examples)
        titles = {"images": "Images", "captions": "Masked captions"}
        if self.modality == "image":
            titles = {"images": "Images"}
        elif self.modality == "text":
            titles = {"captions": "Masked texts"}
        sections = []
        for name, title in titles.items():
            body = draw(
                TEMPLATE,
                name,
                examples=examples,
                settings=self.task.settings,
                modality=self.modality,
            )
            sections.append(Section(name, title, body))
        return sections

    @torch.inference_mode()
    def examples_to_compare(self, num_rows: int) -> list[MaskedExample]:
        """Return evenly spread validation rows with the model's output in float32."""
        batch = next(self.batches(self.dataset(num_rows)))
        images = self.batch_images(batch)
        no_tokens: list[list] = [[] for _ in batch.where]
        ids = no_tokens
        is_masked = no_tokens
        masked_tokens = no_tokens
        if isinstance(batch, MaskedTexts):
            ids = batch.ids_BT.tolist()
            is_masked = batch.is_masked_BT.tolist()
            if self.task.settings.mlm_weight:
                masked_tokens = self.guesses(batch)

        tokenizer = self.run.tokenizer
        examples = []
        for row, where in enumerate(batch.where):
            wrong_caption = ""
            if isinstance(batch, PairBatch) and batch.wrong is not None:
                wrong_caption = tokenizer.decode(batch.wrong.ids_BT[row].tolist())
            example = MaskedExample(
                where=where,
                images=images_of_row(images.inputs, row),
                text=tokenizer.decode(ids[row]),
                choices=[first_guess(token) for token in masked_tokens[row]],
                output_images=images_of_row(images.reconstructed, row),
                with_wrong_caption=images_of_row(images.with_wrong_caption, row),
                pieces=caption_pieces(tokenizer, ids[row], is_masked[row]),
                wrong_caption=wrong_caption,
                seen_by_text=images_of_row(images.seen_by_text, row),
                masked_tokens=masked_tokens[row],
            )
            examples.append(example)
        return examples

    def batch_images(self, batch: MaskedImages | MaskedTexts) -> BatchImages:
        """Return the images of a batch, reconstructed also with wrong captions."""
        task = self.task
        images = BatchImages()
        wrong = batch.wrong if isinstance(batch, PairBatch) else None
        if isinstance(batch, MaskedImages) and task.settings.mim_weight:
            reconstructions = task.reconstructions(batch)
            images.reconstructed["reconstructed"] = reconstructions.pop("reconstructed")
            images.inputs = reconstructions
            if isinstance(batch, PairBatch) and wrong is not None:
                reconstructions = task.reconstructions(batch.with_text_of(wrong))
                images.with_wrong_caption["wrong caption"] = reconstructions["reconstructed"]
        if isinstance(batch, PairBatch) and wrong is not None:
            for name, pairs in (("image", batch), ("wrong image", wrong)):
                patches_BPX = task.patches(pairs)
                if task.settings.joint_masking:
                    patches_BPX = gray_out(patches_BPX, batch.hidden_BM)
                patch_size = self.run.config.input.patch_size
                images.seen_by_text[name] = to_images(patches_BPX, patch_size)
        return images

    def guesses(self, batch: MaskedTexts) -> list[list[MaskedToken]]:
        """Return each row's masked tokens with guesses, of pairs also by the wrong image."""
        tokenizer = self.run.tokenizer
        probability_MV = self._token_probabilities(batch, batch)
        wrong_MV = None
        if isinstance(batch, PairBatch) and batch.wrong is not None:
            with_wrong_images = replace(batch, images_BCHW=batch.wrong.images_BCHW)
            wrong_MV = self._token_probabilities(with_wrong_images, batch)

        tokens: list[list[MaskedToken]] = [[] for _ in batch.where]
        rows, columns = batch.is_masked_BT.nonzero(as_tuple=True)
        truths = batch.ids_BT[rows, columns].tolist()
        for m, (row, truth) in enumerate(zip(rows.tolist(), truths, strict=True)):
            right_V = probability_MV[m]
            wrong_V = right_V if wrong_MV is None else wrong_MV[m]
            wrong_guess = None
            if wrong_MV is not None:
                wrong_guess = best_choices(wrong_V, NUM_GUESSES, tokenizer.word, truth.__eq__)[0]
            token = MaskedToken(
                truth=tokenizer.word(truth),
                guesses=best_choices(right_V, NUM_GUESSES, tokenizer.word, truth.__eq__),
                wrong_image=wrong_guess,
                truth_probability=(right_V[truth].item(), wrong_V[truth].item()),
            )
            tokens[row].append(token)
        return tokens

    def _token_probabilities(self, inputs: MaskedTexts, batch: MaskedTexts) -> torch.Tensor:
        """Return the probabilities (M, V) of the masked tokens of a batch, given some inputs."""
        encoded = self.task.encode(inputs, keep=self.task.settings.joint_masking, mask=True)
        return self.task.predict_tokens(encoded, batch).float().softmax(-1).cpu()


def token_group(values: Mapping[str, float]) -> NumberGroup:
    """Return the accuracy of masked tokens."""
    sentence = "Share of masked tokens that the model predicts with the caption's own image."
    accuracy = Card("mlm_acc", values["mlm_acc"], sentence, is_main=True)
    return NumberGroup("Masked tokens", [accuracy, *cards_of(values, TOKEN_BASELINES)])


def pixel_group(values: Mapping[str, float], *, is_normalized: bool) -> NumberGroup:
    """Return the error of masked patches; bars are relative to the largest error."""
    pixels = "pixels normalised per patch" if is_normalized else "pixels from −1 to 1"
    sentences = {
        "mim_mse": f"Mean squared error of the masked patches ({pixels}) with the image's own "
        "caption.",
        **PIXEL_BASELINES,
    }
    largest = max(values[name] for name in sentences) or 1
    cards = []
    for name, sentence in sentences.items():
        card = Card(
            name,
            values[name],
            sentence,
            is_main=name == "mim_mse",
            show=number,
            bar=values[name] / largest,
        )
        cards.append(card)
    return NumberGroup("Masked pixels", cards, "Lower is better.")


def without_numbers(title: str, field_name: str, weight: float) -> NumberGroup:
    """Return a group with the reason why it has no numbers."""
    if weight:
        return NumberGroup(title, missing="There are no numbers for this part.")
    sentence = Markup("This run does not train this part (<code>task.{}</code> is 0).")
    return NumberGroup(title, missing=sentence.format(field_name))


def images_of_row(images: ImagesByName, row: int) -> dict[str, np.ndarray]:
    """Return the images of one row of a batch, by name."""
    return {name: images_of_rows[row] for name, images_of_rows in images.items()}


def first_guess(token: MaskedToken) -> Choice:
    """Return the best guess, with the true token before it."""
    guess = token.guesses[0]
    return replace(guess, text=f"{token.truth} → {guess.text}")
