"""Classification of images, texts or both.

Letters: B rows of a batch, C classes, D width.
"""

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
"""The arguments of `logits` by task.inputs."""


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
        inputs = self.settings.inputs
        self.is_multilabel = self.settings.multilabel
        self.reads = READS[inputs]
        self.find_unused_parameters |= inputs != "both"
        self.class_ids = {label: number for number, label in enumerate(self.sizes.labels)}
        D = self.config.model.embed_dim
        if inputs == "text":
            D = self.config.model.text_width
        in_dim = self.encoder.pair_dim if inputs == "both" else D
        self.class_head = MLPHead(in_dim, 2 * D, len(self.sizes.labels))

    @classmethod
    def prepare(
        cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None
    ) -> Prepared:
        """Read the list of classes, or collect those of the rows.

        Raises UserError if there are none, or too many.
        """
        assert isinstance(config.task, ClassificationConfig)
        used: set[str] = set()
        most_labels = 0
        for source in sources:
            for _, row in usable_rows(source):
                used.update(row.labels)
                most_labels = max(most_labels, len(row.labels))
        classes_file = config.task.classes
        if not labels:
            labels = sorted(used) if classes_file is None else read_answers(classes_file)

        where = f"data.train {' '.join(config.data.train)}"
        require_number_of_classes(labels, where)
        unknown = used.difference(labels)
        if classes_file is not None and unknown:
            raise UserError(
                f"{where}: {len(unknown)} labels are not in {classes_file}, "
                f"such as {nearest(min(unknown), labels)}"
            )
        if most_labels > 1 and not config.task.multilabel:
            raise UserError(
                f"{where}: a row has {most_labels} labels; give --task.multilabel for more than one"
            )
        notes = []
        if most_labels < 2 and config.task.multilabel:
            notes.append(
                "no row has several labels, but each is learnt as its own yes or no; "
                "--task.no-multilabel learns one label per row"
            )
        return Prepared(sources=sources, labels=tuple(labels), notes=tuple(notes))

    def targets(self, batch: LabelBatch) -> Tensor:
        """Return 1 for each label of a row and 0 elsewhere, float32 (B, C), on the CPU.

        Raises UserError for unknown labels.
        """
        target_BC = torch.zeros(len(batch.labels), len(self.sizes.labels))
        for row, labels in enumerate(batch.labels):
            for label in labels:
                if label not in self.class_ids:
                    problem = f"the label {nearest(label, self.class_ids)}"
                    raise UserError(f"{batch.where[row]}: {problem}")
                target_BC[row, self.class_ids[label]] = 1
        return target_BC


def require_number_of_classes(labels: Sequence[str], where: str) -> None:
    """Raise UserError for too few classes, or too many to be labels."""
    if 1 < len(labels) <= MAX_CLASSES:
        return
    example = f", such as {labels[0]!r}" if labels else ""
    raise UserError(
        f"{where}: {len(labels)} different labels{example}, expected 2 to {MAX_CLASSES}; "
        "if these are not labels, name their column with --data.label-column"
    )
