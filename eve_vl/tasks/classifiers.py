"""Tasks with logits over labels: classification, questions, statements.

Questions have an answer list; statements are about two images (NLVR2).

Letters: B batch, A answers, C classes, D width, H height, W width, N all tokens, T text tokens.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.config import ClassificationConfig, Config, NLVR2Config, VQAConfig
from eve_vl.data.answer_list import closed_vocabulary, drop_unanswerable, read_answers
from eve_vl.data.batches import normalize
from eve_vl.data.kinds.labels import LabelBatch, LabeledRows
from eve_vl.data.kinds.questions import QuestionBatch, QuestionRows
from eve_vl.data.kinds.statements import StatementBatch, StatementRows
from eve_vl.data.records import Source, usable_rows
from eve_vl.metrics import vqa as metrics
from eve_vl.model.embeddings import index_tokens
from eve_vl.model.heads import MLPHead, PairedAttentionHead, SiameseHead
from eve_vl.tasks.task import PAIR, Prepared, Routers, Settings, Sizes, Task
from eve_vl.train import StepOutput
from eve_vl.train.processes import send
from eve_vl.utils.errors import UserError, nearest

FIELDS = {
    "pixels": "images_BCHW",
    "left": "images_BCHW",
    "right": "right_BCHW",
    "ids": "ids_BT",
    "is_padding": "is_padding_BT",
}
FIELDS |= {"right_ids": "right_ids_BT", "right_is_padding": "right_is_padding_BT"}
MAX_CLASSES = 10_000  # a column with more distinct values hardly holds labels
READS = {
    "image": ("pixels",),
    "text": ("ids", "is_padding"),
    "both": ("pixels", "ids", "is_padding"),
}


class Classifier(Task[Settings]):
    """A task whose head gives each row logits over labels.

    Labels are classes, answers, or the truth of a statement.
    """

    reads: tuple[str, ...] = PAIR
    """The arguments of `logits`, by the names in FIELDS."""
    class_names: ClassVar[tuple[str, ...]] = ()
    """Names of the logits of a task without a list of labels."""
    is_multilabel: bool = False
    """Whether a row may have several labels, each of its own probability."""
    accuracy: ClassVar[str] = "acc"
    """The log's name for the mean target of the best classes."""

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        if (
            self.is_multilabel
        ):  # each label starts as one of many: a prior of one half costs the first hundred steps
            bias: Any = self.get_submodule(self.label_layer or "").bias
            nn.init.constant_(bias, -math.log(max(len(bias) - 1, 1)))

    def forward(self, batch: Any) -> StepOutput:
        """Return the loss over the classes plus the weighted balance loss."""
        logits_BC, routers = self.predict(batch)
        target, best_B = send(self.targets(batch), logits_BC.device), logits_BC.argmax(1)
        right_B = target == best_B if target.ndim == 1 else target.gather(1, best_B[:, None])
        losses = {self.section.name: self.loss(logits_BC, target)}
        return self.output(losses, routers, **{self.accuracy: right_B.float().mean()})

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of the tensors that `reads` names, and routers.

        Default: those of the head that `label_layer` is in, read off the [CLS]. num_real: number of tokens that are no padding,
        if known.
        """
        assert self.label_layer is not None
        given = dict(zip(self.reads, tensors, strict=True))
        image = (
            None
            if (images_BCHW := given.get("pixels")) is None
            else self.encoder.image(normalize(images_BCHW))
        )
        text = (
            None
            if (ids_BT := given.get("ids")) is None
            else self.encoder.text(ids_BT, given["is_padding"], num_real)
        )
        cls_BD, routers = self.encoder.cls(image, text)
        return self.get_submodule(self.label_layer.rpartition(".")[0])(cls_BD), routers

    def targets(self, batch: Any) -> Tensor:
        """Return the target of each class, float32 (B, C) in [0, 1], or the right class.

        Both are on the CPU; the right class is (B,). Raises UserError.
        """
        raise NotImplementedError

    def predict(self, batch: Any) -> tuple[Tensor, Routers]:
        """Return logits (B, C) of a batch's rows, and the routers' statistics."""
        return self.logits(
            *(getattr(batch, FIELDS[name]) for name in self.reads),
            num_real=getattr(batch, "num_real", None),
        )

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the probability of each class, float32 (B, C)."""
        return logits_BC.float().sigmoid() if self.is_multilabel else logits_BC.float().softmax(1)

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of the rows.

        If they have several labels, it is the sum of binary ones over labels. labels: int64 (B,), or `targets`.
        """
        if self.is_multilabel:
            return objectives.answer_bce(logits_BC, labels.float())
        return F.cross_entropy(logits_BC.float(), labels.long() if labels.ndim == 1 else labels)

    def routers(self, batch: Any) -> Routers:
        """Return the routers' statistics of the pass over the rows."""
        return self.predict(batch)[1]


