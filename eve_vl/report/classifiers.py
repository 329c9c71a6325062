"""Report pages of VQA, NLVR2 and classification.

Letters: B batch, A answers, C classes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from markupsafe import Markup
from torch import Tensor

from eve_vl.data.dataset import ImageBatch, TextBatch, eval_rows
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.data.kinds.pairs import ItemBatch, StatementBatch
from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.metrics import vqa as metrics
from eve_vl.metrics.classification import confusion
from eve_vl.report.charts import Loss, bar_chart
from eve_vl.report.task import NUM_CHOICES, ClassifierReport, Example, Measured, best_choices, pixels_of

NUM_ROWS = 1000  # validation rows behind the confusion matrix
NUM_CLASSES = 20  # the most frequent ones: a larger matrix does not fit on a page
NUM_CONFUSED = 8
TRUTH_VALUES = ("false", "true")


class VQAReport(ClassifierReport):
    """Accuracy next to guesses from the question without the image."""

    name = "vqa"
    title, template = "Questions", "vqa.html"
    row = "question"
    heat_for = "the first answer"
    has_baselines = True
    losses = (Loss("vqa", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),)

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        labels, probability_BA = self.task.answers, self.task.predict(batch)[0].float().sigmoid()
        for row, given in enumerate(batch.answers):

            def is_right(index: int, given=given) -> bool:
                return bool(given) and metrics.accuracy_of(labels[index], given) > 0

            yield Example(
                where=batch.where[row],
                images={"image": pixels_of(batch.images_BCHW[row])},
                text=batch.questions[row],
                choices=best_choices(probability_BA[row], NUM_CHOICES, labels.__getitem__, is_right),
                truth=", ".join(dict.fromkeys(given)),
                kind=batch.answer_types[row],
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return the accuracy, overall and per answer type, as HTML."""
        return self.draw("numbers", values=measured.values, bar_chart=bar_chart)


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency next to those of a coin."""

    name = "nlvr2"
    title, template = "Statements", "nlvr2.html"
    row = "statement"
    heat_for = "the statement being true"
    losses = (Loss("nlvr2", "Statement loss", "Cross-entropy of true or false, in nats."),)

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the model's choice."""
        return two_image_examples(batch, batch.statements, self.task.predict(batch)[0], TRUTH_VALUES)

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy and consistency (if complete) next to guessing, as HTML."""
        rows = [row for row in eval_rows(self.sources[1], measured.num_samples) if row.label is not None]
        share = sum(row.label for row in rows) / (len(rows) or 1)
        sizes = Counter(row.group for row in rows).values()
        majority = max(share, 1 - share) if rows else None
        all_by_chance = math.fsum(0.5**size for size in sizes) / len(sizes) if rows else None
        return self.draw("numbers", values=measured.values, majority=majority, all_by_chance=all_by_chance)


def two_image_examples(
    batch: StatementBatch | ItemBatch, texts: Sequence[str], logits_B2: Tensor, names: Sequence[str]
) -> Iterator[Example]:
    """Yield rows of two images with the probabilities of the two classes."""
    probability_B2 = logits_B2.float().softmax(1)
    for row, label in enumerate(batch.labels):
        choices = best_choices(probability_B2[row], 2, names.__getitem__, lambda index, label=label: index == label)
        yield Example(
            where=batch.where[row],
            images={"left": pixels_of(batch.images_BCHW[row]), "right": pixels_of(batch.right_BCHW[row])},
            text=texts[row],
            choices=choices,
            truth="" if label is None else names[label],
            kind=choices[0].text,
        )


class ClassificationReport(ClassifierReport):
    """Accuracy next to the most frequent label, and which classes are confused."""

    name = "classification"
    title, template = "Labels", "classification.html"
    row = "row"
    has_baselines = True
    heat_for = "the first label"
    losses = (Loss("classification", "Label loss", "Cross-entropy in nats; multi-label: summed over the labels."),)

    def examples(self, batch: LabelBatch) -> Iterator[Example]:
        """Yield the rows with the best labels."""
        names, probability_BC = self.task.sizes.labels, self.task.probabilities(self.task.predict(batch)[0])
        for row, given in enumerate(batch.labels):
            yield Example(
                where=batch.where[row],
                images={"image": pixels_of(batch.images_BCHW[row])} if isinstance(batch, ImageBatch) else {},
                text=self.run.tokenizer.decode(batch.ids_BT[row].tolist()) if isinstance(batch, TextBatch) else "",
                choices=best_choices(
                    probability_BC[row], NUM_CHOICES, names.__getitem__, lambda c, given=given: names[c] in given
                ),
                truth=", ".join(given),
                kind=given[0] if given else "",
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers and, for single labels, the confusion matrix, as HTML."""
        classes, counts_CC, confused = [], [], []
        if "acc" in measured.values:
            seen = [each for each in self.evaluated(min(measured.num_samples, NUM_ROWS)).examples if each.labels]
            pairs = Counter((each.labels[0], each.label) for each in seen)
            classes = [name for name, _ in Counter(each.labels[0] for each in seen).most_common(NUM_CLASSES)]
            counts_CC = confusion([each.label for each in seen], [each.labels[0] for each in seen], classes).tolist()
            confused = [(true, guess, count) for (true, guess), count in pairs.most_common() if true != guess][:NUM_CONFUSED]
        return self.draw("numbers", values=measured.values, classes=classes, counts=counts_CC, confused=confused)
