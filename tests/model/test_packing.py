"""The layout of packed rows against a loop over tokens.

Letters: B batch, N all tokens, S rows, H heads, d width of a head, D width.
"""

import pytest
import torch
from torch import Tensor

from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens

B = 3
N = 5
H = 2
D = 8
# image tokens among N
IMAGE = N
TEXT = 0
PAIR = 2


def layout(num_image: int, lengths: list[int] | None = None) -> tuple[Tensor, PackedTokens]:
    """Return tokens (B, N, D) with different values and their layout; lengths of the texts."""
    x_BND = torch.arange(B * N * D, dtype=torch.float32).view(B, N, D)
    is_padding_BN = None
    if lengths is not None:
        is_padding_BN = torch.arange(N) >= torch.tensor(lengths)[:, None]
    tokens = Tokens(x_BND=x_BND, num_image=num_image, is_padding_BN=is_padding_BN)
    return x_BND, PackedTokens.of(tokens, H)


@pytest.mark.parametrize(
    "lengths",
    [None, [5, 3, 4]],
    ids=["whole", "padded"],
)
@pytest.mark.parametrize(
    "num_image",
    [IMAGE, TEXT, PAIR],
    ids=["image", "text", "pair"],
)
def test_heads_are_split_and_joined_as_in_a_loop_over_tokens(num_image, lengths, monkeypatch):
    monkeypatch.setattr("eve_vl.model.packing.TILE", 1)
    if num_image == IMAGE:
        lengths = None  # images have no padding
    x_BND, rows = layout(num_image, lengths)
    x_SD = rows.pack(x_BND)
    qkv_SX = torch.cat([x_SD, x_SD + 1000, x_SD + 2000], dim=1)
    split = rows.split_heads(qkv_SX)
    for b in range(B):
        for n in range(N if lengths is None else lengths[b]):
            for kind in range(3):
                expected_Hd = x_BND[b, n].view(H, D // H) + 1000 * kind
                assert torch.equal(split[kind, b, :, n], expected_Hd)
    assert torch.equal(rows.join_heads(split[0]), x_SD)
