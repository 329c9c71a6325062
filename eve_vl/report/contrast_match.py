"""What the page shows of pre-training by contrast and matching: masked signals, and how well partners are told apart."""

from typing import ClassVar

from eve_vl.report.curves import Curves, Loss
from eve_vl.report.html import card_group, share_card
from eve_vl.report.masked_signal import MaskedSignalReport
from eve_vl.report.retrieval import CONTRAST_LOSSES
from eve_vl.report.task import Measured

SENTENCES = {
    "itc_acc": "Share of pictures and texts whose features are more alike to their own partner than to a wrong one.",
    "itm_acc": "Share of true and of wrong pairs that the matching head tells apart.",
}


class ContrastMatchReport(MaskedSignalReport):
    """Masked signals, contrast and matching."""

    name = "contrast_match"
    passes = " (masked as in validation, alone, and matched)"
    losses: ClassVar[tuple[Loss, ...]] = MaskedSignalReport.losses + CONTRAST_LOSSES

    def numbers(self, measured: Measured) -> str:
        """Return cards of all losses that are trained."""
        values = measured.values
        cards = [share_card(name, values[name], text, is_main=True) for name, text in SENTENCES.items() if name in values]
        chance = share_card("chance", 0.5, "Tossing a coin.")
        return super().numbers(measured) + (card_group("Partners", "", [*cards, chance]) if cards else "")

    def charts(self, curves: Curves) -> list[str]:
        """Return these shares over the run too."""
        lines = [curves.val("itc_acc"), curves.train("itm_acc"), curves.val("itm_acc")]
        return [*super().charts(curves), curves.shares("Partners told apart", lines, "Higher is better; chance is 50 %.")]
