"""The mixture of experts in operations that ONNX has, for `eve_vl.export`; training never meets it.

Letters: B batch, N tokens, A = B·N, S real tokens of the batch, D width, E experts, K chosen experts, R rows of one expert.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.exchange import Module, exchanged
from eve_vl.model.layers import FeedForward
from eve_vl.model.moe import Experts, MoE
from eve_vl.model.moe_official import OfficialMoE


class TraceableMoE(nn.Module):
    """The twin of a mixture of experts without drops, in operations that ONNX has: each expert looks for its own rows.

    Only chosen experts compute, as in `MoE`. Shares the weights.
    """

    def __init__(self, moe: MoE):
        super().__init__()
        self.router = moe.router
        self.experts_see_modality = isinstance(moe, OfficialMoE)
        self.feed_forwards = nn.ModuleList(_feed_forward(moe.experts, e) for e in range(len(moe.experts.fc1_weight)))

    def forward(self, x_BND: Tensor, is_text_BN: Tensor, real_S: Tensor | None) -> tuple[Tensor, None]:
        """Return (B, N, D), zero at padding, and no statistics."""
        x_AD, is_text_S = x_BND.flatten(0, 1), is_text_BN.flatten()
        x_SD = x_AD
        if real_S is not None:
            x_SD, is_text_S = x_SD.index_select(0, real_S), is_text_S.index_select(0, real_S)
        seen_SD = x_SD
        if self.router.modality_embed is not None:
            seen_SD = x_SD + self.router.modality_embed[is_text_S.long()]
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
        if real_S is not None:
            y_SD = torch.zeros_like(x_AD).index_copy(0, real_S, y_SD)
        return y_SD.view(x_BND.shape), None


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
