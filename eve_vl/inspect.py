"""Shapes, parameters and arithmetic of a run, without building its weights.

Letters: N tokens, D width, F feed-forward width, E experts, K chosen experts, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from eve_vl.config import (
    Config,
    EveModelConfig,
    FFNPolicy,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    VQAConfig,
    to_dict,
)
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.moe import Experts
from eve_vl.run import build_untrained, load_answers, read_config
from eve_vl.train.checkpoint import chosen_checkpoint

NUM_ANSWERS = 3129  # VQA v2's usual list


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
        model = self.config.model
        console.print(
            f"[bold]{self.config.recipe}[/bold]: {model.depth} blocks, width {model.embed_dim}, {model.num_heads} heads, "
            f"feed-forward {model.ffn_dim}; {model.image_size}² pixels in {model.num_patches} patches, "
            f"{model.text_length} text tokens; {', '.join(model.ffn_policies)}",
            highlight=False,
        )
        table = Table("part", "parameters", "GFLOP per pair, forward")
        for name in dict.fromkeys([*self.parameters, *self.flops]):
            number = f"{self.parameters[name]:,}" if name in self.parameters else ""
            table.add_row(name, number, f"{self.flops[name] / 1e9:.3f}" if name in self.flops else "")
        table.add_section()
        table.add_row("total", f"{sum(self.parameters.values()):,}", f"{sum(self.flops.values()) / 1e9:.3f}")
        table.add_row(
            "active per token / forward + backward", f"{self.active_parameters:,}", f"{self.flops_per_step / 1e9:.3f}"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)


def inspect_run(path: Path) -> Inspection:
    """Count a run folder, with its tokenizer's vocabulary. Raises UserError."""
    folder = chosen_checkpoint(path)
    return inspect_config(read_config(folder), Tokenizer.load(folder / "tokenizer.json").vocab_size, load_answers(folder))


def inspect_config(config: Config, vocab_size: int | None = None, answers: Sequence[str] = ()) -> Inspection:
    """Count a config; without a tokenizer at hand the vocabulary is taken to be tokenizer.vocab_size, without an answer list
    NUM_ANSWERS answers."""
    vocab_size = vocab_size or config.tokenizer.vocab_size
    with torch.device("meta"):
        task = build_untrained(config, vocab_size, answers or [""] * NUM_ANSWERS)
    experts = [module for module in task.modules() if isinstance(module, Experts)]
    idle = sum(_count(module) for module in experts) * (1 - config.model.top_k / config.model.num_experts)
    encoder = task.encoder
    parts = {
        "image embedding": _count(encoder.image),
        "text embedding": _count(encoder.text),
        "blocks": _count(encoder.blocks) + _count(encoder.norm_pre) + _count(encoder.norm),
    }
    heads = {name.replace("_", " "): _count(head) for name, head in task.named_children() if head is not encoder}
    parts |= dict(sorted(heads.items()))
    assert sum(parts.values()) == _count(task)
    return Inspection(
        config=config,
        parameters=parts,
        active_parameters=_count(task) - round(idle),
        flops=step_flops(config, vocab_size),
    )


def step_flops(config: Config, vocab_size: int) -> dict[str, float]:
    """Return forward FLOPs of each part of a training step, per sample, matrix products only."""
    model, task = config.model, config.task
    P, T = model.num_patches, model.text_length
    image, text, fusion = (encoder_flops(model, *tokens) for tokens in ((P, 0), (-1, T), (P, T)))
    match task:
        case MaskedSignalConfig():
            flops = masked_flops(model, task, vocab_size)
        case RetrievalConfig():
            flops = {}
        case VQAConfig():
            return {"fusion pass": fusion}
        case NLVR2Config():
            return {"two fusion passes": 2 * fusion}
    if task.itc_weight:
        flops |= {"contrast, image alone": image, "contrast, text alone": text}
    if task.itm_weight:
        flops["matching, three fusion passes"] = 3 * fusion
    return flops


def masked_flops(model: EveModelConfig, task: MaskedSignalConfig, vocab_size: int) -> dict[str, float]:
    """Return forward FLOPs of each part of masked signal modelling."""
    P, T, D = model.num_patches, model.text_length, model.embed_dim
    num_hidden = min(max(round(P * task.image_mask_ratio), 1), P - 1)
    num_masked = max(1, round((T - 1) * task.text_mask_ratio))
    num_kept = P - num_hidden
    flops: dict[str, float] = {}
    if task.mim_weight:
        d = task.decoder_dim
        num_tokens = 1 + P + T
        flops["image pass"] = encoder_flops(model, num_kept, T)
        flops["pixel decoder"] = (
            2 * (1 + num_kept + T) * D * d
            + task.decoder_depth * block_flops(num_tokens, d, int(d * model.mlp_ratio), "shared", model)
            + 2 * num_hidden * d * model.patch_dim
        )
    if task.mlm_weight:
        if not task.joint_masking:
            flops["text pass"] = encoder_flops(model, P, T)
        flops["token head"] = 2 * num_masked * D * (D + vocab_size)
    return flops


def encoder_flops(model: EveModelConfig, num_patches: int, num_text: int) -> float:
    """Return forward FLOPs of the encoder on one pair, a picture (num_text 0) or a text (num_patches -1: no [CLS] either)."""
    num_tokens = 1 + num_patches + num_text
    blocks = (block_flops(num_tokens, model.embed_dim, model.ffn_dim, policy, model) for policy in model.ffn_policies)
    return 2 * max(num_patches, 0) * model.patch_dim * model.embed_dim + sum(blocks)


def block_flops(num_tokens: int, dim: int, ffn_dim: int, policy: FFNPolicy, model: EveModelConfig) -> float:
    """Return forward FLOPs of one block on one sequence."""
    attention = 2 * num_tokens * dim * (3 * dim + dim) + 2 * 2 * num_tokens**2 * dim
    ffn = 2 * 2 * num_tokens * dim * ffn_dim
    if policy == "moe":
        ffn = model.top_k * ffn + 2 * num_tokens * dim * model.num_experts
    return attention + ffn


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
