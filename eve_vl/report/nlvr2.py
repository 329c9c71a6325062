"""What the page shows of statements about two images.

Letters: B batch.
"""

import math
from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.dataset import eval_rows
from eve_vl.data.kinds.pairs import StatementBatch
from eve_vl.report.curves import Loss
from eve_vl.report.task import ClassifierReport, Example, Measured, best_choices, pixels_of
from eve_vl.tasks.nlvr2 import NLVR2

VERDICTS = ("false", "true")


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency beside a coin's."""

    task: NLVR2
    name = "nlvr2"
    title, template = "Statements", "nlvr2.html"
    row = "statement"
    heat_for = "the statement being true"
    losses = (Loss("nlvr2", "Verdict loss", "Cross-entropy of true or false, in nats."),)

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the verdict."""
        probability_B2 = self.task.predict(batch)[0].float().softmax(1)
        for row, label in enumerate(batch.labels):
            choices = best_choices(probability_B2[row], 2, VERDICTS.__getitem__, lambda verdict, label=label: verdict == label)
            yield Example(
                where=batch.where[row],
                images={"left": pixels_of(batch.images_BCHW[row]), "right": pixels_of(batch.right_BCHW[row])},
                text=batch.statements[row],
                choices=choices,
                truth="" if label is None else VERDICTS[label],
                kind=choices[0].text,
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy and, where whole statements were gone through, consistency, beside what guessing would score."""
        rows = [row for row in eval_rows(self.sources[1], measured.num_samples) if row.label is not None]
        share = sum(row.label for row in rows) / (len(rows) or 1)
        sizes = Counter(row.group for row in rows).values()
        majority = max(share, 1 - share) if rows else None
        all_by_chance = math.fsum(0.5**size for size in sizes) / len(sizes) if rows else None
        return self.draw("numbers", values=measured.values, majority=majority, all_by_chance=all_by_chance)
