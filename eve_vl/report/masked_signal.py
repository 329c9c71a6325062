"""What the page shows of masked signal modelling: rebuilt pictures and guessed tokens, with right and wrong partners.

Letters: B batch, P patches, M masked tokens, X values in a patch, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import MaskedSignalConfig
from eve_vl.data.batch import PairBatch
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.embed import hide, patchify, to_pictures
from eve_vl.report import html
from eve_vl.report.curves import Curves, Loss
from eve_vl.report.html import Card, Choice
from eve_vl.report.task import Measured, TaskReport, best_choices
from eve_vl.tasks.masked_signal import MaskedSignalTask

NUM_GUESSES = 5
JOINT = " This run masks both modalities in one pass (<code>task.joint_masking</code>), so the model saw neither complete."


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
    title = "Pictures and captions"
    rows = "pairs"
    passes = " (masked as in validation)"
    num_each = 8
    losses: ClassVar[tuple[Loss, ...]] = (
        Loss(term="mlm", validation="mlm_loss", title="Masked-token loss", note="Cross-entropy of the masked tokens, in nats."),
        Loss(term="mim", validation="mim_mse", title="Masked-pixel loss", note="Mean squared error of the masked patches."),
    )

    @property
    def task(self) -> MaskedSignalTask[MaskedSignalConfig]:
        """The task of the run."""
        assert isinstance(self.run.task, MaskedSignalTask)
        return self.run.task

    def numbers(self, measured: Measured) -> str:
        """Return cards of both passes, beside what can be had without the other modality."""
        values, groups = measured.values, []
        if "mlm_acc" in values:
            gain = html.points(values["mlm_acc"] - values["mlm_acc_wrong_image"])
            verdict = f"The right picture is worth <b>{gain} points</b> of masked-token accuracy."
            groups.append(html.card_group("Masked tokens", verdict, _token_cards(values)))
        else:
            groups.append(self._no_numbers("Masked tokens", "mlm_weight"))
        if "mim_mse" in values:
            verdict = (
                "Lower is better. The error with the right caption is "
                f"<b>{_compared(values['mim_mse'], values['mim_mse_wrong_caption'])}</b> with a wrong one, and "
                f"<b>{_compared(values['mim_mse'], values['mim_mse_mean_baseline'])}</b> of the neighbours' mean."
            )
            cards = _pixel_cards(values, self.task.settings.normalize_targets)
            groups.append(html.card_group("Masked pixels", verdict, cards))
        else:
            groups.append(self._no_numbers("Masked pixels", "mim_weight"))
        return "".join(groups)

    def _no_numbers(self, title: str, weight: str) -> str:
        why = f"This run does not train them (<code>task.{weight}</code> is 0)."
        return f"<h3>{title}</h3>" + html.missing(
            "There are no numbers of them." if getattr(self.task.settings, weight) else why
        )

    def charts(self, curves: Curves) -> list[str]:
        """Return accuracy and error over the run."""
        accuracy = [
            curves.val("mlm_acc", "right picture"),
            curves.val("mlm_acc_wrong_image", "wrong picture"),
            curves.val("mlm_acc_unigram", "most frequent token", is_reference=True),
        ]
        error = [
            curves.val("mim_mse", "right caption"),
            curves.val("mim_mse_wrong_caption", "wrong caption"),
            curves.val("mim_mse_mean_baseline", "mean of neighbours", is_reference=True),
            curves.val("mim_mse_image_mean", "mean of picture", is_reference=True),
        ]
        return [
            curves.shares("Masked-token accuracy", accuracy),
            curves.chart("Masked-pixel error", error, "Validation, mean squared; lower is better."),
        ]

    def evidence(self, num_each: int) -> list[str]:
        """Return the sections of pictures and of captions."""
        pairs = self.pairs(num_each)
        return [_pictures_section(pairs, self.task.settings), _captions_section(pairs, self.task.settings)]

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


def _token_cards(values: Mapping[str, float]) -> list[Card]:
    sentences = {
        "mlm_acc": "Share of the masked tokens that the model guesses right while it sees the caption's own picture.",
        "mlm_acc_wrong_image": "The same tokens beside another pair's picture: what the words around them give away.",
        "mlm_acc_unigram": "Always guessing the most frequent masked token, without looking at anything.",
    }
    return [html.share_card(name, values[name], text, is_main=name == "mlm_acc") for name, text in sentences.items()]


def _pixel_cards(values: Mapping[str, float], is_normalised: bool) -> list[Card]:
    """Return cards whose bars show the error, relative to the largest."""
    space = "pixels normalised per patch" if is_normalised else "pixels from −1 to 1"
    sentences = {
        "mim_mse": f"Mean squared error of the masked patches ({space}) when the model reads the picture's own caption.",
        "mim_mse_wrong_caption": "The same patches rebuilt beside another pair's caption: what the visible patches give away.",
        "mim_mse_mean_baseline": "Painting each masked patch in the mean colour of its visible neighbours.",
        "mim_mse_image_mean": "Painting every masked patch in the mean colour of all visible ones.",
    }
    errors = [values[name] for name in sentences]
    largest = max(errors) or 1
    return [
        Card(
            name=name, value=html.number(values[name]), length=values[name] / largest, sentence=text, is_main=name == "mim_mse"
        )
        for name, text in sentences.items()
    ]


def _compared(value: float, other: float) -> str:
    """Return how much smaller or larger an error is than another, ending in `than that`."""
    change = value / other - 1 if other else 0.0
    return f"{abs(100 * change):.1f} % {'larger' if change > 0 else 'smaller'} than that"


def _pictures_section(pairs: Sequence[ShownPair], task: MaskedSignalConfig) -> str:
    """Return the grid of original, masked and rebuilt pictures."""
    if not task.mim_weight:
        text = "This run does not learn to rebuild pictures (<code>task.mim_weight</code> is 0)."
        return html.section("pictures", "Pictures", "", html.missing(text))
    intro = (
        f"Validation pairs with {html.percent(task.image_mask_ratio)} of the patches masked. Visible patches are copied "
        "from the original; the model paints the masked ones, once with the pair's own caption and once with another's."
    )
    if task.normalize_targets:
        intro += (
            " It predicts patches normalised to mean 0 and deviation 1 (<code>task.normalize_targets</code>); for display "
            "they are scaled back with the <em>true</em> mean and deviation of each masked patch, as MAE does: judge the "
            "shapes within a patch, not its colour."
        )
    cards = ""
    for pair in pairs:
        caption = _caption(pair.pieces, hides=task.joint_masking)
        cards += (
            f'<article class="card">{html.thumbs(pair.where, pair.rebuilding)}<p class="caption">{caption}</p>'
            f'<p class="caption wrong"><span class="label">wrong caption</span> {html.esc(pair.wrong_caption)}</p></article>'
        )
    return html.section("pictures", "Pictures", intro + JOINT * task.joint_masking, f'<div class="pairs">{cards}</div>')


def _captions_section(pairs: Sequence[ShownPair], task: MaskedSignalConfig) -> str:
    """Return the captions with what the model guesses for their masked tokens."""
    if not task.mlm_weight:
        text = "This run does not learn to guess masked tokens (<code>task.mlm_weight</code> is 0)."
        return html.section("captions", "Masked captions", "", html.missing(text))
    intro = (
        f"{html.percent(task.text_mask_ratio)} of each caption's tokens are masked (boxed here) and guessed beside the "
        f"{'masked' if task.joint_masking else 'complete'} picture: the five best guesses, ✓ where the first is right, ✗ where "
        "it is not. Below them the first guess beside another pair's picture, and what that picture does to the probability of "
        "the true token: where it falls, the model looked."
    )
    cards = "".join(map(_caption_card, pairs))
    return html.section(
        "captions", "Masked captions", intro + JOINT * task.joint_masking, f'<div class="readings">{cards}</div>'
    )


def _caption_card(pair: ShownPair) -> str:
    num_right = sum(token.guesses[0].is_right for token in pair.hidden)
    num_right_wrong = sum(token.wrong_picture.is_right for token in pair.hidden)
    return (
        f'<article class="card reading">{html.thumbs(pair.where, pair.guessing)}<div>'
        f'<p class="caption">{_caption(pair.pieces, pair.hidden)}</p>'
        f'<p class="score">{num_right} of {len(pair.hidden)} right; beside the wrong picture {num_right_wrong}</p>'
        f'<ul class="words">{"".join(map(_word_card, pair.hidden))}</ul></div></article>'
    )


def _word_card(token: HiddenToken) -> str:
    best, wrong = token.guesses[0], token.wrong_picture
    change = f"{100 * token.truth_probability:.0f}→{100 * token.truth_probability_wrong_picture:.0f} %"
    return (
        f'<li class="word"><h4>{html.esc(token.truth)} {html.mark(best.is_right)}</h4>{html.choices_list(token.guesses)}'
        f'<p class="label">wrong picture</p><ol><li class="{html.right(wrong.is_right)}"><span>{html.esc(wrong.text)} '
        f"{html.mark(wrong.is_right)}</span><span>{100 * wrong.probability:.0f} %</span></li>"
        f"<li><span>truth</span><span>{change}</span></li></ol></li>"
    )


def _caption(pieces: Sequence[Piece], hidden: Sequence[HiddenToken] = (), *, hides: bool = True) -> str:
    """Return a caption whose hidden tokens are boxes, marked right or wrong where there are guesses."""
    guesses, caption = iter(hidden), ""
    for piece in pieces:
        caption += " " * (piece.starts_word and bool(caption))
        if piece.is_hidden and hides:
            best = token.guesses[0].is_right if (token := next(guesses, None)) is not None else None
            verdict = "" if best is None else f" {html.right(best)}"
            caption += f'<span class="box{verdict}">{html.esc(piece.text)}{html.mark(best)}</span>'
        else:
            caption += html.esc(piece.text)
    return caption
