"""Groups of parameters that the optimiser treats alike."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from eve_vl.config import TrainConfig
from eve_vl.train.learning_rate import lr_scales

BLOCK_ROWS = 64
"""Rows that block_muon makes orthogonal together: a third of the time of whole matrices in `demo`
(LOG.md, 2026-11-30)."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies.

    It does not to 1-D parameters, nor to stacked biases of experts.
    """
    return parameter.ndim > 1 and not name.endswith("bias")


def muon_parts(name: str, parameter: nn.Parameter, optimizer: str) -> int:
    """Return the number of parts of each matrix that train.optimizer makes orthogonal.

    0 leaves the parameter to AdamW. In the Transformer's blocks, query, key and value are parts,
    and any other matrix is one. With block_muon, a part has BLOCK_ROWS rows if these divide the
    rows of the matrix.
    """
    is_block_matrix = ".blocks." in f".{name}" and is_decayed(name, parameter)
    if optimizer == "adamw" or not is_block_matrix or "router" in name:
        return 0
    num_rows = parameter.shape[-2]
    if optimizer == "block_muon" and num_rows % BLOCK_ROWS == 0:
        return num_rows // BLOCK_ROWS
    return 3 if name.endswith("qkv.weight") else 1


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig, new: Collection[str]
) -> list[dict[str, Any]]:
    """Return the parameters that train, as groups for an optimiser of torch.

    Groups differ by weight decay, by `lr_scale` (see `lr_scales`) and by `parts` (see
    `muon_parts`).
    """
    scales = lr_scales(parameters, config, new)
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        decay = config.weight_decay if is_decayed(name, parameter) else 0.0
        scale = scales[name]
        parts = muon_parts(name, parameter, config.optimizer)
        key = (decay, scale, parts)
        if key not in groups:
            groups[key] = {"params": [], "weight_decay": decay, "lr_scale": scale, "parts": parts}
        groups[key]["params"].append(parameter)
    return list(groups.values())
