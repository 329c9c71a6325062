"""Compare our mixture of experts with a dense FFN of the same arithmetic.

    python benchmarks/moe.py [--json FILE] [--quick]

A step is forward and backward. A top-2 MoE on S tokens multiplies as much as one dense FFN on 2·S
tokens, so the ratio of their times is 1 if routing costs nothing. Ours is the whole module with its
router. Also measured: the one-hot einsum form of GShard, and bfloat16. One thread, processor time;
the variants take turns, so each round's ratio is taken under the same load.

Letters: S tokens, D width, F feed-forward width, E experts, C places per expert.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timing import Goal, interleaved, machine, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.feed_forward import FeedForward, quick_gelu
from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens
from eve_vl.utils.memory import keep_memory

TOP_K = 2
CAPACITY_FACTOR = 1.25


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of tokens, experts and type; `einsum` also times the one-hot form."""

    tokens: int
    experts: int
    dtype: torch.dtype = torch.float32
    einsum: bool = False


CASES = (
    Case(tokens=2048, experts=8),
    Case(tokens=2048, experts=32),
    Case(tokens=8192, experts=32, einsum=True),
    Case(tokens=2048, experts=32, dtype=torch.bfloat16),
    Case(tokens=8192, experts=32, dtype=torch.bfloat16),
)
QUICK = (
    Case(tokens=256, experts=4, einsum=True),
    Case(tokens=256, experts=4, dtype=torch.bfloat16),
)
GOALS = {
    ("ours / dense", 2048, 8, "float32"): Goal(limit=1.15),
    ("ours / dense", 2048, 32, "float32"): Goal(limit=1.30),
    ("ours / dense", 8192, 32, "float32"): Goal(limit=1.12),
    ("einsum / ours", 8192, 32, "float32"): Goal(limit=3.5, at_least=True),
}


def einsum_moe(moe: MoE, x_SD: Tensor, capacity: int) -> Tensor:
    """Apply GShard's MoE (arXiv 2006.16668, Algorithm 1) with the same weights.

    Dispatch and combine tensors are one-hot, (S, E, C). First choices take places before second
    ones; a token that finds its expert full is dropped.
    """
    experts = moe.experts
    gates_SE = F.linear(x_SD.float(), moe.router.weight).softmax(-1)
    top_SK, experts_SK = gates_SE.topk(moe.router.top_k)
    top_SK = top_SK / top_SK.sum(-1, keepdim=True)
    combine_SEC = torch.zeros((), dtype=torch.float32)
    taken_E = torch.zeros(gates_SE.shape[1])
    for choice in range(moe.router.top_k):
        chosen_SE = F.one_hot(experts_SK[:, choice], gates_SE.shape[1]).float()
        place_SE = chosen_SE.cumsum(0) - 1 + taken_E
        taken_E = taken_E + chosen_SE.sum(0)
        fits_SE = chosen_SE * (place_SE < capacity)
        place_S = (place_SE * fits_SE).sum(1).long()
        one_hot_SC = F.one_hot(place_S, capacity).float()
        combine_SEC = (
            combine_SEC + (top_SK[:, choice, None] * fits_SE)[:, :, None] * one_hot_SC[:, None, :]
        )
    dispatch_SEC = (combine_SEC > 0).to(x_SD.dtype)
    x_ECD = torch.einsum("sec,sd->ecd", dispatch_SEC, x_SD)
    h_ECF = torch.einsum("ecd,efd->ecf", x_ECD, experts.fc1_weight) + experts.fc1_bias[:, None]
    y_ECD = (
        torch.einsum("ecf,edf->ecd", quick_gelu(h_ECF), experts.fc2_weight)
        + experts.fc2_bias[:, None]
    )
    return torch.einsum("sec,ecd->sd", combine_SEC.to(y_ECD.dtype), y_ECD)


def measure(case: Case, dim: int, ffn_dim: int, repeats: int) -> dict[str, list[float]]:
    """Return processor seconds of forward and backward of every variant."""
    torch.manual_seed(0)
    S, E = case.tokens, case.experts
    moe, dense = MoE(dim, ffn_dim, E, TOP_K, True, "quick_gelu"), FeedForward(dim, ffn_dim)
    for parameter in [*moe.parameters(), *dense.parameters()]:
        nn.init.normal_(parameter, std=0.02)
    x_SD, twice = (
        torch.randn(S, dim, requires_grad=True),
        torch.randn(TOP_K * S, dim, requires_grad=True),
    )
    rows = PackedTokens.of(Tokens(x_BND=x_SD[None], num_image=S // 2), num_heads=1)
    capacity = round(CAPACITY_FACTOR * TOP_K * S / E)
    modules = nn.ModuleList([moe, dense])

    def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            modules.zero_grad(set_to_none=True)
            x_SD.grad = twice.grad = None
            with torch.autocast("cpu", case.dtype, enabled=case.dtype != torch.float32):
                output = forward()
            output.backward(torch.ones_like(output))

        return run

    variants = {"dense": step(lambda: dense(twice)), "ours": step(lambda: moe(x_SD, rows)[0])}
    if case.einsum:
        variants["einsum"] = step(lambda: einsum_moe(moe, x_SD, capacity))
    return interleaved(variants, repeats)


def main() -> None:
    """Measure, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: checks the script, measures nothing"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the warm-up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    dim, ffn_dim, cases = (64, 128, QUICK) if args.quick else (768, 3072, CASES)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(
        f"width {dim} → {ffn_dim}, top {TOP_K}; forward + backward; median (least–largest) of "
        f"{args.repeats} rounds"
    )
    print(f"{'tokens':>6} {'experts':>7} {'per expert':>10} {'type':>8}  {'ratio':13} {'':20} goal")
    rows = []
    for case in cases:
        seconds = measure(case, dim, ffn_dim, args.repeats)
        per_expert = TOP_K * case.tokens // case.experts
        dtype = str(case.dtype).removeprefix("torch.")
        for above, below in [("ours", "dense"), ("einsum", "dense"), ("einsum", "ours")]:
            if above not in seconds:
                continue
            name = f"{above} / {below}"
            median, low, high = ratio(seconds[above], seconds[below])
            goal = None if args.quick else GOALS.get((name, case.tokens, case.experts, dtype))
            verdict = goal.check(median) if goal else ""
            spread = f"{median:.2f} ({low:.2f}–{high:.2f})"
            print(
                f"{case.tokens:6} {case.experts:7} {per_expert:10} {dtype:>8}  {name:13} "
                f"{spread:20} {verdict}",
                flush=True,
            )
            rows.append(
                {
                    "tokens": case.tokens,
                    "experts": case.experts,
                    "tokens_per_expert": per_expert,
                    "dtype": dtype,
                    "ratio": name,
                    "median": median,
                    "min": low,
                    "max": high,
                    "goal": verdict,
                }
            )
        rows.append(
            {"tokens": case.tokens, "experts": case.experts, "dtype": dtype, "seconds": seconds}
        )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, "width": dim, "ffn": ffn_dim, "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
