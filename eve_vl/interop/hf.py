"""Configs, models and processors for `transformers`: Auto classes, hub, Trainer.

Importing this module registers them. `from_run` and `to_run` convert a run folder to a model and
processor, and back. Each kind of task has a class: EveFor and its name, e.g. `EveForContrastMatch`,
unless a class is listed here.

Letters: B batch, T text tokens, N all tokens, D width, V vocabulary, A answers, I images, C texts,
d width of features, H = W side of the image.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

try:
    import transformers as _transformers
except ModuleNotFoundError:
    raise ImportError("eve_vl.interop.hf needs transformers: pip install 'eve-vl[hf]'") from None

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from eve_vl.config import FORMAT, Config, TaskConfig, to_dict
from eve_vl.config.json_form import check_format, from_dict
from eve_vl.config.kinds import all_kinds, kinds_of
from eve_vl.config.sections import Section
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.hf_processing import EveImageProcessor as EveImageProcessor
from eve_vl.interop.hf_processing import EveProcessor as EveProcessor
from eve_vl.interop.hf_processing import EveTokenizerFast as EveTokenizerFast
from eve_vl.interop.run_names import run_path
from eve_vl.run.loading import build_untrained, load_run
from eve_vl.run.writing import write_run
from eve_vl.tasks.heads import heads_class, heads_of
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes, Task, task_class
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import expand_user

DEFAULTS = to_dict(Config(recipe="transformers", out=Path(), task=MaskedSignalConfig()))
SECTIONS = ("input", "model", "task")
ALIGNMENT = (
    64  # bytes; products of matrices mapped from a file at other offsets differ in the last bit
)


class EveConfig(PreTrainedConfig):
    """Sections `input`, `model` and `task` of our `Config`, and the vocabulary size.

    The sections are JSON values. A classifier's labels, e.g. VQA's answers, are `id2label`. The
    config names no folders or data, since it may go to a hub. Raises UserError for unknown or
    missing keys and for contradictory values.
    """

    model_type = "eve"

    input: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["input"]))
    model: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["model"]))
    task: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS["task"]))
    vocab_size: int = 64_000
    mask_token_id: int = 0
    format: int = FORMAT
    """Format of the sections."""

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        assert self.id2label is not None
        self.label2id = {label: int(index) for index, label in self.id2label.items()}
        check_format({"format": self.format}, "config.json")
        _ = self.run  # checks the sections

    @property
    def run(self) -> Config:
        """The run config with these sections and default other sections."""
        return from_dict(
            Config, DEFAULTS | {name: getattr(self, name) for name in SECTIONS}, "config.json"
        )

    hidden_size = property(lambda self: self.model["embed_dim"])
    """Width of the encoder."""
    num_hidden_layers = property(lambda self: self.run.model.block.depth)
    """Blocks that an image passes."""
    num_attention_heads = property(lambda self: self.model["num_heads"])
    """Attention heads of a block."""


def portable(section: Section) -> dict[str, Any]:
    """Return the JSON values of a section without paths."""
    return {
        name: value
        for name, value in to_dict(section).items()
        if not isinstance(getattr(section, name), Path)
    }


class ModelInputs(dict[str, Tensor]):
    """Inputs by our names; a missing one is the caller's mistake."""

    def __missing__(self, name: str) -> Tensor:
        arguments = {
            "pixels": "pixel_values",
            "right": "pixel_values_right",
            "right_ids": "input_ids_right",
        }
        raise UserError(f"{arguments.get(name, 'input_ids')} is missing")


