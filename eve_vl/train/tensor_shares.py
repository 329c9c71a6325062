"""The share of a tensor that each process writes to a checkpoint, and reading tensors back from
shares.

Each process writes its share of the optimiser state, and of the live weights of a run with
averages: its shards, or an equal part of each whole tensor. These files have the safetensors format
of torch.distributed.checkpoint.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eve_vl.train import processes
from eve_vl.train.tensor_files import read_metadata, read_tensors
from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError

OFFSETS_KEY = "DCP_SHARDING_INFO"  # in the header of a file: a JSON object by name, with
OFFSET_KEY = "saved_offsets"  # the first index of a part on each axis of the whole


@dataclass
class TensorPart:
    """A rectangular part of a tensor."""

    values: Tensor
    offset: list[int]
    """Its first index on each axis of the whole."""


def part_of_process(tensor: Any) -> TensorPart:
    """Return the part of a tensor that this process holds, which shares memory."""
    if hasattr(tensor, "to_local"):
        return TensorPart(tensor.to_local(), [*tensor.__create_chunk_list__()[0].offsets])
    return TensorPart(tensor, [0] * tensor.ndim)


def share_to_write(tensor: Any) -> TensorPart:
    """Return the share of a tensor that this process writes, where several processes hold the same
    part."""
    part = part_of_process(tensor)
    copy, num_copies = _copy_number(tensor)
    if part.values.ndim == 0:
        values = part.values if copy == 0 else part.values.new_empty(0)
        return TensorPart(values, part.offset)
    length = len(part.values)
    start = length * copy // num_copies
    end = length * (copy + 1) // num_copies
    return TensorPart(part.values[start:end], [part.offset[0] + start, *part.offset[1:]])


def _copy_number(tensor: Any) -> tuple[int, int]:
    """Return which of the equal copies of a part this process holds, and their number."""
    if not hasattr(tensor, "to_local"):
        return processes.rank(), processes.world_size()
    mesh = tensor.device_mesh
    copy = 0
    num_copies = 1
    for index, size, placement in zip(
        mesh.get_coordinate(), mesh.shape, tensor.placements, strict=True
    ):
        if placement.is_replicate():
            copy = copy * size + index
            num_copies *= size
    return copy, num_copies


def shares_metadata(shares: Mapping[str, TensorPart]) -> dict[str, str]:
    """Return the texts for the header of a file of shares."""
    offsets = {name: {OFFSET_KEY: share.offset} for name, share in shares.items()}
    return {OFFSETS_KEY: json.dumps(offsets)}


def read_offsets(path: Path) -> dict[str, list[int]]:
    """Return the offset of each share in a file.

    Empty for a file of whole tensors. Raises UserError.
    """
    text = read_metadata(path).get(OFFSETS_KEY, "{}")
    with file_io.reading(path, KeyError, TypeError):
        entries = file_io.require_type(file_io.parse_json(text), dict)
        return {name: [*map(int, entry[OFFSET_KEY])] for name, entry in entries.items()}


def read_shares(tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    """Fill whole or sharded tensors from a file of whole ones or files of shares.

    Raises UserError, also if the files do not hold all of a tensor.
    """
    parts = {key: part_of_process(tensor) for key, tensor in tensors.items()}
    num_missing = {key: part.values.numel() for key, part in parts.items()}
    paths = sorted(folder.glob(f"{name}_*.safetensors")) or [folder / f"{name}.safetensors"]
    for path in paths:
        saved = read_tensors(path)
        offsets = read_offsets(path)
        for key in saved.keys() & parts.keys():
            values = saved[key]
            share = TensorPart(values, offsets.get(key) or [0] * values.ndim)
            num_missing[key] -= _copy_overlap(share, parts[key])
    incomplete = [key for key, num in num_missing.items() if num]
    if incomplete:
        raise UserError(f"{name}.safetensors: does not hold all of {incomplete[0]}")


def _copy_overlap(source: TensorPart, target: TensorPart) -> int:
    """Copy the values that two parts of a tensor share; return their number."""
    num_axes = source.values.ndim
    if len(target.offset) != num_axes or len(source.offset) != num_axes:
        return 0
    overlap = []  # indices of the whole
    for source_start, source_size, target_start, target_size in zip(
        source.offset, source.values.shape, target.offset, target.values.shape, strict=True
    ):
        start = max(source_start, target_start)
        end = min(source_start + source_size, target_start + target_size)
        overlap.append(range(start, end))
    if not all(overlap):
        return 0
    values = source.values[_inside(overlap, source)]
    target.values[_inside(overlap, target)] = values
    return math.prod(values.shape)


def _inside(overlap: Sequence[range], part: TensorPart) -> tuple[slice, ...]:
    """Return where indices of the whole lie in a part."""
    return tuple(
        slice(indices.start - offset, indices.stop - offset)
        for indices, offset in zip(overlap, part.offset, strict=True)
    )
