"""Tasks: each joins a batch type, the model and its objectives."""

from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.vqa import VQA

TASKS: dict[str, type[MaskedSignal] | type[Retrieval] | type[VQA] | type[NLVR2]] = {
    "masked_signal": MaskedSignal,
    "retrieval": Retrieval,
    "vqa": VQA,
    "nlvr2": NLVR2,
}
