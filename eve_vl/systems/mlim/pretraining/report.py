"""Reports about runs of MLIM's pre-training."""

from eve_vl.pages.drawing import Loss
from eve_vl.tasks.masked_signal.report import MaskedSignalReport


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
