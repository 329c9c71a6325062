"""Reports about runs that compare two items."""

from collections.abc import Iterator

from eve_vl.pages.drawing import Loss
from eve_vl.systems.mlim.pair.item_rows import ItemBatch
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.report import Example


class PairReport(ClassifierReport):
    """Area under the precision–recall curve next to chance and single modalities."""

    name = "pair"
    title, template = "Items", "pair.html"
    row = "pair"
    losses = (Loss("pair", "Comparison loss", "Cross-entropy of same or not, in nats."),)

    def examples(self, batch: ItemBatch) -> Iterator[Example]:
        """Yield the pairs with the model's choice."""
        texts = [f"{left} | {right}" for left, right in batch.captions]
        return self.two_image_examples(batch, texts, self.task.class_names)
