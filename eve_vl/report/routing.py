"""Which experts serve which modality.

Letters: E experts; in chosen_ME and shares_ME, M = 2 modalities (image, text).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from eve_vl.config import Config
from eve_vl.model.moe import RouterStats
from eve_vl.report.charts import bar_chart
from eve_vl.report.curves import routing_curves
from eve_vl.report.markup import missing, percent, section


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the routers of a run chose on validation data."""

    shares_ME: tuple[Tensor, ...]
    """Per `moe` block, for each modality, the share of its tokens' choices that each expert gets; rows sum to 1."""
    num_rows: int

    @classmethod
    def of(cls, chosen: Sequence[Tensor], num_rows: int) -> Self:
        """Return the shares of choices (2, E) per block."""
        shares_ME = tuple(chosen_ME / chosen_ME.sum(1, keepdim=True).clamp(min=1) for chosen_ME in chosen)
        return cls(shares_ME=shares_ME, num_rows=num_rows)


def add_choices(chosen: list[Tensor], passes: Sequence[Sequence[RouterStats]]) -> None:
    """Add to `chosen`, per `moe` block (2, E), the choices of some passes through the encoder; it may be empty at first."""
    for each in passes:
        for block, stats in enumerate(each):
            choices_ME = stats.chosen_ME.cpu()
            if block == len(chosen):
                chosen.append(choices_ME)
            else:
                chosen[block] = chosen[block] + choices_ME


def routing_charts(routing: Routing, config: Config) -> str:
    """Return one chart per block: the experts by modality."""
    model = config.model
    blocks = [index for index, policy in enumerate(model.ffn_policies, start=1) if policy == "moe"]
    charts = "".join(
        bar_chart(
            f"Experts by modality, block {block} of {model.depth}",
            [str(expert) for expert in range(model.num_experts)],
            [("image tokens", shares_ME[0].tolist()), ("text tokens", shares_ME[1].tolist())],
            level=("even load, 1/E", 1 / model.num_experts),
            show=percent,
            axis="expert",
        )
        for block, shares_ME in zip(blocks, routing.shares_ME, strict=True)
    )
    return f'<div class="charts">{charts}</div>'


def routing_section(routing: Routing, log: Sequence[dict], config: Config, step: int, rows: str) -> str:
    """Return which experts serve which modality, now and over the run. rows: what was looked at."""
    if not routing.shares_ME:
        return section(
            "routing", "Routing", "", missing("This run has no <code>moe</code> block, so nothing is routed by choice.")
        )
    model = config.model
    intro = (
        f"Each token goes to its {model.top_k} best of {model.num_experts} experts. Bars: how the choices of all image tokens, "
        f"and of all text tokens, of {routing.num_rows} {rows}; each modality sums to 100 %. "
        "Experts that serve one modality alone show up as single bars."
    )
    curves = f'<div class="charts">{routing_curves(log, config, step)}</div>'
    return section("routing", "Routing", intro, routing_charts(routing, config) + curves)
