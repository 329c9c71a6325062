"""What the page shows of masked signal modelling: rebuilt images and guessed tokens, with right and wrong partners.

Letters: B batch, P patches, M masked tokens, X values in a patch, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from eve_vl.config import MaskedSignalConfig
from eve_vl.data.masking import MaskedImages, MaskedTexts, PairBatch
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.embeddings import gray_out, to_images
from eve_vl.report.curves import Loss
from eve_vl.report.task import Example, TaskReport, best_choices
from eve_vl.report.templating import Choice, Section, draw
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.masked_signal import MaskedSignalTask

NUM_GUESSES = 5
GIVEN = ("original", "masked")  # of the images of rebuilding, those that are not made


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of a caption as it reads in place, and whether it was hidden."""

    text: str
    starts_word: bool
    is_hidden: bool


@dataclass(frozen=True, kw_only=True)
class HiddenToken:
    """One hidden token: what it was, the best guesses with the right image, and what the wrong one makes of them."""

    truth: str
    guesses: list[Choice]
    wrong_image: Choice | None
    """The best guess; None where texts have no images."""
    truth_probability: tuple[float, float]
    """With the right and with the wrong image."""


@dataclass(frozen=True, kw_only=True)
class ShownPair(Example):
    """One validation row: a pair, an image or a text; its images are those of the pass that rebuilds, if that is trained."""

    pieces: tuple[Piece, ...]
    wrong_caption: str
    beside: Mapping[str, np.ndarray]
    """The image rebuilt beside it."""
    guessing: Mapping[str, np.ndarray]
    """What the text pass saw: both images, the original, or masked if both modalities are masked in one pass."""
    hidden: Sequence[HiddenToken]


class MaskedSignalReport(TaskReport):
    """Does the model use the other modality, and does it beat obvious guesses?"""

    name = "masked_signal"
    title, template = "Images and captions", "masked_signal.html"
    row = "pair"
    passes = " (masked as in validation)"
    num_each = 8
    losses = (
        Loss("mlm", "Masked-token loss", "Cross-entropy of the masked tokens, in nats.", "mlm_loss"),
        Loss("mim", "Masked-pixel loss", "Mean squared error of the masked patches.", "mim_mse"),
    )

    task: MaskedSignalTask[MaskedSignalConfig]

    def __init__(self, run: LoadedRun):
        super().__init__(run)
        if run.config.data.modality != "image_text":  # rows without partners have only what any task has
            self.template, self.row, self.passes = TaskReport.template, run.config.data.modality, TaskReport.passes

    def evidence(self, num_each: int) -> list[Section]:
        """Return the sections of images and of captions, as far as the rows hold them."""
        rows = self.run.config.data.modality
        values = {"pairs": self.compared(num_each), "settings": self.task.settings, "rows": rows}
        titles = [("images", "Images"), ("captions", "Masked texts" if rows == "text" else "Masked captions")]
        shown = {"image": titles[:1], "text": titles[1:]}.get(rows, titles)
        return [Section(name=name, title=title, body=draw("masked_signal.html", name, **values)) for name, title in shown]

    @torch.inference_mode()
    def compared(self, num: int) -> list[ShownPair]:
        """Return what the model makes, in float32, of rows spread evenly over its validation data."""
        batch = next(self.batches(self.dataset(num)))
        task, texts = self.task, batch if isinstance(batch, MaskedTexts) else None
        wrong = batch.wrong if isinstance(batch, PairBatch) else None
        rebuilding, guessing = {}, {}
        if isinstance(batch, MaskedImages) and task.settings.mim_weight:
            rebuilding = task.reconstructions(batch)
        if isinstance(batch, PairBatch) and wrong is not None:
            if rebuilding:
                rebuilding["wrong caption"] = task.reconstructions(batch.with_text_of(wrong))["rebuilt"]
            seen = {"image": task.patches(batch), "wrong image": task.patches(wrong)}
            if task.settings.joint_masking:
                seen = {name: gray_out(patches_BPX, batch.hidden_BM) for name, patches_BPX in seen.items()}
            size = self.run.config.input.patch_size
            guessing = {name: to_images(patches_BPX, size) for name, patches_BPX in seen.items()}
        hidden = self.guesses(texts) if task.settings.mlm_weight and texts else [[] for _ in batch.where]
        no_text = [[] for _ in batch.where]
        ids, masks = (texts.ids_BT.tolist(), texts.is_masked_BT.tolist()) if texts else (no_text, no_text)
        return [
            ShownPair(
                where=where,
                images={name: made[row] for name, made in rebuilding.items() if name in GIVEN},
                text=self.run.tokenizer.decode(ids[row]),
                choices=[replace(each.guesses[0], text=f"{each.truth} → {each.guesses[0].text}") for each in hidden[row]],
                made={"rebuilt": rebuilding["rebuilt"][row]} if rebuilding else {},
                beside={name: made[row] for name, made in rebuilding.items() if name == "wrong caption"},
                pieces=caption_pieces(self.run.tokenizer, ids[row], masks[row]),
                wrong_caption=self.run.tokenizer.decode(wrong.ids_BT[row].tolist()) if wrong is not None else "",
                guessing={name: made[row] for name, made in guessing.items()},
                hidden=hidden[row],
            )
            for row, where in enumerate(batch.where)
        ]

    def guesses(self, batch: MaskedTexts) -> list[list[HiddenToken]]:
        """Return per row its hidden tokens in reading order, guessed with the right and, of pairs, with the wrong image."""
        joint, tokenizer, beside = self.task.settings.joint_masking, self.run.tokenizer, [batch]
        if isinstance(batch, PairBatch) and batch.wrong is not None:
            beside.append(replace(batch, images_BCHW=batch.wrong.images_BCHW))
        probabilities = [
            self.task.predict_tokens(self.task.encode(rows, keep=joint, mask=True), batch).float().softmax(-1).cpu()
            for rows in beside
        ]
        hidden: list[list[HiddenToken]] = [[] for _ in batch.where]
        rows, columns = batch.is_masked_BT.nonzero(as_tuple=True)
        truths = batch.ids_BT[rows, columns].tolist()
        for row, truth, *each_V in zip(rows.tolist(), truths, *probabilities, strict=True):
            first, *others = (best_choices(one_V, NUM_GUESSES, tokenizer.word, truth.__eq__) for one_V in each_V)
            hidden[row].append(
                HiddenToken(
                    truth=tokenizer.word(truth),
                    guesses=first,
                    wrong_image=others[0][0] if others else None,
                    truth_probability=(each_V[0][truth].item(), each_V[-1][truth].item()),
                )
            )
        return hidden


def caption_pieces(tokenizer: Tokenizer, ids: Sequence[int], is_hidden: Sequence[bool]) -> tuple[Piece, ...]:
    """Return the tokens as they read in the caption, special ones left out."""
    pieces, before = [], ""
    for end, hidden in enumerate(is_hidden, start=1):
        after = tokenizer.decode(ids[:end])
        if after == before and not hidden:  # a special token
            continue
        is_plain = after.startswith(before) and after != before
        text = after[len(before) :] if is_plain else tokenizer.word(ids[end - 1])
        pieces.append(Piece(text=text.strip() or text, starts_word=not pieces or text[:1].isspace(), is_hidden=hidden))
        before = after
    return tuple(pieces)
