"""The interface of encoders to tasks: embed an image or a text, encode one or both.

Letters: B batch, H height, W width, K kept patches, M text tokens that are read, T text tokens,
N all tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from eve_vl.config import InputConfig, ModelConfig
from eve_vl.model.tokens import Tokens


@dataclass(kw_only=True, slots=True)
class Encoded(Tokens):
    """States after the final norm, in the order [image; text]."""

    routers: list[list[Tensor]]
    """Per pass, the statistics of each block with experts (`router_stats`), first to last; empty
    lists without any."""

    @classmethod
    def of(cls, tokens: Tokens, x_BND: Tensor, routers: list[list[Tensor]]) -> "Encoded":
        """Return the states of tokens."""
        return cls(
            x_BND=x_BND,
            num_image=tokens.num_image,
            is_padding_BN=tokens.is_padding_BN,
            num_real=tokens.num_real,
            routers=routers,
        )

    @property
    def text_BTD(self) -> Tensor:
        """States of the text."""
        return self.x_BND[:, self.num_image :]

    @property
    def cls_BD(self) -> Tensor:
        """State of the text's [CLS], or of the image's without a text."""
        has_text = self.num_image < self.x_BND.shape[1]
        return self.x_BND[:, self.num_image if has_text else 0]

    @property
    def mean_BD(self) -> Tensor:
        """Mean state of all tokens."""
        if self.is_padding_BN is None:
            return self.x_BND.mean(1)
        is_real_BN1 = (~self.is_padding_BN).to(self.x_BND.dtype)[:, :, None]
        return (self.x_BND * is_real_BN1).sum(1) / is_real_BN1.sum(1)


class Backbone(nn.Module):
    """An encoder of images, texts and, if supported, pairs.

    Heads read its states of width config.embed_dim. `image` and `text` compute the part that needs
    one modality, once for all pairs with it; `encode` computes the rest.
    """

    config: ModelConfig
    sizes: InputConfig
    balance_weight: float = 0.0
    """Weight of the load-balancing loss of experts."""
    results_depend_on_batch: bool = False
    """Whether a result depends on other rows of the pass, or on chance."""
    find_unused_parameters: bool = False
    """Whether some parameters may get no gradient, depending on the states that are read."""
    num_contrasts: int = 1
    """Number of states that `for_contrast` returns, each for its own contrastive head."""
    parts: ClassVar[Mapping[str, str]] = {"image": "image embedding", "text": "text embedding"}
    """Display names of its modules; all others are shown as blocks."""
    computes_all = False
    """Compute states that nobody reads in evaluation too, for inspection."""

    image: Callable[..., Tokens]
    """`image(pixels_BCHW, keep_BK=None)` embeds images in [-1, 1]: all patches, or those at the
    positions keep_BK (int64)."""
    text: Callable[..., Tokens]
    """`text(ids_BT, is_padding_BT, num_real=None)` embeds texts: int64 ids, bool padding or None,
    and the number of tokens without padding, if known without a GPU sync."""

    @property
    def pair_dim(self) -> int:
        """Width of the state that `cls` returns for a pair."""
        return self.config.embed_dim

    @abstractmethod
    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images, of texts or of pairs.

        num_passes: number of equal parts that a backbone encodes one by one if results depend on
        other rows of a pass.
        """

    @abstractmethod
    def cls(
        self,
        image: Tokens | None,
        text: Tokens | None,
        *,
        num_passes: int = 1,
        final_norm: bool = True,
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return Encoded.cls_BD, or a pair's equivalent (B, pair_dim), and the routers.

        Only states that these need are computed. final_norm: False returns the states before it.
        """

    def for_contrast(
        self, image: Tokens | None, text: Tokens | None
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return states (B, D) of an image or a text for contrast, and the routers.

        There is one per contrastive head.
        """
        state_BD, routers = self.cls(image, text)
        return [state_BD], routers

    def for_pixels(self, image: Tokens, text: Tokens | None) -> Encoded:
        """Return states that reconstruct masked pixels, of pairs or of their images."""
        return self.encode(image, text)

    def for_tokens(
        self, image: Tokens | None, text: Tokens, token_M: Tensor
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the states (M, D) of some text tokens, and the routers.

        token_M: int64, among the flattened (B, T).
        """
        encoded = self.encode(image, text)
        return encoded.text_BTD.flatten(0, 1).index_select(0, token_M), encoded.routers

    def resized(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Resize another encoder's weights that depend on input sizes.

        Returns all weights, and a sentence on the changes.
        """
        return tensors, None

    @abstractmethod
    def image_attention(self, *, at_pair: bool) -> tuple[list[str], int]:
        """Return the names of attention modules from text to image, and a row.

        First to last; the row is that of the text's [CLS]. Without at_pair: those of images only,
        and the row of the image's [CLS].
        """
