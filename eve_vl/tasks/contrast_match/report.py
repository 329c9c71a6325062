"""The page of a run pre-trained by contrast and matching."""

from eve_vl.pages.drawing import Loss
from eve_vl.tasks.contrast.report import CONTRAST_LOSSES
from eve_vl.tasks.masked_signal.report import MaskedSignalReport


class ContrastMatchReport(MaskedSignalReport):
    """Masked signals, contrast and matching."""

    name = "contrast_match"
    template = "contrast_match.html"
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
