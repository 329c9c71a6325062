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
    raise ImportError("eve_vl.interop.hf needs transformers: pip install 'eve-vl[hf]'") from None

from eve_vl.config import TaskConfig, kinds_of
from eve_vl.interop.hf.bridge import from_run as from_run
from eve_vl.interop.hf.bridge import to_run as to_run
from eve_vl.interop.hf.configuration import EveConfig as EveConfig
from eve_vl.interop.hf.modeling import EveForMaskedModeling as EveForMaskedModeling
from eve_vl.interop.hf.modeling import EveForNLVR2 as EveForNLVR2
from eve_vl.interop.hf.modeling import EveForRetrieval as EveForRetrieval
from eve_vl.interop.hf.modeling import EveForVisualQuestionAnswering as EveForVisualQuestionAnswering
from eve_vl.interop.hf.modeling import EveModel as EveModel
from eve_vl.interop.hf.modeling import EvePreTrainedModel as EvePreTrainedModel
from eve_vl.interop.hf.modeling import EveRetrievalOutput as EveRetrievalOutput
from eve_vl.interop.hf.modeling import model_class
from eve_vl.interop.hf.processing import EveImageProcessor as EveImageProcessor
from eve_vl.interop.hf.processing import EveProcessor as EveProcessor
from eve_vl.interop.hf.processing import EveTokenizerFast as EveTokenizerFast

_transformers.AutoConfig.register("eve", EveConfig)
_transformers.AutoModel.register(EveConfig, EveModel)
_transformers.AutoModelForMaskedLM.register(EveConfig, EveForMaskedModeling)
_transformers.AutoModelForVisualQuestionAnswering.register(EveConfig, EveForVisualQuestionAnswering)
_transformers.AutoModelForZeroShotImageClassification.register(EveConfig, EveForRetrieval)
_transformers.AutoImageProcessor.register(EveConfig, image_processor_classes={"torchvision": EveImageProcessor})
_transformers.AutoTokenizer.register(EveConfig, EveTokenizerFast)
_transformers.AutoProcessor.register(EveConfig, EveProcessor)


def __getattr__(name: str) -> Any:
    """Return the class of a kind of task that is not listed above."""
    for section in kinds_of(TaskConfig).values():
        if (kind := model_class(section)).__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
