"""What the page shows of masked signal modelling: rebuilt pictures and guessed tokens, with right and wrong partners.

Letters: B batch, P patches, M masked tokens, X values in a patch, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import MaskedSignalConfig
from eve_vl.data.batch import PairBatch
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.loading import LoadedRun
from eve_vl.model.embed import hide, patchify, to_pictures
from eve_vl.report.curves import Loss
from eve_vl.report.html import Choice, Section, draw
from eve_vl.report.task import TaskReport, best_choices
from eve_vl.tasks.masked_signal import MaskedSignalTask

NUM_GUESSES = 5


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of a caption as it reads in place, and whether it was hidden."""

    text: str
    starts_word: bool
    is_hidden: bool


@dataclass(frozen=True, kw_only=True)
class HiddenToken:
    """One hidden token: what it was, the best guesses with the right picture, and the best with the wrong one."""

    truth: str
    guesses: list[Choice]
    wrong_picture: Choice
    truth_probability: float
    """With the right picture."""
    truth_probability_wrong_picture: float


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """One validation pair."""

    where: str
    pieces: tuple[Piece, ...]
    rebuilding: dict[str, np.ndarray]
    """Pictures by name, uint8 (H, W, 3), of the pass that rebuilds; empty where it is not trained."""
    wrong_caption: str
    guessing: dict[str, np.ndarray]
    """What the text pass saw: both pictures, the original, or masked if both modalities are masked in one pass."""
    hidden: tuple[HiddenToken, ...]


class MaskedSignalReport(TaskReport):
    """Does the model use the other modality, and does it beat obvious guesses?"""

    name = "masked_signal"
    title, template = "Pictures and captions", "masked_signal.html"
    rows = "pairs"
    passes = " (masked as in validation)"
    num_each = 8
    losses: ClassVar[tuple[Loss, ...]] = (
        Loss(term="mlm", validation="mlm_loss", title="Masked-token loss", note="Cross-entropy of the masked tokens, in nats."),
        Loss(term="mim", validation="mim_mse", title="Masked-pixel loss", note="Mean squared error of the masked patches."),
    )

    task: MaskedSignalTask[MaskedSignalConfig]

    def __init__(self, run: LoadedRun):
        super().__init__(run)
        if run.config.data.rows != "pairs":  # rows without partners have only what any task has
            self.template, self.rows, self.passes = TaskReport.template, TaskReport.rows, TaskReport.passes

    def evidence(self, num_each: int) -> list[Section]:
        """Return the sections of pictures and of captions; none of rows without partners."""
        if self.task.leaves_unused:
            return []
        pairs = self.pairs(num_each)
        return [
            Section(name=name, title=title, body=draw("masked_signal.html", name, pairs=pairs, settings=self.task.settings))
            for name, title in (("pictures", "Pictures"), ("captions", "Masked captions"))
        ]

    @torch.inference_mode()
    def pairs(self, num_pairs: int) -> list[ShownPair]:
        """Return what the model makes, in float32, of pairs spread evenly over its validation data."""
        batch = next(self.batches(self.dataset(num_pairs)))
        assert batch.wrong is not None
        wrong, patch_size, task = batch.wrong, self.run.config.input.patch_size, self.task
        joint = task.settings.joint_masking
        patches_BPX, wrong_BPX = task.patches(batch), patchify(wrong.pixels(), patch_size)
        passes: dict[str, Tensor] = {}
        if task.settings.mim_weight:
            passes = {
                "original": patches_BPX,
                "masked": hide(patches_BPX, batch.hidden_BM),
                "rebuilt": task.rebuild(batch),
                "wrong caption": task.rebuild(batch.with_text_of(wrong)),
            }
        seen = {"picture": patches_BPX, "wrong picture": wrong_BPX}
        seen = {name: hide(patches, batch.hidden_BM) if joint else patches for name, patches in seen.items()}
        rebuilding = {name: to_pictures(patches, patch_size) for name, patches in passes.items()}
        guessing = {name: to_pictures(patches, patch_size) for name, patches in seen.items()}
        hidden = self.guesses(batch) if task.settings.mlm_weight else [[] for _ in batch.where]
        return [
            ShownPair(
                where=where,
                pieces=caption_pieces(self.run.tokenizer, *_real_tokens(batch, row)),
                rebuilding={name: made[row] for name, made in rebuilding.items()},
                wrong_caption=self.run.tokenizer.decode(_real_tokens(wrong, row)[0]),
                guessing={name: made[row] for name, made in guessing.items()},
                hidden=tuple(hidden[row]),
            )
            for row, where in enumerate(batch.where)
        ]

    def guesses(self, batch: PairBatch) -> list[list[HiddenToken]]:
        """Return per pair its hidden tokens in reading order, guessed with the right and with the wrong picture."""
        assert batch.wrong is not None
        joint, tokenizer = self.task.settings.joint_masking, self.run.tokenizer
        wrong = dataclasses.replace(batch, images_BCHW=batch.wrong.images_BCHW)
        probabilities = [
            self.task.predict_tokens(self.task.encode(pairs, keep=joint, mask=True), batch).float().softmax(-1).cpu()
            for pairs in (batch, wrong)
        ]
        hidden: list[list[HiddenToken]] = [[] for _ in batch.where]
        rows, columns = batch.is_masked_BT.nonzero(as_tuple=True)
        truths = batch.ids_BT[rows, columns].tolist()
        for row, truth, right_V, wrong_V in zip(rows.tolist(), truths, *probabilities, strict=True):
            first, second = (best_choices(each_V, NUM_GUESSES, tokenizer.word, truth.__eq__) for each_V in (right_V, wrong_V))
            hidden[row].append(
                HiddenToken(
                    truth=tokenizer.word(truth),
                    guesses=first,
                    wrong_picture=second[0],
                    truth_probability=right_V[truth].item(),
                    truth_probability_wrong_picture=wrong_V[truth].item(),
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


def _real_tokens(batch: PairBatch, row: int) -> tuple[list[int], list[bool]]:
    real_T = ~batch.is_padding_BT[row]
    return batch.ids_BT[row][real_T].tolist(), batch.is_masked_BT[row][real_T].tolist()
