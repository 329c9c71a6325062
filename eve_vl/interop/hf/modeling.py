"""Our tasks as models of `transformers`: each class holds one task, asks its `outputs`, and adds nothing but names.

Letters: B batch, T text tokens, N all tokens, D width, V vocabulary, A answers, I images, C texts, d width of features,
H = W side of the image.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from eve_vl.config import TaskConfig, kinds_of, to_dict
from eve_vl.interop.heads import heads_class, heads_of
from eve_vl.interop.hf.configuration import EveConfig
from eve_vl.run.loading import build_untrained
from eve_vl.tasks import task_class
from eve_vl.tasks.task import Sizes, Task
from eve_vl.utils.errors import UserError

ALIGNMENT = 64  # bytes; weights mapped from a file lie anywhere, and products of such matrices differ in the last bit


class Given(dict[str, Tensor]):
    """Inputs by our names; one that a task wants and that is missing is a mistake of whoever called the model."""

    def __missing__(self, name: str) -> Tensor:
        inputs = {"pixels": "pixel_values", "right": "pixel_values_right", "right_ids": "input_ids_right"}
        raise UserError(f"{inputs.get(name, 'input_ids')} is missing")


class EvePreTrainedModel(PreTrainedModel):
    """What all classes share: one task of ours, `task`, built from the config.

    A checkpoint of another task is a start for fine-tuning: the encoder is taken over, heads that it lacks start as the task
    starts them. pixel_values are float32 (B, 3, H, W), as `EveImageProcessor` gives them; input_ids int64 (B, T) and
    attention_mask (B, T), 0 at padding, as `EveTokenizerFast` does. return_dict: False returns a tuple instead of a
    ModelOutput. UserError names inputs that do not fit.
    """

    config_class = EveConfig
    config: EveConfig
    base_model_prefix = "task"
    main_input_name = "pixel_values"
    kind: ClassVar[str]
    """Name of the task's section; where the config has another one, this one's defaults count."""
    output_type: ClassVar[type[ModelOutput]] = SequenceClassifierOutput
    task: Task[Any]

    def __init__(self, config: EveConfig):
        super().__init__(config)
        section = kinds_of(TaskConfig)[self.kind]
        if not isinstance(config.run.task, section):
            config.task = to_dict(section())
        self.task = self._build()
        if (missing := heads_of(self.task).missing) is not None:
            raise UserError(f"{type(self).__name__} needs {missing}")
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = True, **kwargs: Any) -> Any:
        """Load a folder or a repository of the hub, whose weights must be safetensors: a pickle can run code.

        The weights stay float32, as in training; autocast computes in bfloat16. Raises UserError for use_safetensors=False and
        for another dtype, OSError where there is no such file.
        """
        if kwargs.get("dtype", kwargs.get("torch_dtype")) not in (None, "auto", "float32", torch.float32):
            raise UserError("the weights stay float32: compute in bfloat16 with torch.autocast, in Trainer with bf16=True")
        if not use_safetensors:
            raise UserError("use_safetensors=False would load a pickle, which can run code: convert it to safetensors first")
        found = super().from_pretrained(*args, use_safetensors=True, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        for parameter in model.parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return found

    def init_weights(self) -> None:
        """Do nothing: the task has given its weights their first values."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Give what a checkpoint lacked the values that a new task has."""
        tensors = self.task.state_dict(keep_vars=True)
        lacking = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        new = self._build().state_dict() if lacking else {}
        for name in lacking:
            tensors[name].copy_(new[name])

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
        """Return what the class says. attention_mask: None: no padding. …_right: for tasks with two images or two texts."""
        if pixel_values_right is not None and "right" not in getattr(self.task, "reads", ()):
            raise UserError(f"{type(self).__name__} looks at one image: leave out pixel_values_right")
        tensors = self._given(input_ids, attention_mask, pixels=pixel_values, right=pixel_values_right)
        of_right = self._given(input_ids_right, attention_mask_right)
        tensors |= {f"right_{name}": tensor for name, tensor in of_right.items()}
        output = self.output_type(**heads_of(self.task).outputs(tensors, labels))
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def get_image_features(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return features of images as `pooler_output`, float32 (B, d), those of `Eve.encode_image`."""
        return BaseModelOutputWithPooling(pooler_output=self.task.image_features(**self._given(images_BCHW=pixel_values)))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutputWithPooling:
        """Return features of texts as `pooler_output`, float32 (B, d), those of `Eve.encode_text`."""
        given = self._given(input_ids, attention_mask)
        return BaseModelOutputWithPooling(pooler_output=self.task.text_features(given["ids"], given["is_padding"]))

    def _given(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **pixels: Tensor | None) -> Given:
        """Return inputs by our names. Raises UserError for images that do not fit."""
        tensors, size = Given(), self.task.config.input.image_size
        for name, given in pixels.items():
            if given is None:
                continue
            if given.ndim != 4 or given.shape[1:] != (3, size, size) or not given.is_floating_point():
                found = f"{given.dtype} {tuple(given.shape)}"
                raise UserError(f"pixel_values are {found}, expected float (B, 3, {size}, {size}) from EveImageProcessor")
            tensors[name] = given
        if input_ids is not None:
            is_real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            tensors |= {"ids": input_ids, "is_padding": is_real == 0}
        return tensors

    def _build(self) -> Task[Any]:
        config, run = self.config, self.config.run
        assert config.id2label is not None
        has_labels = task_class(type(run.task)).labels_file is not None
        labels = tuple(str(label) for _, label in sorted(config.id2label.items())) if has_labels else ()
        return build_untrained(run, Sizes(vocab_size=config.vocab_size, mask_id=config.mask_token_id, labels=labels))


@dataclass
class EveRetrievalOutput(ModelOutput):
    """What `EveForRetrieval` returns; None is what was not asked for."""

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
    """Of each image with the text of the same row, (B, 2), class 1 = match; needs I = C and a matching head."""


# Kinds of tasks whose class has a name of its own; `model_class` makes those of all others


class EveModel(EvePreTrainedModel):
    """The encoder without a head: states of images, of texts or of pairs.

    last_hidden_state: (B, N, D) after the final norm, the image's [CLS] and patches first, then the text. pooler_output:
    (B, D), the state of the text [CLS], of the image's where there is no text.
    """

    kind = "headless"
    output_type = BaseModelOutputWithPooling


class EveForMaskedModeling(EvePreTrainedModel):
    """Masked tokens beside an image. A run that also rebuilds pixels keeps the decoder for it, which is not used here.

    input_ids: with [MASK] where a token is hidden. labels: int64 (B, T), the hidden tokens, -100 elsewhere. loss: their mean
    cross-entropy in nats, plus the weighted balance loss. logits: (B, T, V).
    """

    kind = "masked_signal"
    output_type = MaskedLMOutput


class EveForRetrieval(EvePreTrainedModel):
    """Images and texts that find each other: embeds I images, C texts or both, and compares them.

    labels: int64 (B,), of true pairs in order, equal where two show the same image, so that they are no negatives of each
    other. In training mode with labels, only the loss is computed.
    """

    kind = "retrieval"
    output_type = EveRetrievalOutput


class EveForVisualQuestionAnswering(EvePreTrainedModel):
    """Answers from the list that is config.id2label.

    labels: soft targets, float32 (B, A) in [0, 1]. loss: their binary cross-entropy, summed over answers, mean over questions,
    plus the weighted balance loss. logits: (B, A), one sigmoid each.
    """

    kind = "vqa"


class EveForNLVR2(EvePreTrainedModel):
    """Whether a statement is true of two images, pixel_values on the left and pixel_values_right.

    labels: int64 (B,), 1 = true. loss: their cross-entropy plus the weighted balance loss. logits: (B, 2).
    """

    kind = "nlvr2"


NAMED: dict[str, type[EvePreTrainedModel]] = {each.kind: each for each in EvePreTrainedModel.__subclasses__()}


@functools.cache
def model_class(section: type[TaskConfig]) -> type[EvePreTrainedModel]:
    """Return the class of a kind of task: one of the above, else EveFor and its name, whose outputs are those of the kind that
    it refines, if it refines one, else `loss` and `logits`."""
    if section.name in NAMED:
        return NAMED[section.name]
    parent: Any = section.__base__
    base = model_class(parent) if "name" in vars(parent) else EvePreTrainedModel
    name = "EveFor" + "".join(word.capitalize() for word in section.name.split("_"))
    words = f"{section.title[0].upper()}{section.title[1:]}.\n\n{heads_class(section).outputs.__doc__}"
    globals()[name] = kind = type(name, (base,), {"kind": section.name, "__module__": __name__, "__doc__": words})
    return kind  # pyright: ignore[reportReturnType]
