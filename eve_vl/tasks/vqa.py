"""Visual question answering: classification over an answer list, read off the text [CLS] of the pair.

Letters: B batch, A answers, D width, T text tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.config import Config, VQAConfig, generated
from eve_vl.data.answer_vocab import closed_answers, drop_unanswerable, read_answers
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.loader import open_train_and_val
from eve_vl.data.records import Source, usable_rows
from eve_vl.evaluation.ablations import How
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import intervals
from eve_vl.metrics import vqa as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import MLPHead
from eve_vl.tasks.task import Classifier, Prepared, PublishedHead, Sizes, pair_tokens
from eve_vl.utils.errors import UserError

GENERATED_ROWS = 10_000  # of a generated source, whose rows cost time, the blind baseline looks at so many, spread evenly

PUBLISHED = {f"answer_head.{number}.{kind}": f"output.{number}.{kind}" for number in (0, 1, 3) for kind in ("weight", "bias")}
"""Published names of the head."""


def _published_settings(tensors: Mapping[str, Tensor], width: int) -> VQAConfig | None:
    """Return the section of a checkpoint whose head reads one state; one of NLVR2's is called `output` too, but reads two."""
    reads_one = "output.0.weight" in tensors and tensors["output.0.weight"].shape[1] == width
    return VQAConfig() if reads_one else None


@dataclass(frozen=True, kw_only=True)
class VQAExample:
    """A question with the model's best answer and the annotators' (none where they are kept back)."""

    question: str
    question_id: int | str
    answer: str
    probability: float
    answers: tuple[str, ...]
    answer_type: str
    content_type: str = ""
    group: str = ""
    where: str
    name: str = ""
    image_id: int
    """What it is about, as a hash."""


