"""Visual question answering as classification over an answer list.

The head reads the text [CLS] of the pair.

Letters: B questions of a batch, A answers.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.answer_list import closed_vocabulary, drop_unanswerable, read_answers
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.records import Source, usable_rows
from eve_vl.metrics import vqa as metrics
from eve_vl.metrics.answer_form import normalize
from eve_vl.model.heads import MLPHead
from eve_vl.tasks.classifier.task import Classifier
from eve_vl.tasks.task import Prepared
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError


class VQA(Classifier[VQAConfig]):
    """Encoder and answer head."""

    section = VQAConfig
    dataset = QuestionRows
    is_multilabel = True
    accuracy = "target_acc"
    labels_file = "answers.json"
    label_layer = "answer_head.3"

    def build(self) -> None:
        """Build the answer head."""
        self.answers = self.sizes.labels
        self.answer_ids: dict[str, list[int]] = {}
        """Indices by normal form; a list may hold "2" and "two"."""
        for index, answer in enumerate(self.answers):
            self.answer_ids.setdefault(normalize(answer), []).append(index)
        hidden_dim = 2 * self.config.model.embed_dim
        self.answer_head = MLPHead(self.encoder.pair_dim, hidden_dim, len(self.answers))

    @classmethod
    def prepare(
        cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None
    ) -> Prepared:
        """Read the answer list or build it from the questions.

        Questions without an answer in it are left out.
        """
        answers = labels or answer_list(config, sources)
        advice = ""
        if not labels and cast(VQAConfig, config.task).answers is None:
            advice = " (--task.min-answer-count 1 keeps all)"
        answerable, notes = drop_unanswerable(sources, answers, normalize, advice)
        return Prepared(sources=answerable, labels=tuple(answers), notes=notes)

    def targets(self, batch: QuestionBatch) -> Tensor:
        """Return the soft targets (B, A), float32 on the CPU.

        Answers outside the list train nothing.
        """
        rows = []
        columns = []
        scores = []
        for row, answers in enumerate(batch.answers):
            for answer, score in metrics.soft_targets(answers).items():
                for index in self.answer_ids.get(answer, ()):
                    rows.append(row)
                    columns.append(index)
                    scores.append(score)
        target_BA = torch.zeros(len(batch.answers), len(self.answers))
        if scores:  # in one assignment: one per value took longer than computing the values
            target_BA[rows, columns] = torch.tensor(scores)
        return target_BA


def answer_list(config: Config, sources: Sequence[Source[Any]]) -> list[str]:
    """Return the answer list of the config, else the frequent answers of the questions.

    Raises UserError if there are none.
    """
    assert isinstance(config.task, VQAConfig)
    if config.task.answers is not None:
        return read_answers(config.task.answers)
    vocabulary = closed_vocabulary(sources)
    if vocabulary is not None:
        return vocabulary
    answers_of_rows = (row.answers for source in sources for _, row in usable_rows(source))
    answers = metrics.build_answers(answers_of_rows, config.task.min_answer_count)
    if not answers:
        raise UserError(
            f"{' '.join(config.data.train)}: no answer is given to "
            f"{config.task.min_answer_count} training questions; "
            "give a lower --task.min-answer-count or an answer list with --task.answers"
        )
    return answers
