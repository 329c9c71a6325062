"""Cross-batch memory: features of past steps as further negatives.

This is XBM (Wang et al. 2020) with negatives only, and with the normalisation of XBN.

Letters: B batch, C candidates over all processes, M remembered rows, A both together, X contrasts, d width of features, K kinds
of keys.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.objectives import LazyRows
from eve_vl.train.processes import gather_rows

START = 0.2  # share of the steps after which features change slowly enough to be remembered


def shares_key(keys_BK: Tensor, keys_CK: Tensor) -> Tensor:
    """Return a bool matrix (B, C): the two rows share a key."""
    return (keys_BK[:, None] == keys_CK).any(2)


class CrossBatchMemory:
    """Features of the pairs of the last optimiser steps, of all processes.

    They are kept standardised and take on mean and deviation of the present step, with gradients (XBN, Ajanthan et al. 2023).
    Without this, all present features move away from the remembered ones together: the loss falls, and nothing is learnt
    (LOG.md). The mean of their squared length stays 1. A row's remembered matches do not count: as positives, old features
    would take most of the target from the row's partner.
    """

    def __init__(self, num_batches: int):
        self.num_batches = num_batches
        self.rows: dict[str, Tensor] = {}  # what a checkpoint keeps
        self.present: dict[str, Tensor] = {}  # rows of the present step, until it has updated the weights

    def extend(
        self, image_CXd: Tensor, text_CXd: Tensor, target_BC: LazyRows, keys_BK: Tensor
    ) -> tuple[Tensor, Tensor, LazyRows, LazyRows | None]:
        """Return images, texts and targets with remembered rows, and which do not count.

        The last is bool (B, A); None: all count.
        """
        if not self.num_batches:
            return image_CXd, text_CXd, target_BC, None
        self.present, both = {"keys": gather_rows(keys_BK)}, []
        for name, x_CXd in (("images", image_CXd), ("texts", text_CXd)):
            variance_Xd, mean_Xd = torch.var_mean(x_CXd, 0, correction=0)
            std_Xd = (variance_Xd + 1e-12).sqrt()
            self.present[name] = ((x_CXd - mean_Xd) / std_Xd).detach()
            old_MXd = self.rows.get(name, self.present[name][:0])
            both.append(torch.cat([x_CXd, torch.addcmul(mean_Xd, old_MXd, std_Xd)]))
        old_MK = self.rows.get("keys", keys_BK[:0])
        is_ignored_BA = LazyRows(lambda rows: F.pad(shares_key(keys_BK[rows], old_MK), (len(image_CXd), 0)))
        return both[0], both[1], LazyRows(lambda rows: F.pad(target_BC[rows], (0, len(old_MK)))), is_ignored_BA

    def add_step(self, progress: float) -> None:
        """Remember the present step and forget the oldest.

        progress: share of the steps done.
        """
        if progress >= START or self.rows:  # more steps, given on resuming, change the share
            for name, x_C in self.present.items():
                self.rows[name] = torch.cat([self.rows.get(name, x_C[:0]), x_C])[-self.num_batches * len(x_C) :]
