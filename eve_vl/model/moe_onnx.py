"""The mixture of experts in operations that ONNX has, for `eve_vl.interop.onnx`; training never meets it.

Letters: S rows of a batch, D width, E experts, K chosen experts, R rows of one expert.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.layers import FeedForward
from eve_vl.model.moe import Experts, MoE
from eve_vl.model.moe_reference import OfficialMoE
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.submodules import Module, exchanged


class TraceableMoE(nn.Module):
    """The twin of a mixture of experts without drops, in operations that ONNX has: each expert looks for its own rows.

    Only chosen experts compute, as in `MoE`. Shares the weights.
    """

    def __init__(self, moe: MoE):
        super().__init__()
        self.router = moe.router
        self.experts_see_modality = isinstance(moe, OfficialMoE)
        self.feed_forwards = nn.ModuleList(_feed_forward(moe.experts, e) for e in range(len(moe.experts.fc1_weight)))

    def forward(self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None) -> tuple[Tensor, None]:
        """Return what the experts make of rows (S, D), and no statistics."""
        assert read is None, "in evaluation, rows that are read are chosen before"
        seen_SD = x_SD
        if self.router.modality_embed is not None:
            seen_SD = x_SD + self.router.modality_embed.index_select(0, rows.is_text_S)
        gates_SE = F.linear(seen_SD, self.router.weight).softmax(-1)
        top_gates_SK, experts_SK = gates_SE.topk(self.router.top_k)
        top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
        gates_SE = torch.zeros_like(gates_SE).scatter(1, experts_SK, top_gates_SK)
        if self.experts_see_modality:
            x_SD = seen_SD
        y_SD = torch.zeros_like(x_SD)
        for gate_S, feed_forward in zip(gates_SE.unbind(1), self.feed_forwards, strict=True):
            row_R = gate_S.nonzero().squeeze(1)
            y_RD = gate_S.index_select(0, row_R)[:, None] * feed_forward(x_SD.index_select(0, row_R))
            y_SD = y_SD.index_add(0, row_R, y_RD)
        return y_SD, None


def _feed_forward(experts: Experts, expert: int) -> FeedForward:
    """Return one expert as a network of its own, so that a file holds its weights apart and need not cut them out."""
    _, ffn_dim, embed_dim = experts.fc1_weight.shape
    with torch.device("meta"):
        feed_forward = FeedForward(embed_dim, ffn_dim)
    names = [f"{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    feed_forward.activation = experts.activation
    feed_forward.load_state_dict({name: getattr(experts, name.replace(".", "_"))[expert] for name in names}, assign=True)
    return feed_forward


def traceable(module: Module) -> Module:
    """Return a twin of a module, with the same weights, in which every mixture of experts is its traceable twin."""
    experts = {name: part for name, part in module.named_modules() if isinstance(part, MoE)}
    return exchanged(module, {name: TraceableMoE(moe) for name, moe in experts.items()})
