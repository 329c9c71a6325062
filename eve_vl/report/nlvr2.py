"""What the page shows of statements about two pictures.

Letters: B batch.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from eve_vl.data.batch import StatementBatch
from eve_vl.report.charts import constant
from eve_vl.report.curves import Curves, Loss
from eve_vl.report.html import card_group, missing, points, share_card
from eve_vl.report.task import ClassifierReport, Example, Measured, best_choices, pixels_of
from eve_vl.tasks.nlvr2 import NLVR2

VERDICTS = ("false", "true")


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency beside a coin's."""

    name = "nlvr2"
    title = "Statements"
    rows = "statements"
    heat_for = "the statement being true"
    losses: ClassVar[tuple[Loss, ...]] = (
        Loss(term="nlvr2", title="Verdict loss", note="Cross-entropy of true or false, in nats."),
    )

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the verdict."""
        assert isinstance(self.run.task, NLVR2)
        probability_B2 = self.run.task.predict(batch)[0].float().softmax(1)
        for row, label in enumerate(batch.labels):
            choices = best_choices(probability_B2[row], 2, VERDICTS.__getitem__, lambda verdict, label=label: verdict == label)
            yield Example(
                where=batch.where[row],
                pictures={"left": pixels_of(batch.images_BCHW[row]), "right": pixels_of(batch.right_BCHW[row])},
                text=batch.statements[row],
                choices=choices,
                truth="" if label is None else VERDICTS[label],
                kind=choices[0].text,
            )

    def numbers(self, measured: Measured) -> str:
        """Return accuracy and, where whole statements were gone through, consistency."""
        values = measured.values
        if "nlvr2_acc" not in values:
            return missing("The statements come without labels, so there is nothing to compare with.")
        num = int(values["num_pairs"] - values["num_unlabelled"])
        verdict = f"The pictures are worth <b>{points(values['nlvr2_acc'] - 0.5)} points</b> over tossing a coin."
        cards = [
            share_card("nlvr2_acc", values["nlvr2_acc"], f"Share of {num:,} pairs of pictures judged right.", is_main=True),
            share_card("chance", 0.5, "Tossing a coin."),
        ]
        rows = [row for row in self.records(measured.num_samples) if row.label is not None]
        if rows:
            share = sum(row.label for row in rows) / len(rows)
            sentence = "Always giving the more frequent verdict of these statements."
            cards.append(share_card("majority", max(share, 1 - share), sentence))
        body = card_group("Verdicts", verdict, cards)
        if "nlvr2_consistency" in values:
            sentence = "Share of statements of which every pair of pictures is judged right."
            cards = [share_card("nlvr2_consistency", values["nlvr2_consistency"], sentence, is_main=True)]
            if rows:
                sizes = Counter(row.group for row in rows).values()
                chance = math.fsum(0.5**size for size in sizes) / len(sizes)
                sentence = "Tossing a coin: the more pairs a statement has, the less often all are right by luck."
                cards.append(share_card("chance", chance, sentence))
            body += card_group("Consistency", "", cards)
        return body

    def charts(self, curves: Curves) -> list[str]:
        """Return accuracy and consistency over the run."""
        if not any("nlvr2_acc" in row for row in curves.log):
            return []
        lines = [
            curves.train("acc", "training"),
            curves.val("nlvr2_acc", "validation"),
            curves.val("nlvr2_consistency", "consistency, validation"),
            constant("chance", 0.5, curves.last),
        ]
        return [curves.shares("Verdict accuracy", lines, "Higher is better.")]
