"""Right and wrong examples of a fine-tuned run on its validation data, and which experts its tokens choose.

Letters: B batch, A answers, E experts, K best candidates of a query; in chosen_ME, M = 2 modalities (image, text).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.data.batch import QuestionBatch, StatementBatch
from eve_vl.errors import UserError
from eve_vl.look import look
from eve_vl.metrics import vqa as metrics
from eve_vl.report.evidence import batches
from eve_vl.report.routing import Routing, add_choices
from eve_vl.run import LoadedRun
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.vqa import VQA

NUM_SEEN = 128
NUM_EACH = 6
NUM_CHOICES = 3
Item = TypeVar("Item", "Asked", "Claimed")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer that the model proposes; `is_right` if an annotator gave it too."""

    text: str
    probability: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with the model's best answers; `truths` is empty where they are kept back."""

    where: str
    picture: np.ndarray
    question: str
    answer_type: str
    choices: tuple[Choice, ...]
    truths: tuple[str, ...]
    heat: tuple[np.ndarray, ...] = ()
    """The picture under what speaks for the best answer, if that can be told."""

    @property
    def is_right(self) -> bool | None:
        """None where it is not known."""
        return self.choices[0].is_right if self.truths else None


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A statement about two pictures with the model's verdict; `label` is None where it is kept back."""

    where: str
    left: np.ndarray
    right: np.ndarray
    statement: str
    verdict: bool
    probability: float
    """Of being true."""
    label: bool | None
    heat: tuple[np.ndarray, ...] = ()
    """Both pictures under what speaks for the statement being true, if that can be told."""

    @property
    def is_right(self) -> bool | None:
        """None where it is not known."""
        return None if self.label is None else self.verdict == self.label


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Examples of a run, the right ones first, with how many were looked at, and the experts chosen on all of them."""

    shown: tuple[Asked | Claimed, ...]
    num_seen: int
    num_right: int
    routing: Routing


def gather_examples(run: LoadedRun, num_each: int = NUM_EACH, num_seen: int = NUM_SEEN) -> Examples:
    """Run a VQA or NLVR2 model in float32 on rows spread evenly over its validation data.

    Raises UserError if that cannot be read.
    """
    task, chosen = run.task, []
    assert isinstance(task, VQA | NLVR2)
    with torch.inference_mode():
        if isinstance(task, VQA):
            seen = [each for batch in batches(run, num_seen) for each in ask(task, batch, chosen)]
            shown = _right_and_wrong(seen, num_each, lambda each: each.answer_type)
        else:
            seen = [each for batch in batches(run, num_seen) for each in judge(task, batch, chosen)]
            shown = _right_and_wrong(seen, num_each, lambda each: each.verdict)
    return Examples(
        shown=tuple(with_heat(run, each) for each in shown),
        num_seen=len(seen),
        num_right=sum(each.is_right is True for each in seen),
        routing=Routing.of(chosen, len(seen)),
    )


def with_heat(run: LoadedRun, each: Asked | Claimed) -> Asked | Claimed:
    """Return an example with its pictures under the Grad-CAM."""
    if isinstance(each, Asked):
        return replace(each, heat=overlays(run, [each.picture], each.question, answer=each.choices[0].text))
    return replace(each, heat=overlays(run, [each.left, each.right], each.statement))


def overlays(
    run: LoadedRun, pictures: Sequence[np.ndarray], text: str, *, word: str | None = None, answer: str | None = None
) -> tuple[np.ndarray, ...]:
    """Return pictures under the Grad-CAM of what `look` is asked; empty where the run has nothing to look for."""
    try:
        return look(run, pictures, text, word=word, answer=answer).overlays()
    except UserError:  # such as no matching head, or a single block
        return ()


def ask(task: VQA, batch: QuestionBatch, chosen: list[Tensor]) -> list[Asked]:
    """Return what the model makes of each question; adds the experts chosen."""
    logits_BA, router = task.predict(batch)
    add_choices(chosen, [router])
    best = logits_BA.float().sigmoid().topk(min(NUM_CHOICES, len(task.answers)))
    found = []
    for row, (values, indices) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        truths = batch.answers[row]
        answers = [task.answers[index] for index in indices]
        choices = (
            Choice(text=answer, probability=value, is_right=bool(truths) and metrics.accuracy_of(answer, truths) > 0)
            for answer, value in zip(answers, values, strict=True)
        )
        found.append(
            Asked(
                where=batch.where[row],
                picture=pixels_of(batch.images_BCHW[row]),
                question=batch.questions[row],
                answer_type=batch.answer_types[row],
                choices=tuple(choices),
                truths=truths,
            )
        )
    return found


def judge(task: NLVR2, batch: StatementBatch, chosen: list[Tensor]) -> list[Claimed]:
    """Return what the model makes of each statement; adds the experts chosen."""
    logits_B2, routers = task.predict(batch)
    add_choices(chosen, routers)
    return [
        Claimed(
            where=batch.where[row],
            left=pixels_of(batch.images_BCHW[row]),
            right=pixels_of(batch.right_BCHW[row]),
            statement=batch.statements[row],
            verdict=probability > 0.5,
            probability=probability,
            label=batch.labels[row],
        )
        for row, probability in enumerate(logits_B2.float().softmax(1)[:, 1].tolist())
    ]


def pixels_of(image_CHW: Tensor) -> np.ndarray:
    """Return a uint8 picture as (H, W, 3)."""
    return image_CHW.permute(1, 2, 0).cpu().numpy()


def _right_and_wrong(items: Sequence[Item], num_each: int, kind: Callable[[Item], object]) -> tuple[Item, ...]:
    """Return num_each right ones, then as many wrong ones, kinds in turns; without truths, the first ones."""
    sides = [[item for item in items if item.is_right is verdict] for verdict in (True, False)]
    if not any(sides):
        return tuple(items[: 2 * num_each])
    return tuple(itertools.chain(*(_in_turns(side, kind)[:num_each] for side in sides)))


def _in_turns(items: Sequence[Item], kind: Callable[[Item], object]) -> list[Item]:
    """Return all items, the first of each kind before the second of any."""
    kinds: dict[object, list[Item]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    return [item for turn in itertools.zip_longest(*kinds.values()) for item in turn if item is not None]
