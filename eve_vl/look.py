"""Where a run looks: the Grad-CAM of an answer, a verdict, a match or a hidden word over the picture (EVE's visualisations).

Letters: B batch, P patches, N all tokens, T text tokens, R rows of logits, C classes, H height, W width.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.data import inputs
from eve_vl.data.batch import Batch
from eve_vl.data.inputs import GivenImage, ImageLike, given_images, given_text
from eve_vl.errors import UserError, nearest
from eve_vl.metrics import vqa
from eve_vl.model.embed import patchify
from eve_vl.model.gradcam import gradcam
from eve_vl.run import AnyTask, LoadedRun
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.vqa import VQA

CLS = "[CLS]"
_COLORS = np.array([(20, 20, 120), (0, 160, 220), (120, 220, 100), (255, 220, 0), (230, 0, 0)], dtype=np.float64)
_OVERLAY = (0.3, 0.4)  # share of the heat's colour where it is 0, and how much more where it is 1: cold parts stay visible


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a run looks in one picture, or in both pictures of a statement."""

    pictures: tuple[np.ndarray, ...]
    """uint8 (H, W, 3), in the size in which they were given."""
    heat: tuple[np.ndarray, ...]
    """float32 (H, W) in [0, 1], one per picture; 1 is the hottest spot of all of them; all 0 if nothing speaks for it."""
    grids: tuple[np.ndarray, ...]
    """The same per patch, float32 (rows, columns), as Grad-CAM gives it: not scaled, not below 0."""
    score: str
    """What was looked for, in words, such as `the answer "red"`."""
    probability: float
    """What the run gives it."""
    word: str | None
    """Whose tokens ask; None: those of the whole text."""
    block: int
    """Whose attention it is, 0 for the first."""

    def overlays(self) -> tuple[np.ndarray, ...]:
        """Return the pictures under their heat, blue to red, uint8 (H, W, 3)."""
        return tuple(overlay(picture, heat) for picture, heat in zip(self.pictures, self.heat, strict=True))


def overlay(picture: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """Return a uint8 picture (H, W, 3) under a heat map in [0, 1], from blue through green and yellow to red."""
    steps = np.linspace(0, 1, len(_COLORS))
    colors = np.stack([np.interp(heat_HW, steps, channel) for channel in _COLORS.T], axis=-1)
    share = (_OVERLAY[0] + _OVERLAY[1] * heat_HW)[:, :, None]
    return ((1 - share) * picture + share * colors).round().astype(np.uint8)


def look(
    run: LoadedRun,
    image: ImageLike | Sequence[ImageLike],
    text: str,
    *,
    word: str | None = None,
    answer: str | None = None,
    block: int | None = None,
) -> Look:
    """Return where in the picture a run finds what speaks for its answer (VQA), for the statement being true (NLVR2; give
    both pictures), for the match (retrieval) or for a word of the text that is hidden from it (pre-trained; the same
    without a word where there is a matching head).

    word: a word or phrase of the text, the first time it occurs, whose tokens' attention to the patches is shown; None: that
    of all tokens together; "[CLS]": the text [CLS]'s alone. answer: for VQA, another answer of its list than the one that the
    run gives. block: 0 is the first, -1 the last; None: the last for a hidden word, else the last but one, which point best at
    what is asked about (LOG.md). In the last block the heads read [CLS] alone (all but the paired head of NLVR2), so no
    other token's attention matters there. Raises UserError.
    """
    given, text = given_images(image), given_text(text)
    if len(given) != (wanted := 2 if isinstance(run.task, NLVR2) else 1):
        raise UserError(
            f"a run of task {run.config.task.name} looks at {wanted} picture{'s'[: wanted - 1]}, {len(given)} given"
        )
    positions = word_positions(run, text, word)
    question = _question(run, given, text, None if word in (None, CLS) else positions, answer)
    depth, P = run.config.model.depth, run.config.input.num_patches
    if block is None:
        block = depth - 1 if question.hides_word else max(0, depth - 2)
    if not -depth <= block < depth:
        raise UserError(f"no block {block}: this run has blocks 0 to {depth - 1}")
    block %= depth
    cam_BNN, matters_BN = gradcam(run.task.encoder, block, question.score)
    rows = [1 + P + position for position in positions]
    if not matters_BN[:, rows].any():
        raise UserError(
            f'nothing of what "{word}" attends to in block {block} reaches {question.words}; choose an earlier block'
        )
    grids_BP = cam_BNN[:, rows, 1 : 1 + P].sum(1).float().cpu()
    side = round(P**0.5)
    grids_Brc = grids_BP.view(-1, side, side)
    pictures = tuple(one.whole() for one in given)
    heat = [_enlarge(grid, picture.shape[:2]) for grid, picture in zip(grids_Brc, pictures, strict=True)]
    peak = max(np.finfo(np.float32).tiny, *(one.max() for one in heat))
    return Look(
        pictures=pictures,
        heat=tuple(one / peak for one in heat),
        grids=tuple(grids_Brc.numpy()),
        score=question.words,
        probability=question.probability(),
        word=word,
        block=block,
    )


def word_positions(run: LoadedRun, text: str, word: str | None) -> list[int]:
    """Return the token positions of a word or phrase of a text, where it first occurs, of "[CLS]", or of all tokens (None).

    Raises UserError if the text does not have the word.
    """
    spans = run.tokenizer.spans(text, run.config.input.max_text_tokens)
    if word is None or word == CLS:
        return [0] if word else list(range(len(spans)))
    found = re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) if word.strip() else None
    if found is None:
        raise UserError(f'"{word}" is not a word of "{text}"')
    positions = [t for t, (start, end) in enumerate(spans) if start < found.end() and found.start() < end]
    if not positions:
        raise UserError(f'"{word}" lies beyond the {len(spans)} tokens that this run reads of a text')
    return positions


