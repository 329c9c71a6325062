"""What a model does on a few validation pairs: rebuilt pictures, guessed tokens, experts chosen.

Letters: B batch, P patches, M hidden patches or masked tokens, X values in a patch, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batch import PairBatch
from eve_vl.data.loader import eval_loader, open_train_and_val
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.embed import hide, patchify, to_pictures
from eve_vl.model.moe import RouterStats
from eve_vl.report.routing import Routing, add_choices
from eve_vl.run import LoadedRun, eval_dataset
from eve_vl.tasks import TASKS
from eve_vl.tasks.masked_signal import MaskedSignal

NUM_SHOWN = 8
NUM_ROUTED = 128
NUM_GUESSES = 5
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of a caption as it reads in place, and whether it was hidden."""

    text: str
    starts_word: bool
    is_hidden: bool


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One token that the model proposes."""

    text: str
    probability: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class HiddenToken:
    """One hidden token: what it was, the best guesses with the right picture, and the best with the wrong one."""

    truth: str
    guesses: tuple[Guess, ...]
    wrong_picture: tuple[Guess, ...]
    truth_probability: float
    """With the right picture."""
    truth_probability_wrong_picture: float


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """One validation pair; pictures are uint8 (H, W, 3). What the run does not train is None or empty."""

    where: str
    pieces: tuple[Piece, ...]
    original: np.ndarray
    masked: np.ndarray
    rebuilt: np.ndarray | None
    rebuilt_wrong_caption: np.ndarray | None
    wrong_caption: str
    right_picture: np.ndarray
    """What the text pass saw: the original, or the masked picture if both modalities are masked in one pass."""
    wrong_picture: np.ndarray
    """The same of the wrong partner."""
    hidden: tuple[HiddenToken, ...]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the page shows of a model at work."""

    pairs: tuple[ShownPair, ...]
    routing: Routing


@torch.inference_mode()
def gather(run: LoadedRun, num_shown: int = NUM_SHOWN, num_routed: int = NUM_ROUTED) -> Evidence:
    """Run the model in float32 on pairs spread evenly over its validation data. Raises UserError if that cannot be read."""
    pairs = show_pairs(run, next(iter(batches(run, num_shown))))
    chosen: list[Tensor] = []
    count = 0
    if "moe" in run.config.model.ffn_policies:
        for batch in batches(run, num_routed):
            count += len(batch.where)
            add_choices(chosen, passes(run, batch))
    return Evidence(pairs=tuple(pairs), routing=Routing.of(chosen, count))


def task_of(run: LoadedRun) -> MaskedSignal:
    """Return the pre-trained task of a run."""
    assert isinstance(run.task, MaskedSignal)
    return run.task


def batches(run: LoadedRun, num_samples: int) -> Iterator[Any]:
    """Yield batches of validation rows, spread evenly. Raises UserError."""
    data = dataclasses.replace(run.config.data, val_samples=num_samples, num_workers=0)
    config = dataclasses.replace(run.config, data=data)
    _, sources = open_train_and_val(config, TASKS[config.task.name].dataset.kind)
    for batch in eval_loader(eval_dataset(config, sources, run.tokenizer), batch_size=BATCH, rank=0, world=1):
        yield batch.to(next(run.task.parameters()).device)


def passes(run: LoadedRun, batch: PairBatch) -> list[list[RouterStats]]:
    """Return what the routers do in each pass that masks; in one over the whole pair where training masks nothing."""
    task = task_of(run).settings
    patches_BPX = patchify(batch.pixels(), run.config.input.patch_size)
    made = [(True, False)] * bool(task.mim_weight) + [(False, True)] * bool(task.mlm_weight)
    if task.joint_masking:
        made = [(True, True)]
    made = made or [(False, False)]
    return [task_of(run).encode(patches_BPX, batch, keep=keep, mask=mask).router for keep, mask in made]


def show_pairs(run: LoadedRun, batch: PairBatch) -> list[ShownPair]:
    """Return what the model makes of each pair of an evaluation batch."""
    assert batch.wrong is not None
    wrong, patch_size = batch.wrong, run.config.input.patch_size
    patches_BPX = patchify(batch.pixels(), patch_size)
    wrong_patches_BPX = patchify(wrong.pixels(), patch_size)
    sees_all = not task_of(run).settings.joint_masking
    originals = to_pictures(patches_BPX, patch_size)
    masked = to_pictures(hide(patches_BPX, batch.hidden_BM), patch_size)
    wrong_pictures = to_pictures(wrong_patches_BPX if sees_all else hide(wrong_patches_BPX, batch.hidden_BM), patch_size)
    rebuilt = rebuilt_wrong = [None] * len(originals)
    if task_of(run).settings.mim_weight:
        rebuilt = to_pictures(task_of(run).rebuild(patches_BPX, batch), patch_size)
        rebuilt_wrong = to_pictures(task_of(run).rebuild(patches_BPX, batch.with_text_of(wrong)), patch_size)
    hidden: list[list[HiddenToken]] = [[] for _ in originals]
    if task_of(run).settings.mlm_weight:
        hidden = guess_tokens(run, batch, patches_BPX, wrong_patches_BPX)
    return [
        ShownPair(
            where=batch.where[row],
            pieces=caption_pieces(run.tokenizer, *_real_tokens(batch, row)),
            original=originals[row],
            masked=masked[row],
            rebuilt=rebuilt[row],
            rebuilt_wrong_caption=rebuilt_wrong[row],
            wrong_caption=run.tokenizer.decode(_real_tokens(wrong, row)[0]),
            right_picture=originals[row] if sees_all else masked[row],
            wrong_picture=wrong_pictures[row],
            hidden=tuple(hidden[row]),
        )
        for row in range(len(originals))
    ]


def guess_tokens(run: LoadedRun, batch: PairBatch, patches_BPX: Tensor, wrong_patches_BPX: Tensor) -> list[list[HiddenToken]]:
    """Return per pair its hidden tokens in reading order, guessed with the right and with the wrong picture."""
    joint = task_of(run).settings.joint_masking
    probabilities = [
        task_of(run).predict_tokens(task_of(run).encode(patches, batch, keep=joint, mask=True), batch).float().softmax(-1).cpu()
        for patches in (patches_BPX, wrong_patches_BPX)
    ]
    found: list[list[HiddenToken]] = [[] for _ in batch.where]
    rows, columns = batch.is_masked_BT.nonzero(as_tuple=True)
    truths = batch.ids_BT[rows, columns].tolist()
    for row, truth, right_V, wrong_V in zip(rows.tolist(), truths, *probabilities, strict=True):
        found[row].append(
            HiddenToken(
                truth=run.tokenizer.word(truth),
                guesses=_best(right_V, truth, run.tokenizer),
                wrong_picture=_best(wrong_V, truth, run.tokenizer),
                truth_probability=right_V[truth].item(),
                truth_probability_wrong_picture=wrong_V[truth].item(),
            )
        )
    return found


def _best(probability_V: Tensor, truth: int, tokenizer: Tokenizer) -> tuple[Guess, ...]:
    values, ids = probability_V.topk(min(NUM_GUESSES, len(probability_V)))
    return tuple(
        Guess(text=tokenizer.word(token), probability=value, is_right=token == truth)
        for value, token in zip(values.tolist(), ids.tolist(), strict=True)
    )


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
