"""Processors of `transformers` that give exactly the inputs of our own evaluation.

Letters: B batch, T text tokens, H = W side of the image.
"""

import sys
from collections.abc import Sequence
from typing import Any, Self

import torch
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.tokenization_utils_base import TruncationStrategy

from eve_vl.config import InputConfig
from eve_vl.data.batches import normalize
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.predict.batching import as_several
from eve_vl.predict.user_images import Images, user_images
from eve_vl.utils.errors import UserError

WHOLE = sys.maxsize  # tokens


class EveImageProcessor(BaseImageProcessor):
    """Images in any form that `Eve` takes, resized to a square.

    They are normalised with mean = std = 0.5. size: {"height": H, "width": H}. form, interpolation:
    `input.resize` and `input.interpolation` of the run. A JPEG as a path or bytes is shrunk during
    decoding, as in evaluation. One that Pillow has decoded differs a little.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: dict[str, int] | None = None,
        form: Any = "squash",
        interpolation: Any = "bicubic",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.form = form
        self.interpolation = interpolation
        side = InputConfig.image_size
        self.size = size or {"height": side, "width": side}
        if self.size.keys() != {"height", "width"} or self.size["height"] != self.size["width"]:
            raise UserError(
                f'size {self.size}, expected a square: {{"height": {side}, "width": {side}}}'
            )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Images, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Return pixel_values, float32 (B, 3, H, W) in [-1, 1], of one image or a list.

        Raises UserError.
        """
        sizes = InputConfig(
            image_size=self.size["height"], resize=self.form, interpolation=self.interpolation
        )
        pixels = [image.pixels(sizes) for image in user_images(images)]
        if not pixels:
            raise UserError("images is an empty list")
        return BatchFeature(
            {"pixel_values": normalize(torch.stack(pixels))}, tensor_type=return_tensors
        )


class EveTokenizerFast(PreTrainedTokenizerFast):
    """Tokenizer of a run: the ids of `Tokenizer.encode`.

    It gives ids and attention mask of texts, not of pairs of texts. truncation=True cuts them at
    the run's longest text. A special token written in a text is ordinary text. With
    split_special_tokens=False each "[MASK]" is a masked token, as in `Eve.fill_mask`.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def from_eve(cls, tokenizer: Tokenizer, sizes: InputConfig) -> Self:
        """Return a wrapper of one of our tokenizers."""
        ids = {
            "pad": tokenizer.pad_id,
            "cls": tokenizer.cls_id,
            "mask": tokenizer.mask_id,
            "eos": tokenizer.end_id,
        }
        special_tokens: Any = {
            f"{kind}_token": tokenizer.backend.id_to_token(token_id)
            for kind, token_id in ids.items()
            if token_id is not None
        }
        return cls(
            tokenizer_object=tokenizer.backend,
            model_max_length=sizes.max_text_tokens,
            split_special_tokens=True,
            **special_tokens,
        )

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: Any,
        text_pair: None = None,
        *,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        split_special_tokens: bool | None = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode, cut and pad.

        Texts are cut as `Tokenizer.encode` does. The library would keep a final special token.
        """
        if text_pair is not None:
            raise UserError("pairs of texts are not supported: give one text in each row")
        is_single = isinstance(text, str)
        texts = [text] if is_single else list(text)
        rows: list[Any] = self._ids(texts, has_masks=split_special_tokens is False)
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE:
            rows = [self._cut(row, max_length or WHOLE) for row in rows]
        batch = self.pad(
            {"input_ids": rows},
            kwargs.get("padding_strategy", False),
            max_length,
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=kwargs.get("padding_side"),
            return_tensors=kwargs.get("return_tensors"),
        )
        if not is_single or kwargs.get("return_tensors") is not None:
            return batch
        return BatchEncoding({name: row for name, (row,) in batch.items()})

    def _ids(self, texts: Sequence[str], has_masks: bool) -> list[list[int]]:
        """Return the ids of whole texts. has_masks: "[MASK]" in a text is a masked token."""
        backend = self.backend_tokenizer
        if has_masks:
            tokenizer = Tokenizer(backend, "tokenizer", ends=self.eos_token is not None)
            return [tokenizer.encode_with_masks(text, WHOLE)[0].tolist() for text in texts]
        backend.encode_special_tokens = True
        return [encoding.ids for encoding in backend.encode_batch(texts)]

    def _cut(self, row: list[int], longest: int) -> list[int]:
        """Return the ids of a text of at most `longest` tokens; a text that is cut keeps its end
        token."""
        if len(row) <= longest:
            return row
        if self.eos_token_id is None:
            return row[:longest]
        return [*row[: longest - 1], int(self.eos_token_id)]  # pyright: ignore[reportArgumentType]


class EveProcessor(ProcessorMixin):
    """`EveImageProcessor` and `EveTokenizerFast` in one call.

    padding: "longest" of the batch, or "max_length" for runs with input.padded_text_length.
    """

    def __init__(
        self,
        image_processor: EveImageProcessor,
        tokenizer: EveTokenizerFast,
        padding: str = "longest",
    ):
        super().__init__(image_processor, tokenizer)
        self.padding = padding

    @classmethod
    def from_eve(cls, tokenizer: Tokenizer, sizes: InputConfig) -> Self:
        """Return the processor of a run's inputs."""
        size = {"height": sizes.image_size, "width": sizes.image_size}
        padding = "max_length" if sizes.padded_text_length else "longest"
        images = EveImageProcessor(size=size, form=sizes.resize, interpolation=sizes.interpolation)
        return cls(images, EveTokenizerFast.from_eve(tokenizer, sizes), padding=padding)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        images_right: Images | None = None,
        text_right: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Return a model's inputs: pixel_values, input_ids, attention_mask.

        Those of right images and texts end in _right. One image and one text are a batch of one; an
        empty text is only its [CLS]. kwargs go to the tokenizer; padding and truncation are on.
        Raises UserError for no or invalid inputs.
        """
        if images is None and text is None:
            raise UserError("give images, text or both")
        options = {
            "padding": self.padding,
            "truncation": True,
            "return_tensors": return_tensors,
        } | kwargs
        inputs: dict[str, Any] = {}
        for pixels, texts, ending in ((images, text, ""), (images_right, text_right, "_right")):
            if pixels is not None:
                processed = self.image_processor(pixels, return_tensors)
                inputs[f"pixel_values{ending}"] = processed["pixel_values"]
            if texts is not None:
                for name, values in self.tokenizer(_listed_texts(texts), **options).items():
                    inputs[f"{name}{ending}"] = values
        return BatchFeature(inputs)


def _listed_texts(texts: Any) -> list[str]:
    """Return one or several texts as a list. Raises UserError for anything else."""
    texts_list = [texts] if isinstance(texts, str) else list(as_several(texts) or ())
    if not texts_list or not all(isinstance(text, str) for text in texts_list):
        raise UserError(
            f"text is {str(texts)[:80]!r}, expected a text or a list of texts, which may be empty"
        )
    return texts_list