class EvePreTrainedModel(PreTrainedModel):
    """Base of all classes: holds one of our tasks, `task`, built from the config.

    A checkpoint of another task is a start for fine-tuning: its encoder is loaded, and missing
    heads start untrained. pixel_values: float32 (B, 3, H, W) from `EveImageProcessor`. input_ids:
    int64 (B, T), attention_mask: (B, T), 0 at padding, from `EveTokenizerFast`. return_dict=False
    returns a tuple. UserError names inputs that do not fit.
    """

    config_class = EveConfig
    config: EveConfig
    base_model_prefix = "task"
    main_input_name = "pixel_values"
    kind: ClassVar[str]
    """Name of the task's section; its defaults replace another section in the config."""
    output_type: ClassVar[type[ModelOutput]] = SequenceClassifierOutput
    task: Task[Any]

    def __init__(self, config: EveConfig):
        super().__init__(config)
        section = kinds_of(TaskConfig)[self.kind]
        if not isinstance(config.run.task, section):
            config.task = to_dict(section())
        self.task = self._build()
        missing = heads_of(self.task).missing
        if missing is not None:
            raise UserError(f"{type(self).__name__} needs {missing}")
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a folder or a hub repository with safetensors weights.

        Never loads a pickle, which can run code. Weights stay float32, as in training; autocast
        computes in bfloat16. Raises UserError for another dtype, OSError for a missing file.
        """
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if dtype not in (None, "auto", "float32", torch.float32):
            raise UserError(
                "the weights stay float32: compute in bfloat16 with torch.autocast, in Trainer "
                "with bf16=True"
            )
        loaded = super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return loaded

    def init_weights(self) -> None:
        """Do nothing: the task has initialised its weights."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise weights that a checkpoint lacks as in a new task."""
        tensors = self.task.state_dict(keep_vars=True)
        lacking = [
            name
            for name, tensor in tensors.items()
            if not getattr(tensor, "_is_hf_initialized", False)
        ]
        if not lacking:
            return
        initial_tensors = self._build().state_dict()
        for name in lacking:
            tensors[name].copy_(initial_tensors[name])

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        pixel_values_right: Tensor | None = None,
        input_ids_right: Tensor | None = None,
        attention_mask_right: Tensor | None = None,
    ) -> Any:
        """Return the class's outputs.

        attention_mask None: no padding. …_right: for tasks with two images or texts.
        """
        if pixel_values_right is not None and "right" not in getattr(self.task, "reads", ()):
            raise UserError(f"{type(self).__name__} reads one image; leave out pixel_values_right")
        inputs = self._inputs(
            input_ids, attention_mask, pixels=pixel_values, right=pixel_values_right
        )
        right_texts = self._inputs(input_ids_right, attention_mask_right)
        for name, tensor in right_texts.items():
            inputs[f"right_{name}"] = tensor
        output = self.output_type(**heads_of(self.task).outputs(inputs, labels))
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return the features of `Eve.encode_image` as `pooler_output`, float32 (B, d)."""
        inputs = self._inputs(images_BCHW=pixel_values)
        return BaseModelOutputWithPooling(pooler_output=self.task.image_features(**inputs))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Return the features of `Eve.encode_text` as `pooler_output`, float32 (B, d)."""
        inputs = self._inputs(input_ids, attention_mask)
        features = self.task.text_features(inputs["ids"], inputs["is_padding"])
        return BaseModelOutputWithPooling(pooler_output=features)

    def _inputs(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **images: Tensor | None,
    ) -> ModelInputs:
        """Return inputs by our names. Raises UserError for images that do not fit."""
        inputs = ModelInputs()
        size = self.task.config.input.image_size
        for name, pixels in images.items():
            if pixels is None:
                continue
            is_image = pixels.ndim == 4 and pixels.shape[1:] == (3, size, size)
            if not is_image or not pixels.is_floating_point():
                raise UserError(
                    f"pixel_values are {pixels.dtype} {tuple(pixels.shape)}, "
                    f"expected float (B, 3, {size}, {size}) from EveImageProcessor"
                )
            inputs[name] = pixels
        if input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            inputs["ids"] = input_ids
            inputs["is_padding"] = attention_mask == 0
        return inputs

    def _build(self) -> Task[Any]:
        config = self.config
        run = config.run
        assert config.id2label is not None
        labels: tuple[str, ...] = ()
        if task_class(type(run.task)).labels_file is not None:
            labels = tuple(str(label) for _, label in sorted(config.id2label.items()))
        sizes = Sizes(vocab_size=config.vocab_size, mask_id=config.mask_token_id, labels=labels)
        return build_untrained(run, sizes)


@dataclass
class EveRetrievalOutput(ModelOutput):
    """Outputs of `EveForRetrieval`; None if not requested."""

    loss: Tensor | None = None
    """The weighted losses of contrast, matching and balance, with `labels`."""
    image_embeds: Tensor | None = None
    """Features of length 1, float32 (I, d)."""
    text_embeds: Tensor | None = None
    """Features of length 1, float32 (C, d)."""
    logits_per_image: Tensor | None = None
    """Similarity over the temperature, (I, C)."""
    logits_per_text: Tensor | None = None
    """The same, (C, I)."""
    match_logits: Tensor | None = None
    """Logits of each image with the text of its row, (B, 2), class 1 = match; needs I = C and a
    matching head."""


class EveModel(EvePreTrainedModel):
    """The encoder without a head: states of images, of texts or of pairs.

    last_hidden_state: (B, N, D) after the final norm, the image's [CLS] and patches first, then the
    text. pooler_output: (B, D), the state of the text [CLS], without a text of the image's.
    """

    kind = "headless"
    output_type = BaseModelOutputWithPooling


class EveForMaskedModeling(EvePreTrainedModel):
    """Masked tokens given an image; a pixel decoder of the run stays unused.

    input_ids: with [MASK] for masked tokens. labels: int64 (B, T), the masked tokens, -100
    elsewhere. loss: their mean cross-entropy in nats plus the weighted balance loss. logits: (B, T,
    V).
    """

    kind = "masked_signal"
    output_type = MaskedLMOutput


