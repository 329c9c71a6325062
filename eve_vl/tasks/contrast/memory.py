"""Features of past steps as further negatives of contrast.

This is XBM (Wang et al. 2020) with negatives only, and with the normalisation of XBN.

Letters: B pairs of a process, C pairs of all processes, M remembered pairs, A both together, K
kinds of keys, X contrasts, d width of features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.objectives import LazyRows
from eve_vl.tasks.contrast.keys import shares_key
from eve_vl.train.processes import gather_rows
from eve_vl.utils.frozen import Frozen

START = 0.2  # share of the steps after which features change slowly enough to be remembered


class Candidates(Frozen):
    """All images and texts that contrast compares with, and what they are to each pair."""

    image_AXd: Tensor
    text_AXd: Tensor
    target_BA: LazyRows
    """Share of each candidate in a pair's target."""
    is_ignored_BA: LazyRows | None = None
    """Bool: candidates that do not count for a pair; None: all count."""


class CrossBatchMemory:
    """Features of the pairs of the last optimiser steps, of all processes.

    They are kept standardised and take on mean and deviation of the present step, with gradients
    (XBN, Ajanthan et al. 2023). Without this, all present features move away from the remembered
    ones together: the loss falls, and nothing is learnt (LOG.md). The mean of their squared length
    stays 1. A row's remembered matches do not count: as positives, old features would take most of
    the target from the row's partner.
    """

    def __init__(self, num_batches: int):
        self.num_batches = num_batches
        self.rows: dict[str, Tensor] = {}
        """Remembered keys, images and texts, which a checkpoint keeps."""
        self.present: dict[str, Tensor] = {}
        """Those of the present step, until it has updated the weights."""

    def extend(
        self, image_CXd: Tensor, text_CXd: Tensor, target_BC: LazyRows, keys_BK: Tensor
    ) -> Candidates:
        """Return images, texts and targets of the present step with the remembered ones."""
        if not self.num_batches:
            return Candidates(image_AXd=image_CXd, text_AXd=text_CXd, target_BA=target_BC)
        self.present = {"keys": gather_rows(keys_BK)}
        image_AXd = self._with_remembered("images", image_CXd)
        text_AXd = self._with_remembered("texts", text_CXd)
        keys_MK = self.rows.get("keys", keys_BK[:0])
        num_present = len(image_CXd)

        def targets(rows: slice) -> Tensor:
            return F.pad(target_BC[rows], (0, len(keys_MK)))

        def is_ignored(rows: slice) -> Tensor:
            return F.pad(shares_key(keys_BK[rows], keys_MK), (num_present, 0))

        return Candidates(
            image_AXd=image_AXd,
            text_AXd=text_AXd,
            target_BA=LazyRows(targets),
            is_ignored_BA=LazyRows(is_ignored),
        )

    def _with_remembered(self, name: str, x_CXd: Tensor) -> Tensor:
        """Return present features, then the remembered ones; keep the present ones standardised."""
        variance_Xd, mean_Xd = torch.var_mean(x_CXd, 0, correction=0)
        std_Xd = (variance_Xd + 1e-12).sqrt()
        self.present[name] = ((x_CXd - mean_Xd) / std_Xd).detach()
        remembered_MXd = self.rows.get(name, self.present[name][:0])
        return torch.cat([x_CXd, torch.addcmul(mean_Xd, remembered_MXd, std_Xd)])

    def add_step(self, progress: float) -> None:
        """Remember the present step and forget the oldest.

        progress: share of the steps done. More steps, given on resuming, change it, so that a
        memory that has begun stays.
        """
        if progress < START and not self.rows:
            return
        for name, x_C in self.present.items():
            remembered = self.rows.get(name, x_C[:0])
            num_kept = self.num_batches * len(x_C)
            self.rows[name] = torch.cat([remembered, x_C])[-num_kept:]
