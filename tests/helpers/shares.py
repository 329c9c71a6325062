"""Checkpoints put together by plain loops, whatever the number of processes that wrote them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Share:
    """A part of a tensor, with its first index on each axis."""

    offset: list[int]
    values: Tensor

    @property
    def place(self) -> tuple[slice, ...]:
        """Where it lies in the whole."""
        sizes = zip(self.offset, self.values.shape, strict=True)
        return tuple(slice(start, start + size) for start, size in sizes)


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """Return weights and optimiser state of a checkpoint, by name of their file and their own."""
    shares: dict[str, list[Share]] = {}
    for path in folder.glob("*.safetensors"):
        if path.stem.startswith("rng"):
            continue
        file_name = re.sub(r"_[0-9]+$", "", path.stem)
        offsets = read_offsets(path)
        for name, values in load_file(path).items():
            offset = offsets[name]["saved_offsets"] if offsets else [0] * values.ndim
            shares.setdefault(f"{file_name}.{name}", []).append(Share(offset, values))
    return {name: joined(tensor_shares) for name, tensor_shares in shares.items()}


def read_offsets(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata.get("DCP_SHARDING_INFO", "{}"))


def joined(shares: Sequence[Share]) -> Tensor:
    ends = [[side.stop for side in share.place] for share in shares]
    shape = [max(axis_ends) for axis_ends in zip(*ends, strict=True)]
    whole = torch.full(shape, torch.nan).to(shares[0].values.dtype)
    for share in shares:
        whole[share.place] = share.values
    return whole
