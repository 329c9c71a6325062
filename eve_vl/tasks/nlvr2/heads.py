"""The head for the truth of a statement for other programs."""

from eve_vl.tasks.classifier.heads import ClassifierHeads
from eve_vl.tasks.nlvr2.config import NLVR2Config


class NLVR2Heads(ClassifierHeads):
    """Head for the truth of a statement."""

    section = NLVR2Config
    name = "verify"
