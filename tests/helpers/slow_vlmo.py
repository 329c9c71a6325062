"""VLMo's forward pass for one sample, [text; image], by the names of its code.

Letters: T text tokens, P image tokens, N all tokens, D width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.slow_layers import SlowLayers
from helpers.vlmo import slow_row
from helpers.vlmo_checkpoints import TINY

D = TINY.D
HEAD_WIDTH = D // TINY.heads


class SlowVlmo(SlowLayers):
    """A tiny VLMo that computes with the tensors of a checkpoint."""

    def text(self, ids_T: Tensor) -> Tensor:
        x_TD = self.tensors["text_embeddings.word_embeddings.weight"][ids_T]
        x_TD = x_TD + self.tensors["text_embeddings.token_type_embeddings.weight"][0]
        if "transformer.pos_embed" in self.tensors:
            positions = self.tensors["text_embeddings.position_embeddings.weight"]
            x_TD = x_TD + positions[: len(ids_T)]
        x_TD = self.norm(x_TD, "text_embeddings.LayerNorm", 1e-12)
        return x_TD + self.tensors["token_type_embeddings.weight"][0]

    def image(self, pixels_CHW: Tensor, token_type: int = 1) -> Tensor:
        weight = self.tensors["transformer.patch_embed.proj.weight"]
        bias = self.tensors["transformer.patch_embed.proj.bias"]
        grid = F.conv2d(pixels_CHW[None], weight, bias, stride=TINY.patch)
        x_PD = torch.cat([self.tensors["transformer.cls_token"][0], grid[0].flatten(1).T])
        if "transformer.pos_embed" in self.tensors:
            x_PD = x_PD + self.tensors["transformer.pos_embed"][0]
        return x_PD + self.tensors["token_type_embeddings.weight"][token_type]

    def attention_biases(
        self,
        T: int,
        P: int,
        block: int,
    ) -> Tensor:
        """Return the biases of a block's heads: (heads, N, N)."""
        if "relative_position_bias_table" not in self.tensors:
            return torch.zeros(TINY.heads, T + P, T + P)
        tokens: list[tuple[Any, ...]] = []
        for number in range(T):
            tokens.append(("word", number) if number else ("cls", "text"))
        for number in range(P):
            tokens.append(("patch", number - 1) if number else ("cls", "image"))
        rows = [[slow_row(query, key, TINY.side, 196) for key in tokens] for query in tokens]
        biases = self.tensors["relative_position_bias_table"][torch.tensor(rows)]
        return biases.movedim(2, 0)[block * TINY.heads : (block + 1) * TINY.heads]

    def attention(
        self,
        x_ND: Tensor,
        name: str,
        biases: Tensor,
    ) -> Tensor:
        q_bias = self.tensors[f"{name}.q_bias"]
        v_bias = self.tensors[f"{name}.v_bias"]
        qkv = self.linear(x_ND, f"{name}.qkv") + torch.cat([q_bias, torch.zeros(D), v_bias])
        q_ND, k_ND, v_ND = qkv.split(D, dim=1)
        heads = []
        for head in range(TINY.heads):
            part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            scores = q_ND[:, part] @ k_ND[:, part].T / math.sqrt(HEAD_WIDTH) + biases[head]
            heads.append(scores.softmax(1) @ v_ND[:, part])
        return self.linear(torch.cat(heads, dim=1), f"{name}.proj")

    def network(
        self,
        x_ND: Tensor,
        block: str,
        kind: str,
    ) -> Tensor:
        normed = self.norm(x_ND, f"{block}.norm2_{kind}", 1e-6)
        return self.linear(
            F.gelu(self.linear(normed, f"{block}.mlp_{kind}.fc1")), f"{block}.mlp_{kind}.fc2"
        )

    def blocks(
        self,
        text_TD: Tensor,
        image_PD: Tensor,
        top_networks: tuple[str, str],
    ) -> Tensor:
        """top_networks: which the top block has for words and patches; below, each has its own."""
        T = len(text_TD)
        x_ND = torch.cat([text_TD, image_PD])
        for number in range(TINY.depth):
            block = f"transformer.blocks.{number}"
            normed = self.norm(x_ND, f"{block}.norm1", 1e-6)
            biases = self.attention_biases(T, len(image_PD), number)
            attended = self.attention(normed, f"{block}.attn", biases)
            x_ND = x_ND + self.tensors.get(f"{block}.gamma_1", 1.0) * attended
            text_network = "text"
            image_network = "imag"
            if number == TINY.depth - 1:
                text_network, image_network = top_networks
            of_words = self.network(x_ND[:T], block, text_network)
            of_patches = self.network(x_ND[T:], block, image_network)
            branch = torch.cat([of_words, of_patches])
            x_ND = x_ND + self.tensors.get(f"{block}.gamma_2", 1.0) * branch
        return self.norm(x_ND, "transformer.norm", 1e-6)

    def pair(
        self,
        ids_T: Tensor,
        pixels_CHW: Tensor,
        token_type: int = 1,
    ) -> Tensor:
        image = self.image(pixels_CHW, token_type)
        return self.blocks(self.text(ids_T), image, ("vl", "vl"))

    def pooled(
        self,
        ids_T: Tensor,
        pixels_CHW: Tensor,
        token_type: int = 1,
    ) -> Tensor:
        states = self.pair(ids_T, pixels_CHW, token_type)
        return self.linear(states[0], "pooler.dense").tanh()

    def text_alone(self, ids_T: Tensor, network: str = "text") -> Tensor:
        return self.blocks(
            self.text(ids_T),
            torch.zeros(0, D),
            (network, "imag"),
        )

    def image_feature(self, pixels_CHW: Tensor, *, by_pairs: bool = False) -> Tensor:
        """Return the feature of an image without a text, by its networks or those of pairs."""
        networks = ("text", "vl" if by_pairs else "imag")
        states = self.blocks(torch.zeros(0, D), self.image(pixels_CHW), networks)
        name = "itc_vl_image_proj.fc" if by_pairs else "itc_image_proj.fc"
        return F.normalize(self.linear(states[0], name), dim=0)

    def text_feature(self, ids_T: Tensor, *, by_pairs: bool = False) -> Tensor:
        states = self.text_alone(ids_T, "vl" if by_pairs else "text")
        name = "itc_vl_text_proj.fc" if by_pairs else "itc_text_proj.fc"
        return F.normalize(self.linear(states[0], name), dim=0)
