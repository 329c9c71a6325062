"""The page of a run pre-trained by contrast and matching."""

from collections.abc import Mapping

from markupsafe import Markup

from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.numbers import Card, NumberGroup
from eve_vl.tasks.contrast.report import CONTRAST_LOSSES
from eve_vl.tasks.masked_signal.report import MaskedSignalReport

PARTNER_SENTENCES = {
    "itc_acc": "Share of images and captions whose features are closer to their own partner than "
    "to a wrong one.",
    "itm_acc": "Share of true and wrong pairs that the matching head classifies right.",
}


class ContrastMatchReport(MaskedSignalReport):
    """Masked signals, contrast and matching."""

    name = "contrast_match"
    passes = " (masked as in validation, unmasked one by one, and matched)"
    losses = (
        *MaskedSignalReport.losses,
        *CONTRAST_LOSSES,
        Loss(
            "svd",
            "Singular-value term",
            "Largest singular value of the similarities, in task.svd_form.",
        ),
    )

    def number_groups(self, values: Mapping[str, float]) -> list[NumberGroup]:
        """Return the numbers of masked signals, and how often partners are recognised."""
        groups = super().number_groups(values)
        cards = []
        for name, sentence in PARTNER_SENTENCES.items():
            if name in values:
                cards.append(Card(name, values[name], sentence, is_main=True))
        if cards:
            cards.append(Card("chance", 0.5, "Baseline: a coin."))
            groups.append(NumberGroup("Partners", cards))
        return groups

    def pair_charts(self, curves: Curves) -> list[Markup]:
        """Return the charts of masked signals, of partners, and of the spread of features."""
        partner_lines = [curves.val("itc_acc"), curves.train("itm_acc"), curves.val("itm_acc")]
        singular_value = "Largest singular value / number of rows"
        note = "Of a step's similarities; 1 if all features are equal."
        return [
            *super().pair_charts(curves),
            curves.shares("Partner accuracy", partner_lines, "Higher is better; chance is 50 %."),
            curves.chart(singular_value, [curves.train("sigma1")], note),
            curves.chart("Effective rank", [curves.train("effective_rank")], note),
        ]
