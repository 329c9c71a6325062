"""Contrast over all micro-batches of a step, as one of them sees it.

Letters: B batch, X contrasts, d width of features.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from eve_vl.tasks.contrast.global_negatives import HardNegatives
from eve_vl.train.random_state import get_rng_state, set_rng_state
from eve_vl.utils.frozen import Frozen


@contextlib.contextmanager
def replayed(state: dict[str, Tensor]) -> Iterator[None]:
    """Replay random numbers from a state, and restore the present state afterwards."""
    now = get_rng_state()
    set_rng_state(state)
    try:
        yield
    finally:
        set_rng_state(now)


class CachedContrast(Frozen):
    """Losses of contrast over all micro-batches of a step, and their gradients."""

    rng_state: dict[str, Tensor]
    """The random state before the features were computed."""
    losses: dict[str, Tensor]
    gradients: dict[str, tuple[Tensor, ...]]
    """By loss: its gradients by the features of images and of texts, (B, X, d), and by the
    temperatures."""
    terms: dict[str, Tensor]
    hard_negatives: HardNegatives | None

    def losses_of(self, *values: Tensor) -> dict[str, Tensor]:
        """Return the losses with gradients by the values: features and temperatures."""
        losses = {}
        for name, loss in self.losses.items():
            product = torch.zeros(())
            for value, gradient in zip(values, self.gradients[name], strict=True):
                product = product + (value * gradient).sum()
            losses[name] = loss + product - product.detach()
        return losses
