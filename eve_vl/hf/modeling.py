"""Our tasks in the clothes of `transformers`: each class holds one task and owns nothing but the names of its inputs.

Letters: B batch, T text tokens, N all tokens, D width, V vocabulary, A answers, I pictures, C texts, d width of features,
H = W side of the picture.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils.generic import ModelOutput

from eve_vl import objectives
from eve_vl.config import MaskedSignalConfig, NLVR2Config, RetrievalConfig, TaskConfig, VQAConfig, to_dict
from eve_vl.data.batch import Batch, CaptionBatch, StatementBatch
from eve_vl.errors import UserError
from eve_vl.hf.configuration import EveConfig
from eve_vl.model.embed import Tokens, pair, patchify
from eve_vl.model.moe import RouterStats
from eve_vl.run import AnyTask, build_untrained
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.routing import routing_terms
from eve_vl.tasks.vqa import VQA

IGNORED = -100  # label of a token that is not masked, as everywhere in transformers
ALIGNMENT = 64  # bytes; weights mapped from a file lie anywhere, and products of such matrices differ in the last bit
BARE = MaskedSignalConfig(mim_weight=0.0, mlm_weight=0.0)


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
    usual: ClassVar[TaskConfig]
    """The section to use where the config has another task's."""
    task: Any
    """One of ours; subclasses say which."""

    def __init__(self, config: EveConfig):
        super().__init__(config)
        config.task = to_dict(self.section(config.run.task))
        self.task = self._build()
        self.post_init()

    @classmethod
    def section(cls, given: TaskConfig) -> TaskConfig:
        """Return the task's section of a config, or the usual one if that is another task's."""
        return given if type(given) is type(cls.usual) else cls.usual

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

    def _build(self) -> AnyTask:
        config = self.config
        assert config.id2label is not None
        answers = [str(label) for _, label in sorted(config.id2label.items())]
        return build_untrained(config.run, config.vocab_size, answers, mask_id=config.mask_token_id)

    def _pixels(self, pixel_values: Tensor) -> Tensor:
        size = self.config.model["image_size"]
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size) or not pixel_values.is_floating_point():
            given = f"{pixel_values.dtype} {tuple(pixel_values.shape)}"
            raise UserError(f"pixel_values are {given}, expected float (B, 3, {size}, {size}) from EveImageProcessor")
        return pixel_values

    def _fields(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Return what every batch of ours has."""
        return {
            "images_BCHW": self._pixels(pixel_values),
            "ids_BT": input_ids,
            "is_padding_BT": _is_padding(input_ids, attention_mask),
            "where": (),
        }

    def _image(self, pixel_values: Tensor) -> Tokens:
        return self.task.encoder.image(patchify(self._pixels(pixel_values), self.config.model["patch_size"]))

    def _text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tokens:
        return self.task.encoder.text(input_ids, _is_padding(input_ids, attention_mask))

    def _with_balance(self, loss: Tensor, passes: list[list[RouterStats]]) -> Tensor:
        terms = routing_terms(passes)
        return loss + self.config.model["balance_weight"] * terms["balance"] if terms else loss

    def _returned(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _is_padding(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    return torch.zeros_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask == 0


class EveModel(EvePreTrainedModel):
    """The encoder without a head."""

    usual = BARE
    task: MaskedSignal

    @classmethod
    def section(cls, given: TaskConfig) -> TaskConfig:
        """Return the section of a task without losses and heads."""
        return cls.usual

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode pictures, texts or pairs.

        last_hidden_state: (B, N, D) after the final norm, the picture's [CLS] and patches first, then the text.
        pooler_output: (B, D), the state of the text [CLS], of the picture's where there is no text.
        """
        if pixel_values is None and input_ids is None:
            raise UserError("give pixel_values, input_ids or both")
        image = None if pixel_values is None else self._image(pixel_values)
        text = None if input_ids is None else self._text(input_ids, attention_mask)
        tokens = pair(image, text) if image and text else image or text
        assert tokens is not None
        x_BND = self.task.encoder.encode(tokens).x_BND
        cls = tokens.num_image if text else 0
        output = BaseModelOutputWithPooling(last_hidden_state=x_BND, pooler_output=x_BND[:, cls])  # pyright: ignore
        return self._returned(output, return_dict)


class EveForMaskedModeling(EvePreTrainedModel):
    """Masked tokens beside a picture. A run that also rebuilds pixels keeps the decoder for it, which is not used here."""

    usual = MaskedSignalConfig()
    task: MaskedSignal

    def __init__(self, config: EveConfig):
        super().__init__(config)
        if not self.task.settings.mlm_weight:
            raise UserError("EveForMaskedModeling needs the head for tokens, but task.mlm_weight is 0")

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        """Guess tokens.

        input_ids: with [MASK] where a token is hidden. labels: int64 (B, T), the hidden tokens, -100 elsewhere. loss: their
        mean cross-entropy in nats, plus the weighted balance loss. logits: (B, T, V).
        """
        image, text = self._image(pixel_values), self._text(input_ids, attention_mask)
        encoded = self.task.encoder.encode(pair(image, text))
        logits_BTV = self.task.token_head(encoded.x_BND[:, -input_ids.shape[1] :])
        loss = None
        if labels is not None:
            is_masked_BT = labels != IGNORED
            loss = objectives.masked_tokens(logits_BTV[is_masked_BT], labels[is_masked_BT], is_masked_BT.sum().clamp(min=1))
            loss = self._with_balance(loss, [encoded.router])
        return self._returned(MaskedLMOutput(loss=loss, logits=logits_BTV), return_dict)  # pyright: ignore


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
    """Of each picture with the text of the same row, (B, 2), class 1 = match; needs I = C and a matching head."""


class EveForRetrieval(EvePreTrainedModel):
    """Pictures and texts that find each other."""

    usual = RetrievalConfig()
    task: Retrieval

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> EveRetrievalOutput:
        """Embed I pictures, C texts or both, and compare them.

        labels: int64 (B,), of true pairs in order, equal where two show the same picture, so that they are no negatives of
        each other. In training mode with labels, only the loss is computed.
        """
        output = EveRetrievalOutput()
        if labels is not None:
            if pixel_values is None or input_ids is None or not len(pixel_values) == len(input_ids) == len(labels):
                raise UserError("labels need as many pixel_values and input_ids: a picture and its text in each row")
            fields = self._fields(pixel_values, input_ids, attention_mask)
            output.loss = self.task(CaptionBatch(**fields, picture_B=labels)).loss
        if labels is None or not self.training:
            self._compare(output, pixel_values, input_ids, attention_mask)
        return self._returned(output, return_dict)

    def _compare(
        self, output: EveRetrievalOutput, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> None:
        if pixel_values is None and input_ids is None:
            raise UserError("give pixel_values, input_ids or both")
        if pixel_values is not None:
            output.image_embeds = self.task.image_features(self._pixels(pixel_values))
        if input_ids is not None:
            output.text_embeds = self.task.text_features(input_ids, _is_padding(input_ids, attention_mask))
        if pixel_values is None or input_ids is None:
            return
        assert output.image_embeds is not None
        assert output.text_embeds is not None
        contrast = self.task.contrast
        output.logits_per_image = output.image_embeds @ output.text_embeds.T / contrast.features.temperature
        output.logits_per_text = output.logits_per_image.T
        if contrast.match_head is not None and len(pixel_values) == len(input_ids):
            image, text = self._image(pixel_values), self._text(input_ids, attention_mask)
            output.match_logits, _ = contrast.match(self.task.encoder, image, text)


class EveForVisualQuestionAnswering(EvePreTrainedModel):
    """Answers from the list that is config.id2label."""

    usual = VQAConfig()
    task: VQA

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Answer questions.

        labels: soft targets, float32 (B, A) in [0, 1]. loss: their binary cross-entropy, summed over answers, mean over
        questions, plus the weighted balance loss. logits: (B, A), one sigmoid each.
        """
        logits_BA, router = self.task.predict(Batch(**self._fields(pixel_values, input_ids, attention_mask)))
        loss = None
        if labels is not None:
            if labels.shape != logits_BA.shape:
                raise UserError(f"labels of shape {tuple(labels.shape)}, expected soft targets {tuple(logits_BA.shape)}")
            loss = self._with_balance(objectives.answers(logits_BA, labels.float()), [router])
        return self._returned(SequenceClassifierOutput(loss=loss, logits=logits_BA), return_dict)  # pyright: ignore


class EveForNLVR2(EvePreTrainedModel):
    """Whether a statement is true of two pictures."""

    usual = NLVR2Config()
    task: NLVR2

    def forward(
        self,
        pixel_values: Tensor,
        pixel_values_right: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Judge statements about the pictures on the left and those on the right.

        labels: int64 (B,), 1 = true. loss: their cross-entropy plus the weighted balance loss. logits: (B, 2).
        """
        nothing: dict[str, Any] = {"statements": (), "labels": (), "identifiers": (), "groups": ()}
        fields = self._fields(pixel_values, input_ids, attention_mask)
        batch = StatementBatch(**fields, right_BCHW=self._pixels(pixel_values_right), **nothing)
        logits_B2, routers = self.task.predict(batch)
        loss = None if labels is None else self._with_balance(objectives.matching(logits_B2, labels), routers)
        return self._returned(SequenceClassifierOutput(loss=loss, logits=logits_B2), return_dict)  # pyright: ignore
