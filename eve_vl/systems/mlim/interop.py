"""The ONNX graph of runs that compare items."""

from eve_vl.interop.heads import ClassifierHeads
from eve_vl.systems.mlim.config import PairConfig


class PairHeads(ClassifierHeads):
    """The head that compares two items."""

    section, name = PairConfig, "comparer"
