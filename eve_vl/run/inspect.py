"""Shapes, parameters and arithmetic of a run, without building its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import nn

from eve_vl.config import Config, to_dict
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.moe import MoE
from eve_vl.run.loading import build_untrained, read_config, read_labels
from eve_vl.tasks.task import Sizes
from eve_vl.train.checkpoint import chosen_checkpoint

NUM_LABELS = 3129  # VQA v2's usual answer list


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Counts of one run."""

    config: Config
    parameters: dict[str, int]
    """By part of the task."""
    active_parameters: int
    """Parameters that one pair uses: of the experts of a block only the K chosen per token."""
    flops: dict[str, float]
    """Per sample with texts of full length, forward, by part of the step; a multiply-add counts as two."""

    @property
    def flops_per_step(self) -> float:
        """Forward and backward FLOPs per pair; backward costs twice the forward."""
        return 3 * sum(self.flops.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "parameters": self.parameters | {"total": sum(self.parameters.values()), "active": self.active_parameters},
            "flops_per_pair_forward": self.flops,
            "flops_per_pair_step": self.flops_per_step,
            "config": to_dict(self.config),
        }

    def render(self, console: Console) -> None:
        """Print tables."""
        sizes = self.config.input
        console.print(
            f"[bold]{escape(self.config.recipe)}[/bold]: {self.config.model}; {sizes.image_size}² pixels in "
            f"{sizes.num_patches} patches, {sizes.text_length} text tokens",
            highlight=False,
        )
        table = Table("part", *(Column(name, justify="right") for name in ("parameters", "GFLOP per pair, forward")))
        for name in dict.fromkeys([*self.parameters, *self.flops]):
            number = f"{self.parameters[name]:,}" if name in self.parameters else ""
            table.add_row(name, number, f"{self.flops[name] / 1e9:.3f}" if name in self.flops else "")
        table.add_section()
        table.add_row("total", f"{sum(self.parameters.values()):,}", f"{sum(self.flops.values()) / 1e9:.3f}")
        table.add_row(
            "active per token / forward + backward", f"{self.active_parameters:,}", f"{self.flops_per_step / 1e9:.3f}"
        )
        console.print(table)


def inspect_run(path: Path) -> Inspection:
    """Count a run folder, with its tokenizer's vocabulary. Raises UserError."""
    folder = chosen_checkpoint(path)
    config = read_config(folder)
    return inspect_config(config, Tokenizer.load(folder / "tokenizer.json").vocab_size, read_labels(folder, config))


def inspect_config(config: Config, vocab_size: int | None = None, labels: Sequence[str] = ()) -> Inspection:
    """Count a config; without a tokenizer at hand the vocabulary is taken to be tokenizer.vocab_size, without a list of labels
    NUM_LABELS of them."""
    sizes = Sizes(vocab_size=vocab_size or config.tokenizer.vocab_size, labels=tuple(labels) or ("",) * NUM_LABELS)
    with torch.device("meta"):
        task = build_untrained(config, sizes)
    idle = sum(experts.num_idle_parameters for experts in task.modules() if isinstance(experts, MoE))
    encoder = task.encoder
    parts = {encoder.parts[name]: _count(part) for name, part in encoder.named_children() if name in encoder.parts}
    parts |= {"blocks": rest} if (rest := _count(encoder) - sum(parts.values())) else {}
    heads = {name.replace("_", " "): _count(head) for name, head in task.named_children() if head is not encoder}
    heads |= {name.replace("_", " "): own.numel() for name, own in task.named_parameters(recurse=False)}
    parts |= dict(sorted(heads.items()))
    assert sum(parts.values()) == _count(task)
    return Inspection(config=config, parameters=parts, active_parameters=_count(task) - idle, flops=task.flops())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
