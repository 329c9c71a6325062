"""Copy the weights of one run into the model of another task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eve_vl.utils.errors import UserError, matching

ENCODER = "encoder."


@dataclass(frozen=True)
class Transfer:
    """Result of a start from another run's weights."""

    new: frozenset[str]
    """Parameters missing there or of another shape; they start at random."""
    unused: frozenset[str]
    """Parameters that this model does not have."""
    resized: str | None
    """Sentence on resized encoder weights; None without any."""


def transfer(
    tensors: Mapping[str, Tensor], task: Any, where: str, may_lack: Sequence[str] = (), text_length: int | None = None
) -> Transfer:
    """Copy the weights of another run that fit.

    The encoder must fit as a whole, after resizing, except for names that match may_lack. where: the source of `tensors` in
    messages. text_length: of the source run. Raises UserError, also for a pattern without a match.
    """
    own = task.state_dict()
    encoder = {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    encoder, resized = task.encoder.resized(encoder)
    tensors = {**tensors, **{ENCODER + name: tensor for name, tensor in encoder.items()}}
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and tensor.shape == own[name].shape}
    of_encoder = {name for name in own.keys() | tensors.keys() if name.startswith(ENCODER)}  # heads may differ
    may_differ = {name for pattern in may_lack for name in matching(pattern, of_encoder, "init_allow_missing")}
    if wrong := of_encoder - fitting.keys() - may_differ:
        name = min(wrong)
        here = f"{tuple(own[name].shape)} here" if name in own else "missing here"
        there = f"{tuple(tensors[name].shape)} there" if name in tensors else "missing there"
        differ = f"{len(wrong)} tensors differ, the first {name}" if len(wrong) > 1 else f"1 tensor differs, {name}"
        raise UserError(
            f"{where}: its encoder does not fit this model: {differ}: {here}, {there}; leave out the flags that change "
            f"shapes, give the run's --input.text-length {text_length}, or name what may start at random: --init-allow-missing"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return Transfer(frozenset(own.keys() - fitting.keys()), frozenset(tensors.keys() - fitting.keys()), resized)


def parts(names: Iterable[str]) -> str:
    """Return the model parts of parameters, as in `answer_head, contrast.match_head`."""
    depth = {"contrast": 2, "encoder": 2}
    return ", ".join(sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names}))
