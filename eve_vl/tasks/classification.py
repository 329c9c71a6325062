"""Classification: an image, a text or both to one label, or each label to yes or no; read off the [CLS].

Letters: B batch, C classes, D width.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.config import ClassificationConfig, Config
from eve_vl.data.answer_vocab import read_answers
from eve_vl.data.kinds.labels import LabelBatch, LabeledRows
from eve_vl.data.records import Source, usable_rows
from eve_vl.evaluation.ablations import How
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import classification as metrics
from eve_vl.model.encoder import initialize
from eve_vl.model.heads import MLPHead
from eve_vl.tasks.task import Classifier, Prepared, Sizes, pair_tokens
from eve_vl.utils.errors import UserError, nearest

MAX_CLASSES = 10_000  # a column with more distinct values is hardly one of labels
BLINDS: dict[str, tuple[How, ...]] = {
    "image": ("noise",),
    "text": (),
    "both": ("noise", "wrong_image", "image_only"),
}
READS = {"image": ("pixels",), "text": ("ids", "is_padding"), "both": ("pixels", "ids", "is_padding")}


@dataclass(frozen=True, kw_only=True)
class ClassificationExample:
    """A row with the model's probabilities, float32 (C,), and its labels (none where they are kept back)."""

    probability_C: np.ndarray
    label: str
    """The most probable."""
    labels: tuple[str, ...]
    where: str
    name: str = ""


def _blind(number: str) -> dict[str, str]:
    """Return the blind baselines of a number with what each is."""
    looks = {"noise": "looking at noise", "wrong_image": "looking at a wrong image", "image_only": "not reading the text"}
    return {f"{number}_{how}": words for how, words in looks.items()}


