"""The head of the comparison in other formats."""

from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.classifier.heads import ClassifierHeads


class PairHeads(ClassifierHeads):
    """The head that compares two items."""

    section = PairConfig
    name = "comparer"