class VQA(Classifier[VQAConfig]):
    """The task: encoder and answer head."""

    section = VQAConfig
    dataset = QuestionRows
    main_metric, accuracy = "vqa_acc", "target_acc"
    against = (
        Baseline(
            *("vqa_acc", "question", "vqa_acc_blind", "answering without the image", "uses the image"),
            others={
                "vqa_acc_words": "guessing from the question's words",
                "vqa_acc_noise": "looking at noise instead of the image",
                "vqa_acc_wrong_image": "looking at a wrong image",
                "vqa_acc_image_only": "not reading the question",
            },
        ),
        Baseline("vqa_acc_pair", "pair of questions", "vqa_acc_blind_pair", "answering without the image"),
    )
    blinds: tuple[How, ...] = ("noise", "wrong_image", "image_only")
    labels_file = "answers.json"
    label_layer = "answer_head.3"
    has_prediction_file = True
    published_head = PublishedHead(keys=lambda _: PUBLISHED, settings=_published_settings, words=50)
    computation = "answerer"
    meaning = f"one per answer of {labels_file}; the sigmoid of each is its probability of being right"

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.answers = sizes.labels
        self.answer_ids: dict[str, list[int]] = {}  # of a normal form; a list may hold "2" and "two"
        for index, answer in enumerate(self.answers):
            self.answer_ids.setdefault(metrics.normalize(answer), []).append(index)
        self.answer_head = MLPHead(self.encoder.pair_dim, 2 * config.model.embed_dim, len(self.answers))
        initialize(self, config.model)
        self.answer_head.start_as_one_of_many()

    @classmethod
    def prepare(cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None) -> Prepared:
        """Read the answer list or build it from the questions, and leave out questions that it cannot answer."""
        answers = labels or _answer_list(config, sources)
        kept, notes = drop_unanswerable(sources, answers, metrics.normalize)
        if not labels and cast(VQAConfig, config.task).answers is None:
            notes = tuple(f"{note} (--task.min-answer-count 1 keeps all)" for note in notes)
        return Prepared(sources=kept, labels=tuple(answers), notes=notes)

    def targets(self, batch: QuestionBatch) -> Tensor:
        """Return the soft targets (B, A), float32 on the CPU; answers outside the list train nothing."""
        target_BA = torch.zeros(len(batch.answers), len(self.answers))
        given = [
            (row, index, score)
            for row, answers in enumerate(batch.answers)
            for answer, score in metrics.soft_targets(answers).items()
            for index in self.answer_ids.get(answer, ())
        ]
        if given:  # all at once, for single values cost more than what they are made of
            rows, indices, scores = zip(*given, strict=True)
            target_BA[rows, indices] = torch.tensor(scores)
        return target_BA

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the rows. labels: soft targets (B, A) in [0, 1]. Raises UserError for another shape."""
        if labels.shape != logits_BC.shape:
            raise UserError(f"labels of shape {tuple(labels.shape)}, expected soft targets {tuple(logits_BC.shape)}")
        return objectives.answer_bce(logits_BC, labels.float())

    def examples_of(self, batch: QuestionBatch) -> list[VQAExample]:
        """Answer the questions of a batch."""
        probability_B, best_B = self.predict(batch)[0].float().sigmoid().max(1)
        return [
            VQAExample(answer=self.answers[best], probability=probability, **row)
            for row, probability, best in zip(batch.rows(), probability_B.tolist(), best_B.tolist(), strict=True)
        ]

    def order(self, example: VQAExample) -> Any:
        """Sort by question id, numbers before words."""
        return str(type(example.question_id)), example.question_id, example.where

    def numbers(self, examples: Sequence[VQAExample]) -> dict[str, float]:
        """Return the numbers of `metrics.vqa`, and how many questions have no answer in the list."""
        numbers = metrics.summary(
            [each.answer for each in examples],
            [each.answers for each in examples],
            [each.answer_type for each in examples],
            [each.image_id for each in examples],
            [each.content_type for each in examples],
            [each.group for each in examples],
        )
        known = [[metrics.normalize(answer) for answer in each.answers] for each in examples if each.answers]
        outside = sum(self.answer_ids.keys().isdisjoint(given) for given in known)
        return numbers | ({"num_outside_list": outside} if outside else {})

    def remarks(self, numbers: Mapping[str, float]) -> list[str]:
        """Return a sentence about answers that no run with this list can give."""
        remarks = super().remarks(numbers)
        if outside := numbers.get("num_outside_list"):
            of = numbers["num_questions"] - numbers["num_unanswered"]
            listed = f"the run's {len(self.answers)} answers"
            remarks.append(f"of {of:,} questions, {outside:,} have an answer that is not among {listed}: always wrong")
        return remarks

    def row_scores(self, examples: Sequence[VQAExample]) -> dict[str, float]:
        """Return the accuracy of each question that has answers; those about one image belong together."""
        known = [each for each in examples if each.answers]
        return {f"{each.name}{GROUP}{each.image_id}": metrics.accuracy_of(each.answer, each.answers) for each in known}

    def baselines(self, examples: Sequence[VQAExample]) -> dict[str, float]:
        """Return baselines that look at no image; empty if training or evaluation has no answers to compare."""
        train = training_questions(self.config)
        if not train or not any(each.answers for each in examples):
            return {}
        own, scores = self.numbers(examples)["vqa_acc"], self.row_scores(examples)
        guesses = {
            "vqa_acc_blind": metrics.blind_answers(train, [each.question for each in examples]),
            "vqa_acc_words": metrics.answers_by_words(train, [each.question for each in examples]),
            # as if all asked the same
            "vqa_acc_majority": metrics.blind_answers([("", given) for _, given in train], [""] * len(examples)),
        }
        found: dict[str, float] = {}
        for name, answers in guesses.items():
            guessed = [replace(each, answer=answer) for each, answer in zip(examples, answers, strict=True)]
            found |= {key.replace("vqa_acc", name): value for key, value in self.numbers(guessed).items() if "vqa_acc" in key}
            gain_R = np.subtract([*scores.values()], [*self.row_scores(guessed).values()]) / len(scores)
            found["vqa_acc"] = intervals.over(own, name, gain_R, [*map(intervals.group_of, scores)])
        return found

    def prediction_file(self, examples: Sequence[VQAExample]) -> str:
        """Return the JSON that the VQA server takes: a list of question_id and answer."""
        return json.dumps([{"question_id": each.question_id, "answer": each.answer} for each in examples], indent=0) + "\n"

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of a step."""
        return {"fusion pass": self.encoder.flops(*pair_tokens(self.config), "cls")}


def _answer_list(config: Config, sources: Sequence[Source[Any]]) -> list[str]:
    """Return the given answer list, else the frequent answers of the questions. Raises UserError if none is frequent enough."""
    assert isinstance(config.task, VQAConfig)
    if config.task.answers is not None:
        return read_answers(config.task.answers)
    if (closed := closed_answers(sources)) is not None:
        return closed
    given = (row.answers for source in sources for _, row in usable_rows(source))
    answers = metrics.build_answers(given, config.task.min_answer_count)
    if not answers:
        raise UserError(
            f"{' '.join(config.data.train)}: no answer is given to {config.task.min_answer_count} training questions; "
            "give a lower --task.min-answer-count or an answer list with --task.answers"
        )
    return answers


def training_questions(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    """Return question and answers of a run's training rows, without held-out ones and those that have no answers.

    Empty where the training data is out of reach.
    """
    try:
        sources = open_train_and_val(config, VQA.kind(config))[0]
    except UserError:
        return []
    questions = []
    for name, source in zip(config.data.train, sources, strict=True):
        count = min(len(source), GENERATED_ROWS) if generated(name) else len(source)
        rows = usable_rows(source, np.linspace(0, len(source), count, endpoint=False).astype(int).tolist())
        questions += [(row.question, row.answers) for _, row in rows if row.answers]
    return questions