class Classification(Classifier[ClassificationConfig]):
    """The task: encoder and a head over the classes."""

    section = ClassificationConfig
    dataset, scored = LabeledRows, "acc"
    labels_file = "classes.json"
    label_layer = "class_head.3"
    against = (
        Baseline("acc", "row", "acc_majority", "always giving the most frequent label", others=_blind("acc")),
        Baseline("mean_ap", "row", "mean_ap_chance", "a constant score", others=_blind("mean_ap")),
    )
    has_prediction_file = True
    computation = "classifier"

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        several = self.settings.multilabel
        self.main_metric, self.reads = "mean_ap" if several else "balanced_acc", READS[self.settings.inputs]
        self.blinds = BLINDS[self.settings.inputs]
        self.find_unused_parameters |= self.settings.inputs != "both"
        kind = "the sigmoid of each is its" if several else "their softmax is the"
        self.meaning = f"one per label of {self.labels_file}; {kind} probability"
        self.class_ids = {label: c for c, label in enumerate(sizes.labels)}
        D = config.model.embed_dim
        self.class_head = MLPHead(self.encoder.pair_dim if self.settings.inputs == "both" else D, 2 * D, len(sizes.labels))
        initialize(self, config.model)
        if several:
            self.class_head.start_as_one_of_many()

    @classmethod
    def prepare(cls, config: Config, sources: Sequence[Source[Any]], labels: Sequence[str] | None) -> Prepared:
        """Read the list of classes or collect those of the rows. Raises UserError if there are none, or too many."""
        assert isinstance(config.task, ClassificationConfig)
        given = [row.labels for source in sources for _, row in usable_rows(source)]
        used, listed, where = set(itertools.chain(*given)), config.task.classes, f"data.train {' '.join(config.data.train)}"
        labels = labels or (read_answers(listed) if listed is not None else sorted(used))
        if not 1 < len(labels) <= MAX_CLASSES:
            such_as = f", such as {labels[0]!r}" if labels else ""
            raise UserError(
                f"{where}: {len(labels)} different labels{such_as}, expected 2 to {MAX_CLASSES}; if these are not labels, name "
                "their column with --data.label-column"
            )
        if listed is not None and (unknown := used.difference(labels)):
            raise UserError(f"{where}: {len(unknown)} labels are not in {listed}, such as {nearest(min(unknown), labels)}")
        most = max(map(len, given), default=0)
        if most > 1 and not config.task.multilabel:
            raise UserError(f"{where}: a row has {most} labels; give --task.multilabel for more than one")
        note = (
            "no row has several labels, yet each is learnt as a yes or no of its own; --task.no-multilabel learns one of them"
        )
        notes = (note,) if most < 2 and config.task.multilabel else ()
        return Prepared(sources=sources, labels=tuple(labels), notes=notes)

    def loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the one label, or the binary ones of several, summed over classes; mean over rows.

        labels: int64 (B,), or float32 (B, C), 1 for each label of a row and 0 elsewhere.
        """
        return objectives.answer_bce(logits_BC, labels.float()) if self.settings.multilabel else super().loss(logits_BC, labels)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the probability of each label, float32 (B, C): those of one label add up to 1."""
        return logits_BC.float().sigmoid() if self.settings.multilabel else logits_BC.float().softmax(1)

    def targets(self, batch: LabelBatch) -> Tensor:
        """Return 1 for each label of a row, 0 elsewhere: float32 (B, C) on the CPU. Raises UserError for an unknown one."""
        target_BC = torch.zeros(len(batch.labels), len(self.sizes.labels))
        for row, labels in enumerate(batch.labels):
            for label in labels:
                if label not in self.class_ids:
                    raise UserError(f"{batch.where[row]}: the label {nearest(label, self.class_ids)}")
                target_BC[row, self.class_ids[label]] = 1
        return target_BC

    def examples_of(self, batch: LabelBatch) -> list[ClassificationExample]:
        """Label the rows of a batch."""
        probability_BC = self.probabilities(self.predict(batch)[0]).cpu().numpy()
        return [
            # a view would keep its whole batch
            ClassificationExample(probability_C=each_C.copy(), label=self.sizes.labels[int(each_C.argmax())], **row)
            for row, each_C in zip(batch.rows(), probability_BC, strict=True)
        ]

    def numbers(self, examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """Return the numbers of `metrics.classification` over the rows that have labels."""
        known = [each for each in examples if each.labels]
        if not known:
            return {"num_rows": 0}
        unknown = sum(self.class_ids.keys().isdisjoint(each.labels) for each in known)
        numbers = {"num_unknown": unknown} if unknown else {}
        if not self.settings.multilabel:
            return (
                metrics.summary([each.label == each.labels[0] for each in known], [each.labels[0] for each in known]) | numbers
            )
        is_true_RC = np.array([[label in each.labels for label in self.sizes.labels] for each in known])
        return metrics.ranking_summary(np.stack([each.probability_C for each in known]), is_true_RC) | numbers

    def row_scores(self, examples: Sequence[ClassificationExample]) -> dict[str, float]:
        """Return whether the most probable label of each row that has labels is one of them."""
        return {each.name: float(each.label in each.labels) for each in examples if each.labels}

    def prediction_file(self, examples: Sequence[ClassificationExample]) -> str:
        """Return a JSON line for each row: its name, label and the label's probability; of several labels all from 0.5 on."""
        lines = []
        for each in examples:
            line: dict[str, Any] = {"row": each.where, "label": each.label, "probability": float(each.probability_C.max())}
            if self.settings.multilabel:
                named = zip(self.sizes.labels, each.probability_C.tolist(), strict=True)
                line["labels"] = {label: value for label, value in named if value >= 0.5}
            lines.append(json.dumps(line) + "\n")
        return "".join(lines)

    def remarks(self, numbers: Mapping[str, float]) -> list[str]:
        """Return a sentence about labels that no answer could have been right about."""
        remarks = super().remarks(numbers)
        if unknown := numbers.get("num_unknown"):
            of_rows = f"of {numbers['num_rows']} rows, {unknown}"
            remarks.append(f"{of_rows} have no label that the run knows ({self.labels_file}): always wrong")
        return remarks

    def flops(self) -> dict[str, float]:
        """Return forward FLOPs of a step."""
        num_image, num_text = pair_tokens(self.config)
        reads = self.settings.inputs
        return {"pass": self.encoder.flops(num_image if reads != "text" else 0, num_text if reads != "image" else 0, "cls")}