class EveForRetrieval(EvePreTrainedModel):
    """Image–text retrieval: embeds I images, C texts or both, and compares them.

    labels: int64 (B,) of true pairs in order, equal for pairs with the same image, which are no
    negatives of each other. In training mode with labels, only the loss is computed.
    """

    kind = "retrieval"
    output_type = EveRetrievalOutput


class EveForVisualQuestionAnswering(EvePreTrainedModel):
    """Answers from the list in config.id2label.

    labels: soft targets, float32 (B, A) in [0, 1]. loss: their binary cross-entropy, summed over
    answers, mean over questions, plus the weighted balance loss. logits: (B, A), one sigmoid each.
    """

    kind = "vqa"


class EveForNLVR2(EvePreTrainedModel):
    """Truth of a statement about pixel_values, left, and pixel_values_right.

    labels: int64 (B,), 1 = true. loss: their cross-entropy plus the weighted balance loss. logits:
    (B, 2).
    """

    kind = "nlvr2"


NAMED: dict[str, type[EvePreTrainedModel]] = {
    model.kind: model for model in EvePreTrainedModel.__subclasses__()
}


@functools.cache
def model_class(section: type[TaskConfig]) -> type[EvePreTrainedModel]:
    """Return the class of a kind of task: one of the above, else a new EveFor… class.

    A new class has the outputs of the kind that it refines, else `loss` and `logits`.
    """
    if section.name in NAMED:
        return NAMED[section.name]
    parent: Any = section.__base__
    base = model_class(parent) if "name" in vars(parent) else EvePreTrainedModel
    name = "EveFor" + "".join(word.capitalize() for word in section.name.split("_"))
    title = f"{section.title[0].upper()}{section.title[1:]}."
    members = {
        "kind": section.name,
        "__module__": __name__,
        "__doc__": f"{title}\n\n{heads_class(section).outputs.__doc__}",
    }
    globals()[name] = model = type(name, (base,), members)
    return model  # pyright: ignore[reportReturnType]


def from_run(path: str | Path) -> tuple[EvePreTrainedModel, EveProcessor]:
    """Return the model and the processor of a run folder or checkpoint.

    The model is in evaluation mode. A folder gives its best weights, else its newest. A pre-trained
    run without a token head gives retrieval or, without contrast and matching, its encoder. Raises
    UserError.
    """
    run = load_run(run_path(path))
    task, kind = _portable_task(run.task)
    labels = task.sizes.labels or heads_of(task).class_names
    config = EveConfig(
        input=to_dict(run.config.input),
        model=portable(run.config.model),
        task=portable(task.settings),
        vocab_size=run.tokenizer.vocab_size,
        mask_token_id=run.tokenizer.mask_id,
        id2label=dict(enumerate(labels)) if labels else None,
    )
    model = kind(config).eval()
    tensors = task.state_dict()
    model.task.load_state_dict({name: tensors[name] for name in model.task.state_dict()})
    return model, EveProcessor.from_eve(run.tokenizer, run.config.input)


def _portable_task(task: Task[Any]) -> tuple[Task[Any], type[EvePreTrainedModel]]:
    """Return a task, or one of its heads as another task, and the class that holds it."""
    if heads_of(task).missing is None:
        return task, model_class(type(task.settings))
    retrieval = task.as_task(RetrievalConfig.name)
    if retrieval is not None:
        return retrieval, model_class(type(retrieval.settings))
    return task, EveModel


def to_run(model: EvePreTrainedModel, processor: EveProcessor, path: str | Path) -> Path:
    """Write a run folder for `eve`, `Eve` and --init; return its path.

    Raises UserError.
    """
    folder = expand_user(path)
    tokenizer = Tokenizer.from_json(
        processor.tokenizer.backend_tokenizer.to_str(), ends=model.config.run.model.reads_text_end
    )
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has "
            f"{model.config.vocab_size}"
        )
    write_run(folder, dataclasses.replace(model.config.run, out=folder), tokenizer, model.task)
    return folder


def __getattr__(name: str) -> Any:
    """Return the class of another kind of task."""
    for section in all_kinds(TaskConfig, "tasks").values():
        model = model_class(section)
        if model.__name__ == name:
            return model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_transformers.AutoConfig.register("eve", EveConfig)
_transformers.AutoModel.register(EveConfig, EveModel)
_transformers.AutoModelForMaskedLM.register(EveConfig, EveForMaskedModeling)
_transformers.AutoModelForVisualQuestionAnswering.register(EveConfig, EveForVisualQuestionAnswering)
_transformers.AutoModelForZeroShotImageClassification.register(EveConfig, EveForRetrieval)
_transformers.AutoImageProcessor.register(
    EveConfig, image_processor_classes={"torchvision": EveImageProcessor}
)
_transformers.AutoTokenizer.register(EveConfig, EveTokenizerFast)
_transformers.AutoProcessor.register(EveConfig, EveProcessor)
