"""Objectives: tensors in, scalar out. They know neither the model nor the process group.

Letters: B batch, P patches, M masked or hidden, X values in a patch, E experts, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_tokens(logits_MV: Tensor, targets_M: Tensor, num_targets: Tensor | float) -> Tensor:
    """Cross-entropy of the masked tokens in nats, summed and divided by num_targets."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="sum") / num_targets


def masked_pixels(predicted_BMX: Tensor, target_BMX: Tensor) -> Tensor:
    """Mean squared error of the hidden patches."""
    return F.mse_loss(predicted_BMX.float(), target_BMX.float())


def balance(first_E: Tensor, gate_E: Tensor, num_tokens: Tensor) -> Tensor:
    """Load balance N · Σ f_i · p_i, 1 when even: first choices and summed gates over num_tokens tokens."""
    return len(first_E) * (first_E * gate_E).sum() / num_tokens.square()


def patch_statistics(patches_BPX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (B, P, 1), as MAE normalises its targets with (§4)."""
    variance, mean = torch.var_mean(patches_BPX.float(), dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
