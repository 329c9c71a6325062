"""Reports of MLIM's pre-training and of pairs of items.

Letters: B batch.
"""

from collections.abc import Iterator

from eve_vl.data.kinds.pairs import ItemBatch
from eve_vl.report.curves import Loss
from eve_vl.report.masked_signal import MaskedSignalReport
from eve_vl.report.task import ClassifierReport, Example, best_choices, pixels_of
from eve_vl.systems.mlim.tasks import ItemPairs


class MlimReport(MaskedSignalReport):
    """Masked signals and reconstructed images."""

    name = "mlim"
    template = "mlim.html"
    losses = (
        MaskedSignalReport.losses[0],
        Loss("mim", "Rebuilding loss", "Squared error of pixels from 0 to 1, summed over colours.", "recon"),
    )


class PairReport(ClassifierReport):
    """PR-AUC of whole items next to a blind guess, and of images or texts only."""

    task: ItemPairs
    name = "pair"
    title, template = "Items", "pair.html"
    row = "pair"
    losses = (Loss("pair", "Comparison loss", "Cross-entropy of the same or not, in nats."),)

    def examples(self, batch: ItemBatch) -> Iterator[Example]:
        """Yield the pairs with their verdicts."""
        probability_B2, names = self.task.predict(batch)[0].float().softmax(1), self.task.class_names
        for row, label in enumerate(batch.labels):
            choices = best_choices(probability_B2[row], 2, names.__getitem__, lambda verdict, label=label: verdict == label)
            yield Example(
                where=batch.where[row],
                images={"left": pixels_of(batch.images_BCHW[row]), "right": pixels_of(batch.right_BCHW[row])},
                text=" | ".join(batch.captions[row]),
                choices=choices,
                truth="" if label is None else names[label],
                kind=choices[0].text,
            )
