"""EVE's features of one image or one text, by the names of its published code, without drops.

Letters: T text tokens, P image tokens, N tokens of either, D width, E experts.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.slow_experts import slow_ffn
from helpers.slow_layers import SlowLayers

DEPTH = 4
NUM_HEADS = 4
NUM_EXPERTS = 4
EPS = 1e-6
LAYERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class SlowEve(SlowLayers):
    """A tiny EVE that computes with the tensors of a checkpoint."""

    def image_feature(self, pixels_CHW: Tensor) -> Tensor:
        """Return the feature of an image of pixels in [-1, 1]."""
        weight = self.tensors["backbone.patch_embed.weight"]
        bias = self.tensors["backbone.patch_embed.bias"]
        grid = F.conv2d(pixels_CHW[None], weight, bias, stride=weight.shape[2])[0]
        cls_D = self.tensors["backbone.class_embedding_vision"]
        x_PD = torch.cat([cls_D[None], grid.flatten(1).T])
        x_PD = x_PD + self.tensors["backbone.pos_embed_vision"]
        x_PD = x_PD + self.tensors["backbone.type_embed_vision"]
        return self.feature(x_PD, "imag", "vision")

    def text_feature(self, ids_T: Tensor) -> Tensor:
        x_TD = self.tensors["backbone.word_embedding.weight"][ids_T]
        x_TD = self.norm(x_TD, "backbone.layer_norm_text", EPS)
        x_TD = x_TD + self.tensors["backbone.pos_embed_text"][: len(ids_T)]
        x_TD = x_TD + self.tensors["backbone.type_embed_text"]
        return self.feature(x_TD, "text", "text")

    def feature(
        self,
        x_ND: Tensor,
        network: str,
        modality: str,
    ) -> Tensor:
        """Return the projected [CLS] state; the published code skips the final norm."""
        x_ND = self.norm(x_ND, "backbone.pre_layrnorm", EPS)
        for number in range(DEPTH):
            layer = f"backbone.encoder.layers.{number}"
            attended = self.attention(self.norm(x_ND, f"{layer}.norm1", EPS), f"{layer}.attn")
            x_ND = x_ND + self.tensors[f"{layer}.gamma_1"] * attended
            if f"{layer}.mlp_moe.moe.gate.wg.weight" in self.tensors:
                branch = self.experts(self.norm(x_ND, f"{layer}.norm2_vl", EPS), layer, modality)
            else:
                normed = self.norm(x_ND, f"{layer}.norm2_{network}", EPS)
                branch = torch.stack([self.ffn(x, f"{layer}.mlp_{network}") for x in normed])
            x_ND = x_ND + self.tensors[f"{layer}.gamma_2"] * branch
        return F.normalize(self.linear(x_ND[0], f"itc_{modality}_proj_head"), dim=0)

    def attention(self, x_ND: Tensor, name: str) -> Tensor:
        q_bias = self.tensors[f"{name}.q_bias"]
        v_bias = self.tensors[f"{name}.v_bias"]
        biases = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        qkv = self.linear(x_ND, f"{name}.qkv") + biases
        q, k, v = qkv.unflatten(1, (3, NUM_HEADS, -1)).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(2)
        return self.linear((weights @ v).movedim(0, 1).flatten(1), f"{name}.proj")

    def ffn(self, x_D: Tensor, name: str) -> Tensor:
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = (
            self.tensors[f"{name}.{layer}"] for layer in LAYERS
        )
        return slow_ffn(x_D, fc1_weight, fc1_bias, fc2_weight, fc2_bias)

    def experts(
        self,
        x_ND: Tensor,
        layer: str,
        modality: str,
    ) -> Tensor:
        """Return the mixture of the two experts that the router prefers."""
        moe = f"{layer}.mlp_moe.moe"
        routed = x_ND + self.tensors[f"{moe}.{modality}_embed"]
        gates_NE = self.linear(routed, f"{moe}.gate.wg").softmax(1)
        outputs = []
        for x_D, gates_E in zip(x_ND, gates_NE, strict=True):
            chosen = gates_E.argsort(descending=True)[:2].tolist()
            total = gates_E[chosen].sum()
            output = torch.zeros_like(x_D)
            for expert in chosen:
                expert_output = self.ffn(x_D, f"{moe}.experts.experts.{expert}")
                output = output + gates_E[expert] / total * expert_output
            outputs.append(output)
        return torch.stack(outputs)
