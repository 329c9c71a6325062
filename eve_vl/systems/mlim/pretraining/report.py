"""Reports about runs of MLIM's pre-training."""

from collections.abc import Mapping

from markupsafe import Markup

from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.number_formats import number
from eve_vl.pages.numbers import Card, NumberGroup
from eve_vl.tasks.masked_signal.report import MaskedSignalReport


class MlimReport(MaskedSignalReport):
    """Masked tokens and reconstructed images."""

    name = "mlim"
    losses = (
        MaskedSignalReport.losses[0],
        Loss(
            "mim",
            "Reconstruction loss",
            "Squared error of pixels in [0, 1], summed over colour channels.",
            "recon",
        ),
    )

    def number_groups(self, values: Mapping[str, float]) -> list[NumberGroup]:
        """Return the numbers of masked tokens, and the error of whole images."""
        groups = super().number_groups(values)
        if "recon" not in values:
            return groups
        error = values["recon"]
        wrong_error = values["recon_wrong_caption"]
        largest = max(error, wrong_error) or 1
        cards = [
            Card(
                "recon",
                error,
                "Squared error of whole images with the image's own caption (pixels in [0, 1], "
                "summed over colour channels).",
                is_main=True,
                show=number,
                bar=error / largest,
            ),
            Card(
                "recon_wrong_caption",
                wrong_error,
                "The same with another pair's caption.",
                show=number,
                bar=wrong_error / largest,
            ),
        ]
        return [*groups, NumberGroup("Reconstructed images", cards, "Lower is better.")]

    def pair_charts(self, curves: Curves) -> list[Markup]:
        """Return the charts of masked signals and of the error of whole images."""
        lines = [
            curves.val("recon", "right caption"),
            curves.val("recon_wrong_caption", "wrong caption"),
        ]
        note = "Validation; lower is better."
        return [*super().pair_charts(curves), curves.chart("Reconstruction error", lines, note)]
