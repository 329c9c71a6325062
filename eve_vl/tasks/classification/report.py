"""The page of a run that labels rows."""

from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.batches import TextBatch
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.metrics.classification import confusion
from eve_vl.pages.drawing import Loss
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.report import Example, Measured, best_choices
from eve_vl.tasks.vqa.report import NUM_CHOICES

NUM_ROWS = 1000  # validation rows behind the confusion matrix


NUM_CLASSES = 20  # the most frequent ones: a larger matrix does not fit on a page


NUM_CONFUSED = 8


class ClassificationReport(ClassifierReport):
    """Accuracy next to the most frequent label, and which classes are confused."""

    name = "classification"
    title, template = "Labels", "classification.html"
    row = "row"
    has_baselines = True
    heat_for = "the first label"
    losses = (
        Loss(
            "classification",
            "Label loss",
            "Cross-entropy in nats; multi-label: summed over the labels.",
        ),
    )

    def examples(self, batch: LabelBatch) -> Iterator[Example]:
        """Yield the rows with the best labels."""
        names, probability_BC = (
            self.task.sizes.labels,
            self.task.probabilities(self.task.predict(batch)[0]),
        )
        for row, given in enumerate(batch.labels):
            is_right = lambda c, given=given: names[c] in given  # noqa: E731
            text = (
                self.run.tokenizer.decode(batch.ids_BT[row].tolist())
                if isinstance(batch, TextBatch)
                else ""
            )
            choices = best_choices(probability_BC[row], NUM_CHOICES, names.__getitem__, is_right)
            yield self.example(
                batch, row, choices, text, ", ".join(given), given[0] if given else ""
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers and, for single labels, the confusion matrix, as HTML."""
        classes, counts_CC, confused = [], [], []
        if "acc" in measured.values:
            seen = [
                each
                for each in self.evaluated(min(measured.num_samples, NUM_ROWS)).examples
                if each.labels
            ]
            pairs = Counter((each.labels[0], each.label) for each in seen)
            classes = [
                name
                for name, _ in Counter(each.labels[0] for each in seen).most_common(NUM_CLASSES)
            ]
            counts_CC = confusion(
                [each.label for each in seen], [each.labels[0] for each in seen], classes
            ).tolist()
            confused = [
                (true, guess, count)
                for (true, guess), count in pairs.most_common()
                if true != guess
            ][:NUM_CONFUSED]
        return self.draw(
            "numbers", values=measured.values, classes=classes, counts=counts_CC, confused=confused
        )