class Classification(Classifier[ClassificationConfig]):
    """Labels of an image, a text or both, read off the [CLS].

    A row has one label, or a yes or no per label.
    """

    section = ClassificationConfig
    dataset = LabeledRows
    labels_file = "classes.json"
    label_layer = "class_head.3"

    def build(self) -> None:
        """Build the head."""
        inputs, model, labels = self.settings.inputs, self.config.model, self.sizes.labels
        self.is_multilabel, self.reads = self.settings.multilabel, READS[inputs]
        self.find_unused_parameters |= inputs != "both"
        self.class_ids = {label: c for c, label in enumerate(labels)}
        D = model.text_width if inputs == "text" else model.embed_dim
        self.class_head = MLPHead(
            self.encoder.pair_dim if inputs == "both" else D, 2 * D, len(labels)
        )

    @classmethod
    def prepare(
        cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None
    ) -> Prepared:
        """Read the list of classes, or collect those of the rows.

        Raises UserError if there are none, or too many.
        """
        assert isinstance(config.task, ClassificationConfig)
        given = [row.labels for source in sources for _, row in usable_rows(source)]
        used, listed, where = (
            set(itertools.chain(*given)),
            config.task.classes,
            f"data.train {' '.join(config.data.train)}",
        )
        labels = labels or (read_answers(listed) if listed is not None else sorted(used))
        if not 1 < len(labels) <= MAX_CLASSES:
            such_as = f", such as {labels[0]!r}" if labels else ""
            fix = "if these are not labels, name their column with --data.label-column"
            raise UserError(
                f"{where}: {len(labels)} different labels{such_as}, expected 2 to {MAX_CLASSES}; {fix}"
            )
        if listed is not None and (unknown := used.difference(labels)):
            raise UserError(
                f"{where}: {len(unknown)} labels are not in {listed}, such as {nearest(min(unknown), labels)}"
            )
        most = max(map(len, given), default=0)
        if most > 1 and not config.task.multilabel:
            raise UserError(
                f"{where}: a row has {most} labels; give --task.multilabel for more than one"
            )
        note = "no row has several labels, but each is learnt as its own yes or no"
        notes = (f"{note}; --task.no-multilabel learns one label per row",) * (
            most < 2 and config.task.multilabel
        )
        return Prepared(sources=sources, labels=tuple(labels), notes=notes)

    def targets(self, batch: LabelBatch) -> Tensor:
        """Return 1 for each label of a row and 0 elsewhere, float32 (B, C), on the CPU.

        Raises UserError for unknown labels.
        """
        target_BC = torch.zeros(len(batch.labels), len(self.sizes.labels))
        for row, labels in enumerate(batch.labels):
            for label in labels:
                if label not in self.class_ids:
                    raise UserError(
                        f"{batch.where[row]}: the label {nearest(label, self.class_ids)}"
                    )
                target_BC[row, self.class_ids[label]] = 1
        return target_BC


# Visual question answering over an answer list: the head reads the text [CLS] of the pair


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
        self.answer_ids: dict[str, list[int]] = {}  # by normal form; a list may hold "2" and "two"
        for index, answer in enumerate(self.answers):
            self.answer_ids.setdefault(metrics.normalize(answer), []).append(index)
        self.answer_head = MLPHead(
            self.encoder.pair_dim, 2 * self.config.model.embed_dim, len(self.answers)
        )

    @classmethod
    def prepare(
        cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None
    ) -> Prepared:
        """Read the answer list or build it from the questions.

        Questions without an answer in it are left out.
        """
        answers = labels or _answer_list(config, sources)
        kept, notes = drop_unanswerable(sources, answers, metrics.normalize)
        if not labels and cast(VQAConfig, config.task).answers is None:
            notes = tuple(f"{note} (--task.min-answer-count 1 keeps all)" for note in notes)
        return Prepared(sources=kept, labels=tuple(answers), notes=notes)

    def targets(self, batch: QuestionBatch) -> Tensor:
        """Return the soft targets (B, A), float32 on the CPU.

        Answers outside the list train nothing.
        """
        target_BA = torch.zeros(len(batch.answers), len(self.answers))
        given = [
            (row, index, score)
            for row, answers in enumerate(batch.answers)
            for answer, score in metrics.soft_targets(answers).items()
            for index in self.answer_ids.get(answer, ())
        ]
        if given:  # in one assignment: one per value took longer than computing the values
            rows, indices, scores = zip(*given, strict=True)
            target_BA[rows, indices] = torch.tensor(scores)
        return target_BA


