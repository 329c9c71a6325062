"""The section of a page on which experts serve which modality.

Letters: E experts; M = 2 modalities (image, text).
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.model.router import chosen_ME
from eve_vl.model.submodules import replace_submodules
from eve_vl.pages.charts import Bars, Level, Series, bar_chart
from eve_vl.pages.curves import Curves
from eve_vl.pages.number_formats import percent
from eve_vl.pages.rendering import Section, draw
from eve_vl.tasks.report import NUM_SEEN, TaskReport
from eve_vl.tasks.task import Task


@dataclass(frozen=True)
class Routing:
    """Choices of the routers on some rows."""

    shares_ME: dict[int, Tensor]
    """Block number, from 1 → share of each modality's choices that each expert gets."""
    num_rows: int


@torch.inference_mode()
def routing_of(task: Task[Any], batches: Iterable[Any]) -> Routing:
    """Return the routers' choices on some rows. Tokens that no head reads count too."""
    encoder = copy.copy(task.encoder)
    encoder.computes_all = True
    twin = replace_submodules(task, {"encoder": encoder})
    count_ME: dict[int, Tensor] = {}  # by the index of the router
    num_rows = 0
    for batch in batches:
        num_rows += len(batch.where)
        for statistics in twin.routers(batch):
            for index, stats in enumerate(statistics):
                chosen = chosen_ME(stats).cpu()
                count_ME[index] = count_ME[index] + chosen if index in count_ME else chosen

    shares_ME = {}
    blocks = blocks_with_router(task, len(count_ME))
    for index, counts in count_ME.items():
        shares_ME[blocks[index]] = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return Routing(shares_ME, num_rows)


def blocks_with_router(task: Task[Any], num_routers: int) -> list[int]:
    """Return the numbers, from 1, of the blocks with a router."""
    policies = getattr(task.config.model, "ffn_policies", None)
    if policies is None:  # a model of the user's own: number all routers
        return list(range(1, num_routers + 1))
    return [number for number, policy in enumerate(policies, start=1) if policy == "moe"]


def routing_sections(report: TaskReport, curves: Curves) -> list[Section]:
    """Return the section on which experts serve which modality, if there are experts."""
    try:
        routing = routing_of(report.task, report.batches(report.dataset(NUM_SEEN)))
    except NotImplementedError:  # `routers` is optional for a task of the user's own
        return []
    if not routing.shares_ME:
        return []
    num_experts = next(iter(routing.shares_ME.values())).shape[1]
    body = draw(
        "routing.html",
        "routing",
        report=report,
        num_experts=num_experts,
        num_rows=routing.num_rows,
        expert_charts=expert_charts(routing),
        curve_charts=router_curves(curves, list(routing.shares_ME), num_experts),
    )
    return [Section("routing", "Routing", body)]


def expert_charts(routing: Routing) -> list[Markup]:
    """Return a chart per block: the share of each modality's tokens that each expert gets."""
    charts = []
    for block, shares_ME in routing.shares_ME.items():
        num_experts = shares_ME.shape[1]
        image_shares, text_shares = shares_ME.tolist()
        chart = bar_chart(
            f"Experts by modality, block {block}",
            [str(expert) for expert in range(num_experts)],
            [Bars("image tokens", image_shares), Bars("text tokens", text_shares)],
            level=Level("even load, 1/E", 1 / num_experts),
            show=percent,
            axis="expert",
        )
        charts.append(chart)
    return charts


def router_curves(curves: Curves, blocks: list[int], num_experts: int) -> list[Markup]:
    """Return the charts of load and entropy over the steps of the training."""
    loads: list[Series] = []
    entropies: list[Series] = []
    for index, block in enumerate(blocks):
        loads.append(curves.train(f"max_load/{index}", f"block {block}"))
        entropies.append(curves.train(f"entropy/{index}", f"block {block}"))
    loads.append(curves.constant("even load, 1/E", 1 / num_experts))
    entropies.append(curves.constant("uniform gate, ln E", math.log(num_experts)))
    return [
        curves.chart(
            "Load of the busiest expert", loads, "Share of tokens whose first choice it is."
        ),
        curves.chart(
            "Entropy of the gate", entropies, "In nats; a low value means a confident router."
        ),
    ]
