"""EVE in the way of `transformers`: configs, models and processors that its Auto classes, hub and Trainer know.

Importing this package registers them. `from_run` and `to_run` lead from a run folder to a model and processor, and back. Each
kind of task has a class: EveFor and its name, as `EveForContrastMatch`, where no other is listed here.
"""

from typing import Any

try:
    import transformers as _transformers
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("eve_vl.hf needs transformers: pip install 'eve-vl[hf]'") from None

from eve_vl.config import TaskConfig, kinds_of
from eve_vl.hf.bridge import from_run, to_run
from eve_vl.hf.configuration import EveConfig
from eve_vl.hf.modeling import (
    EveForMaskedModeling,
    EveForNLVR2,
    EveForRetrieval,
    EveForVisualQuestionAnswering,
    EveModel,
    EvePreTrainedModel,
    EveRetrievalOutput,
    model_class,
)
from eve_vl.hf.processing import EveImageProcessor, EveProcessor, EveTokenizerFast

_transformers.AutoConfig.register("eve", EveConfig)
_transformers.AutoModel.register(EveConfig, EveModel)
_transformers.AutoModelForMaskedLM.register(EveConfig, EveForMaskedModeling)
_transformers.AutoModelForVisualQuestionAnswering.register(EveConfig, EveForVisualQuestionAnswering)
_transformers.AutoModelForZeroShotImageClassification.register(EveConfig, EveForRetrieval)
_transformers.AutoImageProcessor.register(EveConfig, image_processor_classes={"torchvision": EveImageProcessor})
_transformers.AutoTokenizer.register(EveConfig, EveTokenizerFast)
_transformers.AutoProcessor.register(EveConfig, EveProcessor)

__all__ = [
    "EveConfig",
    "EveForMaskedModeling",
    "EveForNLVR2",
    "EveForRetrieval",
    "EveForVisualQuestionAnswering",
    "EveImageProcessor",
    "EveModel",
    "EvePreTrainedModel",
    "EveProcessor",
    "EveRetrievalOutput",
    "EveTokenizerFast",
    "from_run",
    "to_run",
]


def __getattr__(name: str) -> Any:
    """Return the class of a kind of task that is not listed above."""
    for section in kinds_of(TaskConfig).values():
        if (kind := model_class(section)).__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
