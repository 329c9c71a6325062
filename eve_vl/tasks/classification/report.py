"""The page of a run that labels rows.

Letters: B rows, C classes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eve_vl.data.batches import TextBatch
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.metrics.classification import confusion
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.numbers import Card, NumberGroup, cards_of, draw_numbers, missing_numbers
from eve_vl.pages.rendering import draw
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.examples import Example, best_choices
from eve_vl.tasks.report import Measured
from eve_vl.utils.console import pluralize

CONFUSION_TEMPLATE = Path(__file__).with_name("confusion.html")
NUM_CHOICES = 3
NUM_ROWS = 1000  # validation rows behind the confusion matrix
NUM_CLASSES = 20  # the most frequent ones: a larger matrix does not fit on a page
NUM_CONFUSED = 8
ABLATIONS = {
    "noise": "The model with noise of the same histogram as the image.",
    "wrong_image": "The model with another image, of the same text if there is one.",
    "image_only": "The model without the text.",
}


class ClassificationReport(ClassifierReport):
    """Accuracy next to the most frequent label, and which classes are confused."""

    name = "classification"
    title = "Labels"
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
        names = self.task.sizes.labels
        probability_BC = self.task.probabilities(self.task.predict(batch)[0])
        for row, labels in enumerate(batch.labels):
            choices = best_choices(
                probability_BC[row],
                NUM_CHOICES,
                text=names.__getitem__,
                is_right=lambda index, labels=labels: names[index] in labels,
            )
            text = ""
            if isinstance(batch, TextBatch):
                text = self.run.tokenizer.decode(batch.ids_BT[row].tolist())
            kind = labels[0] if labels else ""
            yield self.example(batch, row, choices, text, truth=", ".join(labels), kind=kind)

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers and, for single labels, the confusion matrix, as HTML."""
        values = measured.values
        if "acc" in values:
            groups = [NumberGroup("Labels", single_label_cards(values))]
            rows = self.evaluated(min(measured.num_samples, NUM_ROWS)).examples
            return draw_numbers(groups) + confusion_matrix([row for row in rows if row.labels])
        if "mean_ap" in values:
            return draw_numbers([NumberGroup("Labels", multi_label_cards(values))])
        return missing_numbers("There are no numbers: the rows have no labels.")

    def charts(self, curves: Curves) -> list[Markup]:
        """Return the chart of the accuracy or of the mean average precision."""
        names = curves.names()
        note = "Higher is better."
        if "balanced_acc" in names:
            lines = [
                curves.train("acc", "training"),
                curves.val("acc", "validation"),
                curves.val("balanced_acc", "balanced, validation"),
            ]
            return [curves.shares("Label accuracy", lines, note)]
        if "mean_ap" in names:
            lines = [
                curves.val("mean_ap", "validation"),
                curves.val("mean_ap_chance", "constant score"),
            ]
            return [curves.shares("Mean average precision", lines, note)]
        return []


def single_label_cards(values: Mapping[str, float]) -> list[Card]:
    """Return the accuracies, next to those of guesses and of ablated rows."""
    return [
        Card(
            "balanced_acc",
            values["balanced_acc"],
            "Mean recall over the classes: rare classes count as much as frequent ones.",
            is_main=True,
        ),
        Card("acc", values["acc"], f"Share of {rows_and_classes(values)} classified right."),
        Card(
            "acc_majority",
            values["acc_majority"],
            "Baseline: always the most frequent label of these rows.",
        ),
        Card(
            "chance",
            1 / values["num_classes"],
            "Baseline: a random class, for balanced_acc.",
        ),
        *ablation_cards("acc", values),
    ]


def multi_label_cards(values: Mapping[str, float]) -> list[Card]:
    """Return the mean average precision, next to that of constant scores and ablated rows."""
    sentence = f"Mean average precision over the classes, on {rows_and_classes(values)}."
    return [
        Card("mean_ap", values["mean_ap"], sentence, is_main=True),
        Card(
            "mean_ap_chance",
            values["mean_ap_chance"],
            "Baseline: a constant score gets the mean share of rows that have a label.",
        ),
        *ablation_cards("mean_ap", values),
    ]


def ablation_cards(metric: str, values: Mapping[str, float]) -> list[Card]:
    """Return the cards of a metric on rows without some of their content."""
    return cards_of(values, {f"{metric}_{name}": text for name, text in ABLATIONS.items()})


def rows_and_classes(values: Mapping[str, float]) -> str:
    """Return the numbers of rows and of classes in words, "" if unknown."""
    if "num_classes" not in values:
        return ""
    rows = pluralize(values["num_rows"], "row")
    classes = pluralize(values["num_classes"], "class", "classes")
    return f"{rows} of {classes}"


def confusion_matrix(rows: list[Any]) -> Markup:
    """Return how often each frequent class is predicted as each other one, as HTML."""
    truths = [row.labels[0] for row in rows]
    predictions = [row.label for row in rows]
    classes = [name for name, _ in Counter(truths).most_common(NUM_CLASSES)]
    counts_CC = confusion(predictions, truths, classes).tolist()

    confused = []
    for (truth, prediction), count in Counter(zip(truths, predictions, strict=True)).most_common():
        if truth != prediction:
            confused.append((truth, prediction, count))
    return draw(
        CONFUSION_TEMPLATE,
        "matrix",
        classes=classes,
        counts=counts_CC,
        confused=confused[:NUM_CONFUSED],
    )
