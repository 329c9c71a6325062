"""Token head, features and matching head for other programs."""

from eve_vl.tasks.contrast.heads import ContrastHeads
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.heads import MaskedSignalHeads


class ContrastMatchHeads(MaskedSignalHeads, ContrastHeads):
    """Token head, features and matching head."""

    section = ContrastMatchConfig
