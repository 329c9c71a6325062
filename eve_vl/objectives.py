"""Objectives: tensors in, scalar out. They know neither the model nor the process group.

Letters: B batch, P patches, M masked or hidden, X values in a patch, E experts, V vocabulary,
A answers, D width of features, C candidates over all processes.
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
    """Load balance N · Σ f_i · p_i, 1 when even: first choices and summed gates over num_tokens tokens; of each if there are
    several, (…, E) and (…)."""
    return first_E.shape[-1] * (first_E * gate_E).sum(-1) / num_tokens.square()


def patch_statistics(patches_BPX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (B, P, 1), as MAE normalises its targets with (§4)."""
    variance, mean = torch.var_mean(patches_BPX.float(), dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def contrastive(
    image_BD: Tensor, text_BD: Tensor, image_CD: Tensor, text_CD: Tensor, is_match_BC: Tensor, temperature: Tensor
) -> Tensor:
    """Image–text contrastive loss: mean over both directions of the cross-entropy over all C candidates.

    Features have length 1; a batch row's matches (bool, at least one each) share its target evenly.
    """
    target_BC = is_match_BC.float() / is_match_BC.sum(1, keepdim=True)
    with torch.autocast(image_BD.device.type, enabled=False):  # a small temperature magnifies what bfloat16 rounds away
        loss_image = F.cross_entropy(image_BD.float() @ text_CD.float().T / temperature, target_BC)
        loss_text = F.cross_entropy(text_BD.float() @ image_CD.float().T / temperature, target_BC)
    return (loss_image + loss_text) / 2


def hard_negatives(similarity_BB: Tensor, is_match_BB: Tensor) -> Tensor:
    """Draw one column for each row that does not match it, the likelier the higher its softmax (ALBEF): int64 (B,).

    Where every column matches, the row gets itself.
    """
    weights_BB = negative_weights(similarity_BB, is_match_BB)
    has_none_B = is_match_BB.all(1)
    weights_BB = torch.where(has_none_B[:, None], torch.eye(len(weights_BB), device=weights_BB.device), weights_BB)
    return weights_BB.multinomial(1).squeeze(1)


def negative_weights(similarity_BB: Tensor, is_match_BB: Tensor) -> Tensor:
    """Return how likely each column is to be drawn for each row, not normalised: 0 where they match."""
    return (similarity_BB.float().softmax(1) + 1e-5).masked_fill(is_match_BB, 0)


def matching(logits_B2: Tensor, is_match_B: Tensor) -> Tensor:
    """Cross-entropy of "does this text belong to this picture?"; class 1 is yes."""
    return F.cross_entropy(logits_B2.float(), is_match_B.long())


def answers(logits_BA: Tensor, target_BA: Tensor) -> Tensor:
    """Binary cross-entropy with soft targets, summed over answers, mean over questions."""
    return F.binary_cross_entropy_with_logits(logits_BA.float(), target_BA, reduction="sum") / len(logits_BA)
