"""EVE's encoder as the published code runs it, for weights trained with that code (docs/fidelity.md).

A token's result depends on all tokens of its pass: parts of a batch run one by one, and no state may be left out.

Letters: B batch, N all tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from eve_vl.model.backbone import Encoded
from eve_vl.model.embeddings import index_tokens, join
from eve_vl.model.encoder import Encoder
from eve_vl.model.moe import RouterStats
from eve_vl.model.packing import PackedTokens, Tokens


class OfficialEncoder(Encoder):
    """`Encoder` with `model.routing` reference or reference-dropless."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        # without drops, a token's result depends on no other token
        self.results_depend_on_batch = self.config.routing == "reference" and "moe" in self.config.ffn_policies
        self.computes_all = self.results_depend_on_batch

    def rows(self, tokens: Tokens) -> PackedTokens:
        """Return all tokens: padding is routed too."""
        return PackedTokens.of(tokens, self.config.num_heads, packs=False)

    def encode(self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1) -> Encoded:
        """Return the states of images, texts or pairs, one pass per part of the batch."""
        if num_passes == 1:
            return super().encode(image, text)
        parts = [super(OfficialEncoder, self).encode(*part) for part in _parts(image, text, num_passes)]
        return Encoded(
            x_BND=torch.cat([part.x_BND for part in parts]),
            num_image=parts[0].num_image,
            is_padding_BN=join(image, text).is_padding_BN,
            routers=[part.routers[0] for part in parts],
        )

    def cls(
        self, image: Tokens | None, text: Tokens | None, *, num_passes: int = 1, final_norm: bool = True
    ) -> tuple[Tensor, list[list[RouterStats]]]:
        """Return the state of the text's [CLS], else of the image's, (B, D), and the routers of each pass."""
        parts = [super(OfficialEncoder, self).cls(*part, final_norm=final_norm) for part in _parts(image, text, num_passes)]
        return torch.cat([cls_BD for cls_BD, _ in parts]), [routers for _, (routers,) in parts]


def _parts(image: Tokens | None, text: Tokens | None, count: int) -> list[list[Tokens | None]]:
    """Cut a batch into equal parts, in operations that ONNX has."""
    tokens = image or text
    assert tokens is not None
    rows_CB = torch.arange(tokens.x_BND.shape[0], device=tokens.x_BND.device).unflatten(0, (count, -1))
    return [[None if each is None else index_tokens(each, rows_B) for each in (image, text)] for rows_B in rows_CB.unbind()]
