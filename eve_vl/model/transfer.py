"""Weights from one run into another task's model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eve_vl.errors import UserError
from eve_vl.model.embed import resize_positions

POSITIONS = "encoder.image.positions"


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a start from another run's weights came to."""

    new: frozenset[str]
    """Parameters that it did not have, or had in another shape: they start at random."""
    unused: frozenset[str]
    """What it had and this model has no place for."""
    resized: tuple[int, int] | None
    """Patches that its positions were for, and those they are for now; None if the same."""


def transfer(tensors: Mapping[str, Tensor], model: nn.Module, where: str) -> Transfer:
    """Copy what fits; the encoder must fit as a whole, its picture positions resized if need be. Raises UserError.

    `where` names the source of `tensors` in messages.
    """
    own = model.state_dict()
    tensors = dict(tensors)
    resized = None
    if POSITIONS in tensors and tensors[POSITIONS].shape != own[POSITIONS].shape:
        resized = len(tensors[POSITIONS]) - 1, len(own[POSITIONS]) - 1
        tensors[POSITIONS] = resize_positions(tensors[POSITIONS], resized[1])
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and tensor.shape == own[name].shape}
    wrong = [name for name in own.keys() | tensors.keys() if name.startswith("encoder.") and name not in fitting]
    if wrong:
        name = min(wrong)
        here = f"{tuple(own[name].shape)} here" if name in own else "missing here"
        there = f"{tuple(tensors[name].shape)} there" if name in tensors else "missing there"
        raise UserError(
            f"{where}: its encoder does not fit this model: {len(wrong)} tensors differ, the first {name}: "
            f"{here}, {there}; leave out the --model flags that change shapes"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return Transfer(
        new=frozenset(own.keys() - fitting.keys()), unused=frozenset(tensors.keys() - fitting.keys()), resized=resized
    )


def parts(names: Iterable[str]) -> str:
    """Return the parts of a model that parameters belong to, for messages: `answer_head, contrast.match_head`."""
    depth = {"contrast": 2}
    return ", ".join(sorted({".".join(name.split(".")[: depth.get(name.split(".")[0], 1)]) for name in names}))
