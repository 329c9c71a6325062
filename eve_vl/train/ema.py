"""Moving averages of the weights, which often do better than the weights that training has just reached."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Averages:
    """Exponential moving averages of the parameters that train; with decay 0 there are none, and nothing happens."""

    def __init__(self, task: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: each for name, each in task.named_parameters() if decay and each.requires_grad}
        self.values = {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, *, allowed: Tensor | None = None) -> None:
        """Take in the weights after optimiser step `step` (0-based). allowed: whether to do so, bool on the device.

        The decay grows to its value, min(decay, (2 + step) / (11 + step)), so that random first weights are soon forgotten.
        """
        if self.values:
            weight = 1 - min(self.decay, (2 + step) / (11 + step))
            for name, value in self.values.items():
                value.lerp_(self.parameters[name], weight if allowed is None else weight * allowed)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the task have the averages as its weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def live(self) -> dict[str, Tensor]:
        """Return the weights that training has reached, by name."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, live: Mapping[str, Tensor]) -> None:
        """Take the task's weights, which a checkpoint had, for the averages, and give it the `live` ones."""
        for name, parameter in self.parameters.items():
            self.values[name].copy_(parameter)
            parameter.copy_(live[name])
