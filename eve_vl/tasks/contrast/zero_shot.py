"""Zero-shot classification by the similarity of images and prompts.

An image belongs to the class whose prompts are most similar to it.

Letters: B batch, R rows, C classes, P prompts, d width of features.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eve_vl.config.generated_sources import generator_names
from eve_vl.data import fingerprint
from eve_vl.data.batches import normalize, padded
from eve_vl.data.generated import find_generator
from eve_vl.data.kinds.labels import LabeledRows
from eve_vl.data.loader import eval_loader
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.sample_set import SampleSet
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import classification as metrics
from eve_vl.metrics import intervals
from eve_vl.metrics.average_precision import ranking_summary
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.contrast.task import ContrastTask
from eve_vl.tasks.evaluator import Evaluated
from eve_vl.tasks.run import Run
from eve_vl.tasks.task import Task
from eve_vl.train.evaluation_batches import evaluation_batches, num_skipped
from eve_vl.utils.errors import UserError, printable
from eve_vl.utils.file_io import expand_user, read_json
from eve_vl.utils.frozen import Frozen

MAX_PROMPTS = 100_000  # of a class, since products of long lists grow fast


FORM = 'a list of texts, or {"part": [texts], …} whose parts are put together in every combination'


PROMPTS_AT_ONCE = 64


BASELINES = (
    Baseline(
        "acc",
        "row",
        "acc_majority",
        "always giving the most frequent class",
        others={"acc_noise": "looking at noise"},
    ),
    Baseline(
        "mean_ap",
        "row",
        "mean_ap_chance",
        "a constant score",
        others={"mean_ap_noise": "looking at noise"},
    ),
)


By = Literal["mean", "max"]


Prompts = Mapping[str, tuple[str, ...]]


def read_prompts(given: str | Path | Mapping[str, Any]) -> tuple[Prompts, str]:
    """Return the texts of each class, and the name of their origin.

    The origin is a JSON file, a generator with prompts such as phantoms, or a mapping. A class has a list of texts, or lists of parts by name, whose
    combinations are the texts: `{"Edema": {"severity": ["mild", "severe"], "what": ["edema"]}}`. A part may be "". Raises
    UserError.
    """
    if isinstance(given, Mapping):
        values, where = given, "prompts"
    elif (built_in := _built_in_prompts(given)) is not None:
        return built_in(), f"prompts {given}"
    else:
        path = expand_user(given)
        values, where = read_json(path, dict), str(path)
    prompts = {
        name: _texts(parts, f"{where}: the class {name!r}") for name, parts in values.items()
    }
    if len(prompts) < 2:
        raise UserError(
            f"{where}: names {len(prompts)} classes, expected at least 2, each with {FORM}"
        )
    return prompts, where


def _built_in_prompts(given: object) -> Callable[[], Prompts] | None:
    """Return the function that makes the prompts of a generator, None if there is none."""
    if str(given) not in generator_names():
        return None
    return find_generator(str(given)).class_prompts


def _texts(given: Any, where: str) -> tuple[str, ...]:
    lists = [*given.values()] if isinstance(given, Mapping) else [given]
    are_texts = all(
        isinstance(each, list | tuple) and all(isinstance(text, str) for text in each)
        for each in lists
    )
    if not are_texts or not 0 < math.prod(map(len, lists)) <= MAX_PROMPTS:
        raise UserError(f"{where} has no prompts, or more than {MAX_PROMPTS:,}; expected {FORM}")
    texts = tuple(dict.fromkeys(" ".join(" ".join(parts).split()) for parts in product(*lists)))
    if "" in texts:
        raise UserError(f"{where} has an empty prompt")
    return texts


class ClassScore(Frozen):
    """Class and its score.

    The score is a cosine if features compare, else the log-odds of a match. It is no probability.
    """

    label: str
    score: float

    def __str__(self) -> str:
        return f"{self.score:8.4f}  {printable(self.label)}"


class ZeroShot:
    """Scores of images for classes that are described by prompts.

    Features are compared; if they do not compare, the matching head scores pairs. The score of a class is the mean (or the
    maximum) over its prompts. Nothing is standardised over images, so the other images never change a prediction.
    """

    def __init__(self, task: Task[Any], tokenizer: Tokenizer, prompts: Prompts, by: By = "mean"):
        """Compute the prompts' features once.

        Raises UserError for a run that cannot score how well a text fits.
        """
        self.task: Any = task
        self.classes, self.by = tuple(prompts), by
        if by not in get_args(By):
            raise UserError(f"by {by!r} is not one of mean, max")
        has_matching = isinstance(task, ContrastTask) and task.contrast.match_head is not None
        if not (task.is_comparable or has_matching):
            needs = "zero-shot classification needs features of images and texts that compare, or a matching head"
            fix = "eve finetune search_small --init RUN --data.train FOLDER makes one that has"
            raise UserError(f"{needs}; a {task.section.name} run has neither; {fix}")
        texts = [text for given in prompts.values() for text in given]
        self.class_P = np.repeat(
            np.arange(len(prompts)), [len(given) for given in prompts.values()]
        )
        sizes, device = task.config.input, next(task.parameters()).device
        ids = [tokenizer.encode(text, sizes.max_text_tokens)[0] for text in texts]
        chunks = (
            ids[start : start + PROMPTS_AT_ONCE] for start in range(0, len(ids), PROMPTS_AT_ONCE)
        )
        batches = (padded(chunk, tokenizer.pad_id, sizes.padded_text_length) for chunk in chunks)
        self.ids = [
            (ids_BT.to(device), is_padding_BT.to(device)) for ids_BT, is_padding_BT in batches
        ]
        with torch.no_grad():
            self.text_Pd = (
                torch.cat([self.task.text_features(*ids) for ids in self.ids])
                if self.task.is_comparable
                else None
            )

    @torch.no_grad()
    def scores(self, images_BCHW: Tensor) -> np.ndarray:
        """Return the score of each class for uint8 images, float32 (B, C)."""
        if self.text_Pd is not None:
            score_BP = self.task.image_features(images_BCHW) @ self.text_Pd.T
        else:
            image = self.task.encoder.image(normalize(images_BCHW))
            logits_BP2 = torch.cat([self.task.match_each(image, *ids) for ids in self.ids], dim=1)
            score_BP = logits_BP2.float().diff().squeeze(2)
        return metrics.class_scores(score_BP.float().cpu().numpy(), self.class_P, self.by)

    def best(self, images_BCHW: Tensor, top: int) -> list[list[ClassScore]]:
        """Return the `top` classes of the highest scores of each image, best first."""
        return [
            [
                ClassScore(label=self.classes[c], score=float(score_C[c]))
                for c in np.argsort(-score_C, kind="stable")[:top]
            ]
            for score_C in self.scores(images_BCHW)
        ]

    def metrics(
        self, score_RC: np.ndarray, labels: Sequence[tuple[str, ...]], *, several: bool
    ) -> tuple[dict[str, float], np.ndarray]:
        """Return the metrics of labelled rows, and whether each row is right, (R,).

        A row is right if its best class is one of its labels. Rows of one label have accuracy and recall by class, next to
        chance and the prior of each class. Rows of several labels have the mean average precision. A row whose best classes tie
        is right to the share of its labels among them.
        """
        is_true_RC = np.array([[name in given for name in self.classes] for given in labels])
        right_R = (metrics.guess_shares(score_RC) * is_true_RC).sum(1)
        if several:
            return ranking_summary(score_RC, is_true_RC), right_R
        right, true = right_R.tolist(), [given[0] for given in labels]
        numbers = (
            metrics.summary(right, true)
            | {"acc_chance": 1 / len(self.classes)}
            | metrics.by_class(right, true)
        )
        return numbers, right_R


def zero_shot(
    run: Run,
    prompts: str | Path | Mapping[str, Any],
    sources: Sequence[Source[Any]],
    num_samples: int,
    *,
    by: By = "mean",
    skip_invalid: bool = False,
    data: str = "the data",
) -> Evaluated:
    """Return the metrics of zero-shot classification of labelled images.

    They stand next to chance, class priors and images of noise. In float32; deterministic. prompts: see `read_prompts`; of
    built-in prompts only the classes of the data are used. data: name of the sources in messages. Rows without labels are left
    out and counted. The classes, and whether a row may have several, follow from all rows, for any num_samples. Raises
    UserError, also if prompts and data differ in classes.
    """
    texts, where = read_prompts(prompts)
    kinds = {row.labels for source in sources for _, row in usable_rows(source)}
    classes, several = (
        {name for given in kinds for name in given},
        any(len(given) > 1 for given in kinds),
    )
    if not classes:
        raise UserError(f"{data}: no row has a label to compare with")
    if _built_in_prompts(prompts) is not None:  # nobody in phantoms:test_novel is healthy
        texts = {name: given for name, given in texts.items() if name in classes}
    if differ := sorted(texts.keys() ^ classes):
        there, lacking = (where, data) if differ[0] in texts else (data, where)
        raise UserError(
            f"{there} has the class {differ[0]!r}, {lacking} does not; give prompts of the same classes"
        )
    scorer = ZeroShot(run.task, run.tokenizer, texts, by)
    values = dataclasses.replace(
        run.config.data, val_samples=num_samples, skip_invalid_val=skip_invalid
    )
    config = dataclasses.replace(run.config, data=values, task=ClassificationConfig())
    rows, skipped = (
        LabeledRows(sources, config, run.tokenizer, training=False),
        [] if skip_invalid else None,
    )
    score_RC, labels, num_unlabelled = _scored(run, scorer, rows, skipped)
    if not labels:
        raise UserError(
            f"{data}: none of the {num_unlabelled} rows read has a label to compare with; raise --samples"
        )
    of_noise_RC, *_ = _scored(run, scorer, AblatedRows(rows, "noise"), [] if skip_invalid else None)
    given = [*labels.values()]
    numbers, right_R = scorer.metrics(score_RC, given, several=several)
    of_noise, of_noise_R = scorer.metrics(of_noise_RC, given, several=several)
    intervals.with_difference(
        numbers.get("acc", 0.0), "acc_noise", (right_R - of_noise_R) / len(given)
    )
    numbers |= {
        f"{name}_noise": of_noise[name]
        for name in ("acc", "balanced_acc", "mean_ap")
        if name in of_noise
    }
    numbers |= ({"num_unlabelled": num_unlabelled} if num_unlabelled else {}) | num_skipped(skipped)
    data_id = fingerprint.short(fingerprint.of_sources(enumerate(sources)))
    return Evaluated(
        numbers=numbers, row_scores=dict(zip(labels, right_R.tolist(), strict=True)), data=data_id
    )


def _scored(
    run: Run, scorer: ZeroShot, rows: SampleSet, skipped: list[UserError] | None
) -> tuple[np.ndarray, dict[str, tuple[str, ...]], int]:
    """Return the scores of labelled rows, their labels, and a count of the others.

    Scores are (R, C); labels are by name of the row.
    """
    scores, labels, num_rows = [], {}, 0
    with evaluation_batches(
        run.task, eval_loader(rows, rank=0, world=1), run.device, torch.float32, skipped
    ) as batches:
        for batch in batches:
            known = [row for row, given in enumerate(batch.labels) if given]
            scores.append(scorer.scores(batch.images_BCHW)[known])
            labels |= {batch.names[row]: batch.labels[row] for row in known}
            num_rows += len(batch.labels)
    return np.concatenate(scores), labels, num_rows - len(labels)
