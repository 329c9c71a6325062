"""What every encoder is to the tasks: it embeds a picture or a text, and encodes one of them or both.

Letters: B batch, H height, W width, K kept patches, T text tokens, N all tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from eve_vl.config import InputConfig, ModelConfig
from eve_vl.model.moe import RouterStats
from eve_vl.model.rows import Tokens

Reads = Literal["all", "cls"] | int
"""How many states of a sequence are read: all, that of the [CLS], or those of so many tokens of the text."""


@dataclass(kw_only=True, slots=True)
class Encoded(Tokens):
    """States after the final norm, in the order [picture; text]."""

    routers: list[list[RouterStats]]
    """Per pass, what each block with experts did, first to last; empty lists where there are none."""

    @property
    def text_BTD(self) -> Tensor:
        """States of the text."""
        return self.x_BND[:, self.num_image :]

    @property
    def cls_BD(self) -> Tensor:
        """State of the text's [CLS], of the picture's where there is no text."""
        return self.x_BND[:, self.num_image if self.num_image < self.x_BND.shape[1] else 0]

    @property
    def mean_BD(self) -> Tensor:
        """Mean state of all tokens."""
        if self.is_padding_BN is None:
            return self.x_BND.mean(1)
        is_real_BN1 = (~self.is_padding_BN).to(self.x_BND.dtype)[:, :, None]
        return (self.x_BND * is_real_BN1).sum(1) / is_real_BN1.sum(1)


class Backbone(nn.Module):
    """An encoder of pictures, of texts and, if it can, of pairs; a two-tower model or one with a CNN in front is one too.

    Heads read its states of width config.embed_dim. `image` and `text` do what can be done to one modality alone, once for
    all pairs that it takes part in; `encode` does the rest.
    """

    config: ModelConfig
    sizes: InputConfig
    balance_weight: float = 0.0
    """Weight of the load-balancing loss, where there are experts."""
    results_depend_on_batch: bool = False
    """Whether a result depends on what else is in a pass, or on chance."""
    num_contrasts: int = 1
    """States that `alone` returns: so many losses contrast pictures with texts."""
    computes_all = False
    """In evaluation too, compute states that nobody reads: for those who look inside."""

    image: Callable[..., Tokens]
    """`image(pixels_BCHW, keep_BK=None)` embeds pictures in [-1, 1]: all patches, or those at the positions keep_BK (int64)."""
    text: Callable[..., Tokens]
    """`text(ids_BT, is_padding_BT, num_real=None)` embeds texts: int64 ids, and bool, which are padding, or None; `num_real` is
    how many are none, where that is known without asking a device."""

    @abstractmethod
    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of pictures, of texts or of pairs.

        num_passes: equal parts of the batch that a backbone whose results depend on the rest of a pass takes one by one.
        """

    @abstractmethod
    def cls(
        self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1, final_norm: bool = True
    ) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return Encoded.cls_BD and the routers alone; states that it does not need may be left out.

        final_norm: False returns the states before it.
        """

    def alone(
        self, image: Tokens | None, text: Tokens | None, final_norm: bool = True
    ) -> tuple[list[Tensor], list[list[RouterStats]]]:
        """Return the states (B, D) that pictures or texts alone are compared by, one per contrast, the first that of `cls`, and
        the routers."""
        cls_BD, routers = self.cls(image, text, final_norm=final_norm)
        return [cls_BD], routers

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

    @abstractmethod
    def flops(self, num_image: int, num_text: int, reads: Reads = "all") -> float:
        """Return forward FLOPs of a training pass over so many tokens, matrix products only; a multiply-add counts as two."""

    def flops_alone(self, num_image: int, num_text: int, reads: Reads = "cls") -> float:
        """Return the same of `alone`."""
        return self.flops(num_image, num_text, reads)