def _answer_list(config: Config, sources: Sequence[Source[Any]]) -> list[str]:
    """Return the given answer list, else the frequent answers of the questions.

    Raises UserError if there are none.
    """
    assert isinstance(config.task, VQAConfig)
    if config.task.answers is not None:
        return read_answers(config.task.answers)
    if (closed := closed_vocabulary(sources)) is not None:
        return closed
    given = (row.answers for source in sources for _, row in usable_rows(source))
    answers = metrics.build_answers(given, config.task.min_answer_count)
    if not answers:
        problem = f"no answer is given to {config.task.min_answer_count} training questions"
        fix = "give a lower --task.min-answer-count or an answer list with --task.answers"
        raise UserError(f"{' '.join(config.data.train)}: {problem}; {fix}")
    return answers


# NLVR2: the encoder reads each of two images with the statement; a head reads both results

PAIRED_HEAD_WIDTH = (
    64  # of an attention head of the paired head, if the backbone has no number of heads
)


class NLVR2(Classifier[NLVR2Config]):
    """Encoder and one of three heads."""

    section = NLVR2Config
    dataset = StatementRows
    class_names = ("False", "True")
    reads = ("left", "right", "ids", "is_padding")

    def build(self) -> None:
        """Build the head."""
        D, width = self.encoder.pair_dim, self.config.model.embed_dim
        match self.settings.head:
            case "concat":
                self.concat_head = MLPHead(2 * D, 2 * D, 2)
            case "compare":
                self.compare_head = SiameseHead(D)
            case "paired":
                num_heads = getattr(
                    self.config.model, "num_heads", max(width // PAIRED_HEAD_WIDTH, 1)
                )
                self.paired_head = PairedAttentionHead(width, num_heads)
        if self.settings.second_image_type_embedding:
            self.right_bias = nn.Parameter(
                torch.empty(width)
            )  # type embedding of the right image minus that of the left

    def logits(self, *tensors: Any, num_real: int | None = None) -> tuple[Tensor, Routers]:
        """Return logits (B, 2), class 1 = true, and the routers' statistics of each pass."""
        left_BCHW, right_BCHW, ids_BT, is_padding_BT = tensors
        B = ids_BT.shape[0]
        image = self.encoder.image(torch.cat([normalize(left_BCHW), normalize(right_BCHW)]))
        if self.settings.second_image_type_embedding:
            image.x_BND = torch.cat([image.x_BND[:B], image.x_BND[B:] + self.right_bias])
        text = index_tokens(
            self.encoder.text(ids_BT, is_padding_BT),
            torch.arange(B, device=ids_BT.device).repeat(2),
        )
        text.num_real = None if num_real is None else 2 * num_real
        if self.settings.head == "paired":
            encoded = self.encoder.encode(image, text, num_passes=2)
            left_BND, right_BND = encoded.x_BND.unflatten(0, (2, -1))
            is_padding_BN = None if encoded.is_padding_BN is None else encoded.is_padding_BN[:B]
            return self.paired_head(left_BND, right_BND, is_padding_BN), encoded.routers
        cls_XD, routers = self.encoder.cls(image, text, num_passes=2)
        left_BD, right_BD = cls_XD.unflatten(0, (2, -1))
        if self.settings.head == "compare":
            return self.compare_head(left_BD, right_BD), routers
        return self.concat_head(torch.cat([left_BD, right_BD], dim=1)), routers

    def targets(self, batch: StatementBatch) -> Tensor:
        """Return the class of each row, bool (B,) on the CPU."""
        return torch.tensor(batch.labels)
