"""Report pages of masked signal modelling: reconstructions and guessed tokens.

Letters: B batch, P patches, M masked tokens, X values in a patch, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from eve_vl.data.masked_batches import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.patches import gray_out, to_images
from eve_vl.pages.drawing import Choice, Loss, Section, draw
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.task import MaskedSignalTask
from eve_vl.tasks.report import Example, TaskReport, best_choices
from eve_vl.tasks.run import Run
from eve_vl.utils.frozen import Frozen

NUM_GUESSES = 5


GIVEN = ("original", "masked")  # inputs among the images of a reconstruction


class Piece(Frozen):
    """One token of a caption as it reads in place."""

    text: str
    starts_word: bool
    is_masked: bool


class MaskedToken(Frozen):
    """One masked token with the model's guesses."""

    truth: str
    guesses: list[Choice]
    """Best guesses with the right image, best first."""
    wrong_image: Choice | None
    """Best guess with the wrong image; None for texts without images."""
    truth_probability: tuple[float, float]
    """Probability of the true token with the right and with the wrong image."""


class ShownPair(Example):
    """One validation row; `images` are those of the image pass, if trained."""

    pieces: tuple[Piece, ...]
    wrong_caption: str
    with_wrong_caption: Mapping[str, np.ndarray]
    """Image reconstructed with the wrong caption."""
    seen_by_text: Mapping[str, np.ndarray]
    """Right and wrong image as the text pass saw them: masked if one pass masks both modalities."""
    masked_tokens: Sequence[MaskedToken]


class MaskedSignalReport(TaskReport):
    """Numbers and examples with right and wrong partners, next to trivial guesses."""

    name = "masked_signal"
    title, template = "Images and captions", "masked_signal.html"
    row = "pair"
    passes = " (masked as in validation)"
    num_each = 8
    losses = (
        Loss(
            "mlm", "Masked-token loss", "Cross-entropy of the masked tokens, in nats.", "mlm_loss"
        ),
        Loss("mim", "Masked-pixel loss", "Mean squared error of the masked patches.", "mim_mse"),
    )

    task: MaskedSignalTask[MaskedSignalConfig]

    def __init__(self, run: Run, evaluate: Callable[..., Evaluated]):
        super().__init__(run, evaluate)
        if (
            run.config.data.modality != "image_text"
        ):  # rows without partners get the general template
            self.template, self.row, self.passes = (
                TaskReport.template,
                run.config.data.modality,
                TaskReport.passes,
            )

    def evidence(self, num_each: int) -> list[Section]:
        """Return the sections of images and of captions, if the rows have them."""
        rows = self.run.config.data.modality
        values = {"pairs": self.compared(num_each), "settings": self.task.settings, "rows": rows}
        titles = [
            ("images", "Images"),
            ("captions", "Masked texts" if rows == "text" else "Masked captions"),
        ]
        shown = {"image": titles[:1], "text": titles[1:]}.get(rows, titles)
        return [
            Section(name, title, draw("masked_signal.html", name, **values))
            for name, title in shown
        ]

    @torch.inference_mode()
    def compared(self, num: int) -> list[ShownPair]:
        """Return evenly spread validation rows with the model's output in float32."""
        batch, tokenizer = next(self.batches(self.dataset(num))), self.run.tokenizer
        task, texts = self.task, batch if isinstance(batch, MaskedTexts) else None
        wrong = batch.wrong if isinstance(batch, PairBatch) else None
        shown, seen = {}, {}
        if isinstance(batch, MaskedImages) and task.settings.mim_weight:
            shown = task.reconstructions(batch)
        if isinstance(batch, PairBatch) and wrong is not None:
            if shown:
                shown["wrong caption"] = task.reconstructions(batch.with_text_of(wrong))[
                    "reconstructed"
                ]
            seen = {"image": task.patches(batch), "wrong image": task.patches(wrong)}
            if task.settings.joint_masking:
                seen = {
                    name: gray_out(patches_BPX, batch.hidden_BM)
                    for name, patches_BPX in seen.items()
                }
            seen = {
                name: to_images(patches_BPX, self.run.config.input.patch_size)
                for name, patches_BPX in seen.items()
            }
        none = [[] for _ in batch.where]
        tokens = self.guesses(texts) if task.settings.mlm_weight and texts else none
        ids, masks = (texts.ids_BT.tolist(), texts.is_masked_BT.tolist()) if texts else (none, none)
        return [
            ShownPair(
                where=where,
                images={name: made[row] for name, made in shown.items() if name in GIVEN},
                text=tokenizer.decode(ids[row]),
                choices=[
                    each.guesses[0]._replace(text=f"{each.truth} → {each.guesses[0].text}")
                    for each in tokens[row]
                ],
                made={name: made[row] for name, made in shown.items() if name == "reconstructed"},
                with_wrong_caption={
                    name: made[row] for name, made in shown.items() if name == "wrong caption"
                },
                pieces=caption_pieces(tokenizer, ids[row], masks[row]),
                wrong_caption=tokenizer.decode(wrong.ids_BT[row].tolist())
                if wrong is not None
                else "",
                seen_by_text={name: made[row] for name, made in seen.items()},
                masked_tokens=tokens[row],
            )
            for row, where in enumerate(batch.where)
        ]

    def guesses(self, batch: MaskedTexts) -> list[list[MaskedToken]]:
        """Return each row's masked tokens with guesses, of pairs also by the wrong image."""
        joint, tokenizer, batches = self.task.settings.joint_masking, self.run.tokenizer, [batch]
        if isinstance(batch, PairBatch) and batch.wrong is not None:
            batches.append(replace(batch, images_BCHW=batch.wrong.images_BCHW))
        encoded = (self.task.encode(rows, keep=joint, mask=True) for rows in batches)
        probabilities = [
            self.task.predict_tokens(each, batch).float().softmax(-1).cpu() for each in encoded
        ]
        tokens: list[list[MaskedToken]] = [[] for _ in batch.where]
        rows, columns = batch.is_masked_BT.nonzero(as_tuple=True)
        truths = batch.ids_BT[rows, columns].tolist()
        for row, truth, *each_V in zip(rows.tolist(), truths, *probabilities, strict=True):
            first, *others = (
                best_choices(one_V, NUM_GUESSES, tokenizer.word, truth.__eq__) for one_V in each_V
            )
            wrong, both = (
                others[0][0] if others else None,
                (each_V[0][truth].item(), each_V[-1][truth].item()),
            )
            guessed: Any = {"guesses": first, "wrong_image": wrong, "truth_probability": both}
            tokens[row].append(MaskedToken(truth=tokenizer.word(truth), **guessed))
        return tokens


def caption_pieces(
    tokenizer: Tokenizer, ids: Sequence[int], is_masked: Sequence[bool]
) -> tuple[Piece, ...]:
    """Return the tokens as they read in the caption, without special tokens."""
    pieces, before = [], ""
    for end, masked in enumerate(is_masked, start=1):
        after = tokenizer.decode(ids[:end])
        if after == before and not masked:  # a special token
            continue
        is_plain = after.startswith(before) and after != before
        text = after[len(before) :] if is_plain else tokenizer.word(ids[end - 1])
        pieces.append(
            Piece(
                text=text.strip() or text,
                starts_word=not pieces or text[:1].isspace(),
                is_masked=masked,
            )
        )
        before = after
    return tuple(pieces)
