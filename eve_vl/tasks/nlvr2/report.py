"""The page of a run that judges statements about two images."""

import math
from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.pages.drawing import Loss
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.evaluator import eval_rows
from eve_vl.tasks.report import Example, Measured

TRUTH_VALUES = ("false", "true")


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency next to those of a coin."""

    name = "nlvr2"
    title, template = "Statements", "nlvr2.html"
    row = "statement"
    heat_for = "the statement being true"
    losses = (Loss("nlvr2", "Statement loss", "Cross-entropy of true or false, in nats."),)

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the model's choice."""
        return self.two_image_examples(batch, batch.statements, TRUTH_VALUES)

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy and consistency (if complete) next to guessing, as HTML."""
        rows = [
            row for row in eval_rows(self.sources[1], measured.num_samples) if row.label is not None
        ]
        share = sum(row.label for row in rows) / (len(rows) or 1)
        sizes = Counter(row.group for row in rows).values()
        majority = max(share, 1 - share) if rows else None
        all_by_chance = math.fsum(0.5**size for size in sizes) / len(sizes) if rows else None
        return self.draw(
            "numbers", values=measured.values, majority=majority, all_by_chance=all_by_chance
        )
