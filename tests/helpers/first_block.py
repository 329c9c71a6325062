"""The feed-forward tensors of a model's first block."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from eve_vl.config import EveModelConfig
from eve_vl.config.model import FFNPolicy
from eve_vl.model.block import Block
from helpers.tiny_config import tiny_config


def first_block(policy: FFNPolicy, **changes: Any) -> tuple[EveModelConfig, dict[str, Tensor]]:
    """Return a model section, and the feed-forward tensors of its first block by name in a run."""
    config = replace(tiny_config().model, num_experts=3, **changes)
    assert isinstance(config, EveModelConfig)
    state = Block(config, policy, sizes=tiny_config().input).state_dict()
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(("ffn.", "norm2.")):
            tensors[f"encoder.blocks.0.{name}"] = tensor
    return config, tensors
