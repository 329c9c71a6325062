"""Reports about runs of MLIM's tasks."""

from collections.abc import Iterator

from eve_vl.pages.drawing import Loss
from eve_vl.systems.mlim.item_rows import ItemBatch
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.masked_signal.report import MaskedSignalReport
from eve_vl.tasks.report import Example


class MlimReport(MaskedSignalReport):
    """Masked tokens and reconstructed images."""

    name = "mlim"
    template = "mlim.html"
    losses = (
        MaskedSignalReport.losses[0],
        Loss(
            "mim",
            "Reconstruction loss",
            "Squared error of pixels in [0, 1], summed over colour channels.",
            "recon",
        ),
    )


class PairReport(ClassifierReport):
    """Area under the precision–recall curve next to chance and single modalities."""

    name = "pair"
    title, template = "Items", "pair.html"
    row = "pair"
    losses = (Loss("pair", "Comparison loss", "Cross-entropy of same or not, in nats."),)

    def examples(self, batch: ItemBatch) -> Iterator[Example]:
        """Yield the pairs with the model's choice."""
        return self.two_image_examples(
            batch, [" | ".join(both) for both in batch.captions], self.task.class_names
        )
