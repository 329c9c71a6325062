"""Tables that say from which foreign tensors each of our tensors comes."""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eve_vl.train import tensor_files
from eve_vl.utils.errors import UserError

COMPUTE_ERRORS = (
    KeyError,
    StopIteration,
    ValueError,
    TypeError,
    IndexError,
    RuntimeError,
    ZeroDivisionError,
)
"""Errors of reading or computing with tensors of another kind of file."""


@dataclass(frozen=True)
class Computed:
    """A tensor that is computed from foreign ones; without sources a constant."""

    compute: Callable[..., Tensor]
    sources: tuple[str, ...]


WeightTable = Mapping[str, str | float | Computed]
"""Source of our tensors: a foreign name for the same numbers, a constant, or a computation.

A key names a tensor or all tensors below it; the rest of the name is the same in the sources. `*`
is a number, the same in the sources. The first key that fits counts.
"""


def unchanged(tensor: Tensor) -> Tensor:
    """Return the tensor: the same numbers."""
    return tensor


def concatenate(*parts: Tensor) -> Tensor:
    """Return tensors as one, along the first axis."""
    return torch.cat(parts)


def stack(*parts: Tensor) -> Tensor:
    """Return the stack of tensors that are separate there."""
    return torch.stack(parts)


def first_third(tensor: Tensor) -> Tensor:
    """Return the part of the queries of a joint bias."""
    return tensor.chunk(3)[0]


def last_third(tensor: Tensor) -> Tensor:
    """Return the part of the values of a joint bias."""
    return tensor.chunk(3)[2]


MULTIHEAD: WeightTable = {
    "qkv.weight": "in_proj_weight",
    "q_bias": Computed(first_third, ("in_proj_bias",)),
    "v_bias": Computed(last_third, ("in_proj_bias",)),
    "proj": "out_proj",
}
"""Attention of torch's MultiheadAttention, which CLIP uses."""


def token_head(foreign_name: str) -> WeightTable:
    """Return the sources of the token head, for VLMo and M3AE."""
    layers: WeightTable = {
        "fc1": "transform.dense",
        "norm": "transform.LayerNorm",
        "fc2.weight": "decoder.weight",
        "fc2.bias": "bias",
    }
    return with_prefixes("token_head.", f"{foreign_name}.", layers)


def with_prefixes(
    our_prefix: str, foreign_prefix: str, table: WeightTable
) -> dict[str, str | float | Computed]:
    """Return a table with prefixes before our names and before the foreign ones."""
    prefixed: dict[str, str | float | Computed] = {}
    for name, source in table.items():
        if isinstance(source, str):
            prefixed[our_prefix + name] = foreign_prefix + source
        elif isinstance(source, Computed):
            names = tuple(foreign_prefix + foreign_name for foreign_name in source.sources)
            prefixed[our_prefix + name] = Computed(source.compute, names)
        else:
            prefixed[our_prefix + name] = source
    return prefixed


def resolve(table: WeightTable, names: Iterable[str]) -> dict[str, Computed]:
    """Return how each of our tensors that a table covers is computed."""
    patterns: list[tuple[re.Pattern[str], str | float | Computed]] = []
    for key, source in table.items():
        number_or_name = re.escape(key).replace(r"\*", r"(\d+)")
        patterns.append((re.compile(number_or_name + r"(\..+)?"), source))

    resolved: dict[str, Computed] = {}
    for name in names:
        for pattern, source in patterns:
            match = pattern.fullmatch(name)
            if match is not None:
                resolved[name] = _resolved(source, match)
                break
    return resolved


def _resolved(source: str | float | Computed, match: re.Match[str]) -> Computed:
    """Return a source with the number and the rest of the name that fits its key."""
    if isinstance(source, int | float):
        return Computed(lambda: torch.tensor(source), ())
    if isinstance(source, str):
        source = Computed(unchanged, (source,))
    *numbers, rest = match.groups()
    number = "".join(numbers)
    names = tuple(name.replace("*", number) + (rest or "") for name in source.sources)
    return Computed(source.compute, names)


def convert_tensor(
    name: str, source: Computed, tensors: Mapping[str, Tensor], target: Tensor, where: str
) -> Tensor:
    """Return one of our tensors, a copy, since a file may tie some.

    `target` has the shape that it must have. Raises UserError for foreign tensors of other shapes
    or types.
    """
    if source.compute is stack:  # names the odd one of them
        for foreign_name, part in zip(source.sources, target.unbind(), strict=True):
            convert_tensor(name, Computed(unchanged, (foreign_name,)), tensors, part, where)
    inputs = [tensors[foreign_name] for foreign_name in source.sources]
    needed = tensor_files.describe_shape(target)
    has_other_type = any(
        tensor.is_floating_point() != target.is_floating_point() for tensor in inputs
    )
    result = None
    with contextlib.suppress(*COMPUTE_ERRORS):
        result = source.compute(*inputs)
        if not inputs:
            result = result.expand(target.shape)
    if has_other_type or result is None or tensor_files.describe_shape(result) != needed:
        if not inputs:
            raise UserError(f"{where}: lacks a tensor for {name}, which needs {needed}")
        shapes = [
            f"{foreign_name} has shape {tensor_files.describe_shape(tensor)}"
            for foreign_name, tensor in zip(source.sources, inputs, strict=True)
        ]
        needs = f"{name} needs"
        if source.compute is unchanged:
            needs = "the other tensors ask for"
        raise UserError(f"{where}: {', '.join(shapes)}, but {needs} {needed}")
    return result.clone()
