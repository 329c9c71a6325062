"""Twins of mixtures of experts in operations that ONNX has.

Letters: S rows of a batch, D width, E experts, K experts of a row, R rows of an expert, F hidden
width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.reference_moe import ReferenceMoE
from eve_vl.model.submodules import Module, replace_submodules


class TraceableMoE(nn.Module):
    """Twin of a mixture of experts without drops.

    It shares the weights. Each expert selects its own rows, so that only chosen experts compute, as
    in `MoE`.
    """

    def __init__(self, moe: MoE):
        super().__init__()
        self.router = moe.router
        self.activation = moe.experts.activation
        self.experts_see_modality = isinstance(moe, ReferenceMoE)
        stacks = (
            moe.experts.fc1_weight,
            moe.experts.fc1_bias,
            moe.experts.fc2_weight,
            moe.experts.fc2_bias,
        )
        # a list for each expert, so that a file holds them separately
        weights_of_experts = zip(*(stack.detach() for stack in stacks), strict=True)
        self.experts: Any = nn.ModuleList(map(nn.ParameterList, weights_of_experts))

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, None]:
        """Return what the experts make of rows (S, D), and no statistics."""
        assert read is None, "in evaluation, rows that are read are chosen before"
        routed_SD = x_SD
        if self.router.modality_embed is not None:
            routed_SD = x_SD + self.router.modality_embed.index_select(0, rows.is_text_S)
        gates_SE = F.linear(routed_SD, self.router.weight).softmax(-1)
        top_gates_SK, experts_SK = gates_SE.topk(self.router.top_k)
        top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
        gates_SE = torch.zeros_like(gates_SE).scatter(1, experts_SK, top_gates_SK)
        if self.experts_see_modality:
            x_SD = routed_SD

        y_SD = torch.zeros_like(x_SD)
        for gate_S, expert in zip(gates_SE.unbind(1), self.experts, strict=True):
            weight, bias, out_weight, out_bias = expert
            row_R = gate_S.nonzero().squeeze(1)
            hidden_RF = self.activation(F.linear(x_SD.index_select(0, row_R), weight, bias))
            out_RD = F.linear(hidden_RF, out_weight, out_bias)
            y_RD = gate_S.index_select(0, row_R)[:, None] * out_RD
            y_SD = y_SD.index_add(0, row_R, y_RD)
        return y_SD, None


def traceable(module: Module) -> Module:
    """Return a twin of a module with traceable mixtures of experts.

    It has the same weights.
    """
    twins = {
        name: TraceableMoE(part) for name, part in module.named_modules() if isinstance(part, MoE)
    }
    return replace_submodules(module, twins)
