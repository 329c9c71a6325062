"""What the page shows of classification.

Letters: C classes.
"""

from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.batch import ImageBatch, TextBatch
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.metrics.classification import confusion
from eve_vl.report.curves import Loss
from eve_vl.report.task import NUM_CHOICES, ClassifierReport, Example, Measured, best_choices, pixels_of
from eve_vl.tasks.classification import Classification

NUM_ROWS = 1000  # of validation data, for the confusion matrix
NUM_CLASSES = 20  # the most frequent, so that the matrix fits on a page
NUM_CONFUSED = 8


class ClassificationReport(ClassifierReport):
    """Accuracy beside that of the most frequent label, and which classes are taken for which."""

    task: Classification
    name = "classification"
    title, template = "Labels", "classification.html"
    row = "row"
    has_baselines = True
    heat_for = "the first label"
    losses = (Loss("classification", "Label loss", "Cross-entropy, of several labels summed over the list, in nats."),)

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
        """Return the numbers and, of one label each, the confusion matrix of the most frequent classes."""
        classes, counts_CC, confused = [], [], []
        if "acc" in measured.values:
            seen = [each for each in self.evaluated(min(measured.num_samples, NUM_ROWS)).examples if each.labels]
            pairs = Counter((each.labels[0], each.label) for each in seen)
            classes = [name for name, _ in Counter(each.labels[0] for each in seen).most_common(NUM_CLASSES)]
            counts_CC = confusion([each.label for each in seen], [each.labels[0] for each in seen], classes).tolist()
            confused = [(true, guess, count) for (true, guess), count in pairs.most_common() if true != guess][:NUM_CONFUSED]
        return self.draw("numbers", values=measured.values, classes=classes, counts=counts_CC, confused=confused)
