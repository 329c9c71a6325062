"""What the page shows of pre-training by contrast and matching: masked signals, and how well partners are told apart."""

from eve_vl.report.curves import Loss
from eve_vl.report.masked_signal import MaskedSignalReport
from eve_vl.report.retrieval import CONTRAST_LOSSES


class ContrastMatchReport(MaskedSignalReport):
    """Masked signals, contrast and matching."""

    name = "contrast_match"
    template = "contrast_match.html"
    passes = " (masked as in validation, alone, and matched)"
    losses = (
        *MaskedSignalReport.losses,
        *CONTRAST_LOSSES,
        Loss(term="svd", title="Term of σ1", note="Largest singular value of all similarities, as task.svd_form has it."),
    )
