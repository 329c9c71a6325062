"""What answers and verdicts can be had without looking at the pictures: counted on the labels of the validation data."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from eve_vl.data.dataset import eval_positions
from eve_vl.data.loader import open_train_and_val
from eve_vl.errors import BadSampleError
from eve_vl.evaluation import training_questions
from eve_vl.metrics import vqa as metrics
from eve_vl.run import LoadedRun
from eve_vl.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class AnswerBaselines:
    """Accuracies of guessing answers."""

    blind: float
    """The most frequent training answer to the same words."""
    majority: float
    """The most frequent training answer of all."""
    blind_by_type: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class VerdictBaselines:
    """What guessing verdicts gives."""

    majority: float
    """Share of the more frequent label."""
    chance_consistency: float
    """Expected share of statements whose pairs are all judged right by a coin."""


def answer_baselines(run: LoadedRun, num_samples: int) -> AnswerBaselines | None:
    """Return them for the validation questions; None if the training questions cannot be read or no answer is known."""
    train = training_questions(run.config)
    rows = [row for row in _rows(run, num_samples) if row.answers]
    if not train or not rows:
        return None

    answers = [row.answers for row in rows]
    guesses = metrics.blind_answers(train, [row.question for row in rows])
    blind = metrics.summary(guesses, answers, [row.answer_type for row in rows])
    return AnswerBaselines(
        blind=blind["vqa_acc"],
        majority=metrics.majority_baseline((given for _, given in train), answers),
        blind_by_type={name.partition("/")[2]: value for name, value in blind.items() if "/" in name},
    )


def verdict_baselines(run: LoadedRun, num_samples: int) -> VerdictBaselines | None:
    """Return them for the validation statements; None if no label is known."""
    rows = [row for row in _rows(run, num_samples) if row.label is not None]
    if not rows:
        return None
    share = sum(row.label for row in rows) / len(rows)
    sizes = Counter(row.group for row in rows).values()
    return VerdictBaselines(
        majority=max(share, 1 - share), chance_consistency=math.fsum(0.5**size for size in sizes) / len(sizes)
    )


def chance_recall(k: int, num_matches: float, num_candidates: float) -> float:
    """Return the chance that one of k candidates drawn blindly is among the num_matches (on average) right ones."""
    return 1 - max(0.0, 1 - num_matches / num_candidates) ** k


def _rows(run: LoadedRun, num_samples: int) -> list[Any]:
    """Return the usable rows that validation goes through. Raises UserError if the data cannot be read."""
    _, sources = open_train_and_val(run.config, TASKS[run.config.task.name].dataset.kind)
    found = []
    for _, source, row in eval_positions([len(source) for source in sources], num_samples):
        try:
            found.append(sources[source][row])
        except BadSampleError:
            continue
    return found
