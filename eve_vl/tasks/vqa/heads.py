"""The answer head for other programs."""

from eve_vl.tasks.classifier.heads import ClassifierHeads
from eve_vl.tasks.vqa.config import VQAConfig


class VQAHeads(ClassifierHeads):
    """Answer head."""

    section = VQAConfig
    name = "answerer"
    has_sigmoids = True
