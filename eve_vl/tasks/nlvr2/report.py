"""The page of a run that judges statements about two images."""

import math
from collections import Counter
from collections.abc import Iterator

from markupsafe import Markup

from eve_vl.data.kinds.statements import ImagesStatement, StatementBatch
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.numbers import Card, NumberGroup, draw_numbers, missing_numbers
from eve_vl.tasks.classifier.report import ClassifierReport
from eve_vl.tasks.evaluator import eval_rows
from eve_vl.tasks.examples import Example
from eve_vl.tasks.report import Measured
from eve_vl.utils.console import pluralize

TRUTH_VALUES = ("false", "true")


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency next to those of a coin."""

    name = "nlvr2"
    title = "Statements"
    row = "statement"
    heat_for = "the statement being true"
    losses = (Loss("nlvr2", "Statement loss", "Cross-entropy of true or false, in nats."),)

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the model's choice."""
        return self.two_image_examples(batch, batch.statements, TRUTH_VALUES)

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy and consistency (if complete) next to guessing, as HTML."""
        values = measured.values
        if "nlvr2_acc" not in values:
            return missing_numbers("There are no numbers: the statements have no labels.")
        rows = eval_rows(self.sources[1], measured.num_samples)
        rows = [row for row in rows if row.label is not None]

        num_pairs = pluralize(values["num_pairs"] - values["num_unlabelled"], "pair")
        sentence = f"Share of {num_pairs} of images whose statement is classified right."
        cards = [
            Card("nlvr2_acc", values["nlvr2_acc"], sentence, is_main=True),
            Card("chance", 0.5, "Baseline: a coin."),
        ]
        if rows:
            sentence = "Baseline: always the more frequent label of these statements."
            cards.append(Card("majority", majority_share(rows), sentence))
        groups = [NumberGroup("Accuracy", cards)]
        if "nlvr2_consistency" in values:
            groups.append(consistency_group(values["nlvr2_consistency"], rows))
        return draw_numbers(groups)

    def charts(self, curves: Curves) -> list[Markup]:
        """Return the chart of accuracy and consistency."""
        if "nlvr2_acc" not in curves.names():
            return []
        lines = [
            curves.train("acc", "training"),
            curves.val("nlvr2_acc", "validation"),
            curves.val("nlvr2_consistency", "consistency, validation"),
            curves.constant("chance", 0.5),
        ]
        return [curves.shares("Statement accuracy", lines, "Higher is better.")]


def majority_share(rows: list[ImagesStatement]) -> float:
    """Return the share of the more frequent label."""
    true_share = sum(bool(row.label) for row in rows) / len(rows)
    return max(true_share, 1 - true_share)


def consistency_group(consistency: float, rows: list[ImagesStatement]) -> NumberGroup:
    """Return the share of statements that are right on all image pairs, next to that of a coin."""
    sentence = "Share of statements that are classified right for all of their image pairs."
    cards = [Card("nlvr2_consistency", consistency, sentence, is_main=True)]
    if rows:
        group_sizes = Counter(row.group for row in rows).values()
        chance = math.fsum(0.5**size for size in group_sizes) / len(group_sizes)
        sentence = (
            "Baseline: a coin. It is right on all pairs the less often, the more pairs a "
            "statement has."
        )
        cards.append(Card("chance", chance, sentence))
    return NumberGroup("Consistency", cards)
