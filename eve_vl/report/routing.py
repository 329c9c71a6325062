"""Which experts serve which modality, now and over the run.

Letters: E experts; in chosen_ME and shares_ME, M = 2 modalities (image, text).
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.model.probes import replace_submodules
from eve_vl.report.charts import bar_chart
from eve_vl.report.curves import Curves
from eve_vl.report.templating import Section, draw, percent
from eve_vl.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Routing:
    """What the routers of a run choose on some rows."""

    shares_ME: Mapping[int, Tensor]
    """By `moe` block, from 1, for each modality the share of its tokens' choices that each expert gets; rows sum to 1."""
    num_rows: int


@torch.inference_mode()
def routing_of(task: Task[Any], batches: Iterable[Any]) -> Routing:
    """Return what the routers do with all tokens of some batches, those of the last block that no head reads among them."""
    encoder = copy.copy(task.encoder)
    encoder.computes_all = True
    twin = replace_submodules(task, {"encoder": encoder})
    chosen: list[Tensor] = []
    num_rows = 0
    for batch in batches:
        num_rows += len(batch.where)
        for blocks in twin.routers(batch):
            chosen_ME = [stats.chosen_ME.cpu() for stats in blocks]
            chosen = [sum_ME + more_ME for sum_ME, more_ME in zip(chosen, chosen_ME, strict=True)] if chosen else chosen_ME
    policies = getattr(task.config.model, "ffn_policies", ("moe",) * len(chosen))  # else these alone are counted
    blocks = [number for number, policy in enumerate(policies, start=1) if policy == "moe"]
    shares = [chosen_ME / chosen_ME.sum(1, keepdim=True).clamp(min=1) for chosen_ME in chosen]
    return Routing(shares_ME=dict(zip(blocks, shares, strict=False)), num_rows=num_rows)  # none of no rows


def routing_charts(routing: Routing) -> list[Markup]:
    """Return one chart per block: the experts by modality."""
    charts = []
    for block, shares_ME in routing.shares_ME.items():
        E = shares_ME.shape[1]
        bars = [(f"{name} tokens", shares_E.tolist()) for name, shares_E in zip(("image", "text"), shares_ME, strict=True)]
        title, experts = f"Experts by modality, block {block}", [str(expert) for expert in range(E)]
        charts.append(bar_chart(title, experts, bars, level=("even load, 1/E", 1 / E), show=percent, axis="expert"))
    return charts


def routing_section(routing: Routing, curves: Curves, row: str, passes: str) -> Section:
    """Return which experts serve which modality. row: what people call what was looked at. passes: words on how."""
    E = max((shares_ME.shape[1] for shares_ME in routing.shares_ME.values()), default=1)
    values = {"row": row, "passes": passes, "curves": curves, "E": E, "ln_E": math.log(E)}
    body = draw("routing.html", "routing", routing=routing, charts=routing_charts(routing), **values)
    return Section(name="routing", title="Routing", body=body)