def match_logits(task: Retrieval | MaskedSignal, batch: Batch) -> Tensor:
    """Return the matching head's logits (B, 2) of pairs, class 1 = match."""
    image = task.encoder.image(patchify(batch.pixels(), task.config.input.patch_size))
    return task.contrast.match(task.encoder, image, task.encoder.text(batch.ids_BT, batch.is_padding_BT))[0]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What is asked of the run: logits (R, C), computed anew at every call, and the class (R,) of each row."""

    logits: Callable[[], Tensor]
    classes_R: Tensor
    words: str
    hides_word: bool = False
    is_one_of_many: bool = True
    """Whether the classes exclude each other; the answers of VQA do not."""

    def score(self) -> Tensor:
        """Return the sum of the classes' logits."""
        return self.logits().gather(1, self.classes_R[:, None]).sum()

    @torch.no_grad()
    def probability(self) -> float:
        """Return the probability that all rows have their classes."""
        logits_RC = self.logits()
        log_RC = logits_RC.log_softmax(1) if self.is_one_of_many else torch.nn.functional.logsigmoid(logits_RC)
        return log_RC.gather(1, self.classes_R[:, None]).sum().exp().item()


def _question(
    run: LoadedRun, given: Sequence[GivenImage], text: str, positions: Sequence[int] | None, answer: str | None
) -> _Question:
    """positions: tokens of the word, if there is one."""
    task, tokenizer, model = run.task, run.tokenizer, run.config.model
    device = next(task.parameters()).device
    if answer is not None and not isinstance(task, VQA):
        raise UserError("an answer to look for can be given to a VQA run only")
    first = torch.ones(1, dtype=torch.int64, device=device)
    if isinstance(task, NLVR2):
        both = inputs.statement(given[0], given[1], text, tokenizer, model).to(device)
        return _Question(logits=lambda: task.predict(both)[0], classes_R=first, words="the verdict true")
    if isinstance(task, VQA):
        batch = inputs.pairs(given, [text], tokenizer, model).to(device)
        chosen = _answer(task, batch, answer)
        return _Question(
            logits=lambda: task.predict(batch)[0],
            classes_R=first * chosen,
            words=f'the answer "{task.answers[chosen]}"',
            is_one_of_many=False,
        )
    if isinstance(task, MaskedSignal) and task.settings.mlm_weight and positions is not None:
        ids_T = tokenizer.encode(text, model.max_text_tokens)[0]
        is_masked_T = np.isin(np.arange(len(ids_T)), positions)
        pair = inputs.masked_pair(given[0], ids_T, tokenizer, model, is_masked_T=is_masked_T).to(device)
        patches_BPX = patchify(pair.pixels(), model.patch_size)
        return _Question(
            logits=lambda: task.predict_tokens(task.encode(patches_BPX, pair, mask=True), pair),
            classes_R=pair.ids_BT[pair.is_masked_BT],
            hides_word=True,
            words=f'the hidden "{tokenizer.decode(ids_T[is_masked_T])}"',
        )
    if can_match(task):
        batch = inputs.pairs(given, [text], tokenizer, model).to(device)
        return _Question(logits=lambda: match_logits(task, batch), classes_R=first, words="the match")
    if not (isinstance(task, MaskedSignal) and task.settings.mlm_weight):
        raise UserError(f"a run of task {run.config.task.name} without task.mlm_weight and task.itm_weight looks for nothing")
    raise UserError("a pre-trained run looks for a hidden word: name a word of the text with --word (word=)")


def can_contrast(task: AnyTask) -> TypeGuard[Retrieval | MaskedSignal]:
    """Whether a task has the projections to features of pictures and texts that compare."""
    return isinstance(task, Retrieval | MaskedSignal) and task.settings.itc_weight > 0


def can_match(task: AnyTask) -> TypeGuard[Retrieval | MaskedSignal]:
    """Whether a task has a matching head."""
    return isinstance(task, Retrieval | MaskedSignal) and task.settings.itm_weight > 0


@torch.no_grad()
def _answer(task: VQA, batch: Batch, answer: str | None) -> int:
    """Return the number of the best answer, or of the given one. Raises UserError if the list lacks it."""
    if answer is None:
        return int(task.predict(batch)[0].argmax())
    numbers = task.answer_ids.get(vqa.normalize(answer))
    if not numbers:
        raise UserError(f"no answer {nearest(answer, task.answers)}")
    return numbers[0]


def _enlarge(grid: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Enlarge bilinearly to (H, W)."""
    return F.interpolate(grid[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
