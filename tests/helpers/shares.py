"""Checkpoints put together by plain loops, whatever the number of processes that wrote them."""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """Weights and optimiser state of a checkpoint, by name of their file and their own."""
    found: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in folder.glob("*.safetensors"):
        if not path.stem.startswith("rng"):
            with safe_open(path, "pt") as file:
                places = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
            for name, tensor in load_file(path).items():
                place = places[name]["saved_offsets"] if places else [0] * tensor.ndim
                found.setdefault(f"{re.sub(r'_[0-9]+$', '', path.stem)}.{name}", []).append(
                    (place, tensor)
                )
    whole = {}
    for name, shares in found.items():
        shape = [
            max(ends)
            for ends in zip(
                *([i + n for i, n in zip(at, x.shape, strict=True)] for at, x in shares),
                strict=True,
            )
        ]
        whole[name] = torch.full(shape, torch.nan).to(shares[0][1].dtype)
        for place, tensor in shares:
            whole[name][
                tuple(slice(i, i + n) for i, n in zip(place, tensor.shape, strict=True))
            ] = tensor
    return whole
