"""What every encoder is to the tasks: it embeds an image or a text, and encodes one of them or both.

Letters: B batch, H height, W width, K kept patches, T text tokens, N all tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from eve_vl.config import InputConfig, ModelConfig
from eve_vl.model.moe import RouterStats
from eve_vl.model.packing import Tokens


@dataclass(kw_only=True, slots=True)
class Encoded(Tokens):
    """States after the final norm, in the order [image; text]."""

    routers: list[list[RouterStats]]
    """Per pass, what each block with experts did, first to last; empty lists where there are none."""

    @property
    def text_BTD(self) -> Tensor:
        """States of the text."""
        return self.x_BND[:, self.num_image :]

    @property
    def cls_BD(self) -> Tensor:
        """State of the text's [CLS], of the image's where there is no text."""
        return self.x_BND[:, self.num_image if self.num_image < self.x_BND.shape[1] else 0]

    @property
    def mean_BD(self) -> Tensor:
        """Mean state of all tokens."""
        if self.is_padding_BN is None:
            return self.x_BND.mean(1)
        is_real_BN1 = (~self.is_padding_BN).to(self.x_BND.dtype)[:, :, None]
        return (self.x_BND * is_real_BN1).sum(1) / is_real_BN1.sum(1)


class Backbone(nn.Module):
    """An encoder of images, of texts and, if it can, of pairs; a two-tower model or one with a CNN in front is one too.

    Heads read its states of width config.embed_dim. `image` and `text` do what can be done to one modality alone, once for
    all pairs that it takes part in; `encode` does the rest.
    """

    config: ModelConfig
    sizes: InputConfig
    balance_weight: float = 0.0
    """Weight of the load-balancing loss, where there are experts."""
    results_depend_on_batch: bool = False
    """Whether a result depends on what else is in a pass, or on chance."""
    find_unused_parameters: bool = False
    """Whether some of its parameters stay without a gradient, depending on what is read."""
    num_contrasts: int = 1
    """How many states of an image or of a text alone `alone` returns, each to be compared by a head of its own."""
    pixel_tokens: Literal["pair", "image"] = "pair"
    """What hidden pixels are rebuilt from: states of image and text, or those of the image alone."""
    parts: ClassVar[Mapping[str, str]] = {"image": "image embedding", "text": "text embedding"}
    """What people call modules of it; the others are its blocks."""
    computes_all = False
    """In evaluation too, compute states that nobody reads: for those who look inside."""

    image: Callable[..., Tokens]
    """`image(pixels_BCHW, keep_BK=None)` embeds images in [-1, 1]: all patches, or those at the positions keep_BK (int64)."""
    text: Callable[..., Tokens]
    """`text(ids_BT, is_padding_BT, num_real=None)` embeds texts: int64 ids, and bool, which are padding, or None; `num_real` is
    how many are none, where that is known without asking a device."""

    @property
    def pair_dim(self) -> int:
        """Width of what `cls` returns of a pair."""
        return self.config.embed_dim

    @abstractmethod
    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images, of texts or of pairs.

        num_passes: equal parts of the batch that a backbone whose results depend on the rest of a pass takes one by one.
        """

    @abstractmethod
    def cls(
        self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1, final_norm: bool = True
    ) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return Encoded.cls_BD, or of a pair what this backbone has in its place, (B, pair_dim), and the routers alone; states
        that it does not need may be left out.

        final_norm: False returns the states before it.
        """

    def alone(
        self, image: Tokens | None, text: Tokens | None, final_norm: bool = True
    ) -> tuple[list[Tensor], list[list[RouterStats]]]:
        """Return the states (B, D), one per contrast, that an image or a text alone is compared by, and the routers."""
        state_BD, routers = self.cls(image, text, final_norm=final_norm)
        return [state_BD], routers

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return the states, of the modalities that pixel_tokens says, that hidden pixels are rebuilt from."""
        return self.encode(image, text)

    def some(self, image: Tokens | None, text: Tokens, token_M: Tensor) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return the states (M, D) of some tokens of the texts, int64 among the flattened (B, T), and the routers alone; others
        may be left out."""
        encoded = self.encode(image, text)
        return encoded.text_BTD.flatten(0, 1).index_select(0, token_M), encoded.routers

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Return the weights of another such encoder with those resized that depend on the sizes of inputs, and a sentence
        on what was resized, if anything was."""
        return tensors, None

    @property
    @abstractmethod
    def attention_names(self) -> list[str]:
        """Names of the attention modules over whole pairs, first to last."""

    def looking(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of the attention modules in which texts look at images, first to last, and the row of a text's
        [CLS]; without at_pair those of images alone, and the row of their own."""
        return self.attention_names, 1 + self.sizes.num_patches if at_pair else 0
