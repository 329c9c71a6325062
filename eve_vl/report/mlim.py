"""What the page shows of MLIM's pre-training: masked signals, and how well whole images are rebuilt."""

from eve_vl.report.curves import Loss
from eve_vl.report.masked_signal import MaskedSignalReport


class MlimReport(MaskedSignalReport):
    """Masked signals and rebuilt images."""

    name = "mlim"
    template = "mlim.html"
    losses = (
        MaskedSignalReport.losses[0],
        Loss("mim", "Rebuilding loss", "Squared error of pixels from 0 to 1, summed over colours.", "recon"),
    )
