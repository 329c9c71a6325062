"""M3AE's forward pass for one sample, by the names of its code.

Letters: T text tokens, P image tokens, N tokens of either, M those that are attended to, D width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.m3ae_checkpoints import TINY
from helpers.slow_layers import SlowLayers

D = TINY.D
NUM_HEADS = 2


class SlowM3ae(SlowLayers):
    """A tiny M3AE that computes with the tensors of a checkpoint."""

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a part, by their names in it."""
        tensors = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = tensor
        return tensors

    def attention(
        self,
        x_ND: Tensor,
        keys_MD: Tensor,
        name: str,
    ) -> Tensor:
        """BERT's, whose queries, keys and values all have biases."""

        def in_heads(x: Tensor, part: str) -> Tensor:
            return self.linear(x, f"{name}.self.{part}").unflatten(1, (NUM_HEADS, -1)).movedim(1, 0)

        q = in_heads(x_ND, "query")
        k = in_heads(keys_MD, "key")
        v = in_heads(keys_MD, "value")
        weights = (q @ k.transpose(1, 2) / math.sqrt(D // NUM_HEADS)).softmax(2)
        return self.linear((weights @ v).movedim(0, 1).flatten(1), f"{name}.output.dense")

    def bert_layer(
        self,
        x_ND: Tensor,
        layer: str,
        eps: float,
        other_MD: Tensor | None = None,
    ) -> Tensor:
        attended = self.attention(x_ND, x_ND, f"{layer}.attention")
        x_ND = self.norm(x_ND + attended, f"{layer}.attention.output.LayerNorm", eps)
        if other_MD is not None:
            attended = self.attention(x_ND, other_MD, f"{layer}.crossattention")
            x_ND = self.norm(x_ND + attended, f"{layer}.crossattention.output.LayerNorm", eps)
        hidden = F.gelu(self.linear(x_ND, f"{layer}.intermediate.dense"))
        branch = self.linear(hidden, f"{layer}.output.dense")
        return self.norm(x_ND + branch, f"{layer}.output.LayerNorm", eps)

    def text(self, ids_T: Tensor) -> Tensor:
        embeddings = "language_encoder.embeddings"
        x_TD = self.tensors[f"{embeddings}.word_embeddings.weight"][ids_T]
        x_TD = x_TD + self.tensors[f"{embeddings}.token_type_embeddings.weight"][0]
        positions = self.tensors[f"{embeddings}.position_embeddings.weight"]
        x_TD = x_TD + positions[2 : 2 + len(ids_T)]
        x_TD = self.norm(x_TD, f"{embeddings}.LayerNorm", 1e-5)
        for number in range(TINY.text_depth):
            x_TD = self.bert_layer(x_TD, f"language_encoder.encoder.layer.{number}", 1e-5)
        return x_TD

    def image(self, pixels_CHW: Tensor) -> Tensor:
        """Encode an image of pixels in [0, 1]."""
        visual = "vision_encoder.visual"
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        pixels = (pixels_CHW - mean[:, None, None]) / std[:, None, None]
        weight = self.tensors[f"{visual}.conv1.weight"]
        grid = F.conv2d(pixels[None], weight, stride=TINY.patch)[0]
        cls = self.tensors[f"{visual}.class_embedding"]
        x_PD = torch.cat([cls[None], grid.flatten(1).T])
        x_PD = x_PD + self.tensors[f"{visual}.positional_embedding"]
        x_PD = self.norm(x_PD, f"{visual}.ln_pre", 1e-5)
        for number in range(TINY.image_depth):
            x_PD = self.clip_block(x_PD, f"{visual}.transformer.resblocks.{number}")
        return self.norm(x_PD, f"{visual}.ln_post", 1e-5)

    def clip_block(self, x_PD: Tensor, block: str) -> Tensor:
        attention = nn.MultiheadAttention(D, NUM_HEADS)
        attention.load_state_dict(self.below(f"{block}.attn."))
        normed = self.norm(x_PD, f"{block}.ln_1", 1e-5)
        x_PD = x_PD + attention(normed, normed, normed)[0]
        hidden = self.linear(self.norm(x_PD, f"{block}.ln_2", 1e-5), f"{block}.mlp.c_fc")
        return x_PD + self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")

    def pair(self, ids_T: Tensor, pixels_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return states of the text and of the image.

        Each side sees the other as it was before the layer.
        """
        text_type, image_type = self.tensors["modality_type_embeddings.weight"]
        x_TD = self.linear(self.text(ids_T), "multi_modal_language_proj") + text_type
        y_PD = self.linear(self.image(pixels_CHW), "multi_modal_vision_proj") + image_type
        for number in range(TINY.fusion_depth):
            new_x_TD = self.bert_layer(x_TD, f"multi_modal_language_layers.{number}", 1e-12, y_PD)
            y_PD = self.bert_layer(y_PD, f"multi_modal_vision_layers.{number}", 1e-12, x_TD)
            x_TD = new_x_TD
        return x_TD, y_PD

    def pooled(self, ids_T: Tensor, pixels_CHW: Tensor) -> Tensor:
        x_TD, y_PD = self.pair(ids_T, pixels_CHW)
        text_D = self.linear(x_TD[0], "multi_modal_language_pooler.dense")
        image_D = self.linear(y_PD[0], "multi_modal_vision_pooler.dense")
        return torch.cat([text_D, image_D]).tanh()
