"""The section of a page on which experts serve which modality."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from eve_vl.model.router import chosen_ME
from eve_vl.model.submodules import replace_submodules
from eve_vl.pages.drawing import Curves, Section, bar_chart, draw, percent
from eve_vl.tasks.report import NUM_SEEN, TaskReport
from eve_vl.tasks.task import Task


@torch.inference_mode()
def routing_of(task: Task[Any], batches: Iterable[Any]) -> tuple[dict[int, Tensor], int]:
    """Return the routers' choices on some rows, and the number of rows.

    Choices: block number, from 1 → share of each modality's choices that each expert gets (M, E);
    rows sum to 1. Tokens that no head reads count too.
    """
    encoder = copy.copy(task.encoder)
    encoder.computes_all = True
    twin = replace_submodules(task, {"encoder": encoder})
    chosen: list[Tensor] = []
    num_rows = 0
    for batch in batches:
        num_rows += len(batch.where)
        for blocks in twin.routers(batch):
            more = [chosen_ME(stats).cpu() for stats in blocks]
            chosen = (
                [sum_ME + more_ME for sum_ME, more_ME in zip(chosen, more, strict=True)]
                if chosen
                else more
            )
    policies = getattr(
        task.config.model, "ffn_policies", ("moe",) * len(chosen)
    )  # without policies: count all routers
    blocks = [number for number, policy in enumerate(policies, start=1) if policy == "moe"]
    shares = [sum_ME / sum_ME.sum(1, keepdim=True).clamp(min=1) for sum_ME in chosen]
    return dict(zip(blocks, shares, strict=False)), num_rows  # no rows: empty


def own_sections(report: TaskReport, curves: Curves) -> list[Section]:
    """Return the sections of a run's examples and of its routing."""
    return [*report.evidence(report.num_each), *routing_sections(report, curves)]


def routing_sections(report: TaskReport, curves: Curves) -> list[Section]:
    """Return the section on which experts serve which modality, if there are experts."""
    try:
        blocks, num_rows = routing_of(report.task, report.batches(report.dataset(NUM_SEEN)))
    except NotImplementedError:  # `routers` is optional for a task of the user's own
        return []
    charts, E = [], 1
    for block, shares_ME in blocks.items():
        E = shares_ME.shape[1]
        bars = [
            (f"{name} tokens", shares_E.tolist())
            for name, shares_E in zip(("image", "text"), shares_ME, strict=True)
        ]
        even = {"level": ("even load, 1/E", 1 / E), "show": percent, "axis": "expert"}
        charts.append(
            bar_chart(f"Experts by modality, block {block}", list(map(str, range(E))), bars, **even)
        )
    values = {
        "report": report,
        "blocks": blocks,
        "num_rows": num_rows,
        "charts": charts,
        "curves": curves,
    }
    body = draw("routing.html", "routing", E=E, ln_E=math.log(E), **values)
    return [Section("routing", "Routing", body)] * bool(charts)
