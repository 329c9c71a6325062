"""How many rows pass through parts of a model."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def counted_rows(model: nn.Module, *names: str) -> Iterator[Counter[str]]:
    """Count the rows of the batches that submodules get inside the context, by their names."""
    num_rows: Counter[str] = Counter()
    hooks = []
    for name in names:

        def count(_module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            num_rows[name] += len(inputs[0])

        hooks.append(model.get_submodule(name).register_forward_pre_hook(count))
    yield num_rows
    for hook in hooks:
        hook.remove()
