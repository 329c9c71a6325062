"""EVE in the way of `transformers`: configs, models and processors that its Auto classes, hub and Trainer know.

Importing this package registers them. `from_run` and `to_run` lead from a run folder to a model and processor, and back.
"""

try:
    import transformers as _transformers
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ImportError("eve_vl.hf needs transformers: pip install 'eve-vl[hf]'") from None

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
