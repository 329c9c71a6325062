"""Reports about runs that compare two items."""

from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.numbers import Card, NumberGroup, cards_of, draw_numbers, missing_numbers
from eve_vl.systems.mlim.pair.item_rows import ItemBatch
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.examples import Example
from eve_vl.tasks.report import Measured
from eve_vl.utils.console import pluralize

BASELINES = {
    "pr_auc_images": "The same with the images only.",
    "pr_auc_texts": "The same with the texts only.",
    "pr_auc_chance": "Chance: the share of pairs that are the same.",
}


class PairReport(ClassifierReport):
    """Area under the precision–recall curve next to chance and single modalities."""

    name = "pair"
    title = "Items"
    row = "pair"
    losses = (Loss("pair", "Comparison loss", "Cross-entropy of same or not, in nats."),)

    def examples(self, batch: ItemBatch) -> Iterator[Example]:
        """Yield the pairs with the model's choice."""
        texts = [f"{left} | {right}" for left, right in batch.captions]
        return self.two_image_examples(batch, texts, self.task.class_names)

    def numbers(self, measured: Measured) -> Markup:
        """Return the areas under the precision–recall curve, as HTML."""
        values = measured.values
        if "pr_auc" not in values:
            return missing_numbers("There are no numbers: the pairs lack labels of both kinds.")
        num_pairs = pluralize(values["num_pairs"] - values["num_unlabelled"], "pair")
        sentence = (
            f"Area under the precision–recall curve of {num_pairs} of items, ranked by the "
            "probability of being the same."
        )
        cards = [Card("pr_auc", values["pr_auc"], sentence, is_main=True)]
        return draw_numbers([NumberGroup("Same or not", cards + cards_of(values, BASELINES))])

    def charts(self, curves: Curves) -> list[Markup]:
        """Return the chart of the areas in validation."""
        lines = [
            curves.val("pr_auc", "whole items"),
            curves.val("pr_auc_images", "images only"),
            curves.val("pr_auc_texts", "texts only"),
            curves.val("pr_auc_chance", "chance", is_reference=True),
        ]
        title = "Area under the precision–recall curve"
        return [curves.shares(title, lines, "Higher is better.")]
