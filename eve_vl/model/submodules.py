"""Twins of modules with other submodules."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def replace_submodules(module: Module, parts: Mapping[str, nn.Module]) -> Module:
    """Return a twin of a module with other submodules.

    parts: by name, such as `encoder.blocks.0.attn`. It copies only the modules above these, without
    tensors. The original stays unchanged and usable, unlike with a hook or a patched attribute.
    """
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        if rest:
            twin._modules[first] = replace_submodules(twin.get_submodule(first), {rest: part})
        else:
            twin._modules[first] = part
    return twin
