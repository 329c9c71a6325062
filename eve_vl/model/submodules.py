"""Twins of a module that share its weights but compute some part in another way."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def exchanged(module: Module, parts: Mapping[str, nn.Module]) -> Module:
    """Return a twin of a module with other submodules under the given names, such as `encoder.blocks.0.attn`.

    Only what leads to these is copied, without its tensors, and the original stays as it is: others may use it meanwhile,
    which they could not while a hook or a patched attribute was in it.
    """
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        twin._modules[first] = exchanged(twin.get_submodule(first), {rest: part}) if rest else part
    return twin
