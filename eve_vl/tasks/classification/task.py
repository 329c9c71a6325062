"""Classification of images, texts or both."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.data.answer_list import read_answers
from eve_vl.data.kinds.labels import LabelBatch, LabeledRows
from eve_vl.data.records import Source, usable_rows
from eve_vl.model.heads import MLPHead
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.classifier.task import Classifier
from eve_vl.tasks.task import Prepared
from eve_vl.utils.errors import UserError, nearest

MAX_CLASSES = 10_000  # a column with more distinct values hardly holds labels


READS = {
    "image": ("pixels",),
    "text": ("ids", "is_padding"),
    "both": ("pixels", "ids", "is_padding"),
}


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
