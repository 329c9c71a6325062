"""Exponential moving averages of the weights: train.ema_decay."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from eve_vl.train.shard import local_shard, sharded_as


class WeightAverages:
    """Exponential moving averages of the parameters that train; empty with decay 0."""

    def __init__(self, task: nn.Module, decay: float):
        self.decay = decay
        self.parameters: dict[str, nn.Parameter] = {}
        self.values: dict[str, Tensor] = {}
        if decay:
            for name, parameter in task.named_parameters():
                if parameter.requires_grad:
                    self.parameters[name] = parameter
                    self.values[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimiser step `step` (0-based).

        The decay starts low, to forget the random first weights: min(decay, (2 + step) / (11 +
        step)).
        """
        if not self.values:
            return
        new_share = 1 - min(self.decay, (2 + step) / (11 + step))
        for name, value in self.values.items():
            local_shard(value).lerp_(local_shard(self.parameters[name]), new_share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the task the averages as its weights until the end of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            weights = local_shard(parameter)
            averages = local_shard(self.values[name])
            if weights is parameter:
                self.values[name] = parameter.data
                parameter.data = averages
            else:  # weights are gathered from the memory of the shards
                before = weights.clone()
                weights.copy_(averages)
                averages.copy_(before)

    def live(self) -> dict[str, Tensor]:
        """Return the weights that training continues from, by name."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, live: Mapping[str, Tensor]) -> None:
        """Make the task's weights the averages, and give the task the `live` ones."""
        for name, parameter in self.parameters.items():
            self.values[name].copy_(parameter)
            parameter.copy_(sharded_as(live[name], parameter))
