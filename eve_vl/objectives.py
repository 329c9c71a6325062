"""Losses: tensors in, scalar out, without a model or a process group.

Letters: B batch, P patches, M masked patches or tokens, X values in a patch, E experts, V
vocabulary, A answers, L labels, D width of features, C candidates over all processes, R singular
values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST = torch.finfo(torch.float32).min  # unlike -inf, it can be multiplied by a target of 0
AT_ONCE = 2**20
"""Most numbers of a matrix (B, C) in memory; larger ones are made slice by slice of rows."""


@dataclass(frozen=True)
class LazyRows:
    """A matrix (B, C) whose rows are made when a slice of them is read."""

    make: Callable[[slice], Tensor]

    def __getitem__(self, rows: slice) -> Tensor:
        return self.make(rows)


Matrix = Tensor | LazyRows


def slices(num_rows: int, num_candidates: int) -> list[slice]:
    """Return slices of all rows with at most AT_ONCE numbers, but one row at least."""
    size = max(1, AT_ONCE // num_candidates)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _SumOverSlices(torch.autograd.Function):
    """Sum of a loss over slices of rows.

    The gradients are computed at once, so that no slice is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[..., Tensor],
        parts: Sequence[slice],
        row_BD: Tensor,
        *shared: Tensor,
    ) -> Tensor:
        total = row_BD.new_zeros(())
        row_gradient_BD = torch.zeros_like(row_BD)
        shared_gradients = [torch.zeros_like(tensor) for tensor in shared]
        with torch.enable_grad(), torch.autocast(row_BD.device.type, enabled=False):
            for rows in parts:
                inputs = [tensor.detach().requires_grad_() for tensor in (row_BD[rows], *shared)]
                loss = loss_of(rows, *inputs)
                total += loss.detach()
                sums = (row_gradient_BD[rows], *shared_gradients)
                gradients = torch.autograd.grad(loss, inputs)
                for gradient_sum, gradient in zip(sums, gradients, strict=True):
                    gradient_sum.add_(gradient)
        ctx.save_for_backward(row_gradient_BD, *shared_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, *(grad * gradient for gradient in ctx.saved_tensors)


def masked_tokens(logits_MV: Tensor, targets_M: Tensor, num_targets: Tensor | float) -> Tensor:
    """Return the summed cross-entropy of masked tokens over num_targets, in nats."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="sum") / num_targets


def masked_pixels(predicted_BMX: Tensor, target_BMX: Tensor) -> Tensor:
    """Return the mean squared error of masked patches."""
    return F.mse_loss(predicted_BMX.float(), target_BMX.float())


def balance(first_E: Tensor, gate_E: Tensor, num_tokens: Tensor) -> Tensor:
    """Return the load-balancing loss N · Σ f_i · p_i, 1 when even.

    first_E, gate_E: first choices and summed gates over num_tokens tokens. Leading axes are kept:
    (…, E) and (…) give (…).
    """
    return first_E.shape[-1] * (first_E * gate_E).sum(-1) / num_tokens.square()


def patch_statistics(patches_BPX: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (B, P, 1), as MAE (§4) does."""
    variance, mean = torch.var_mean(patches_BPX.float(), dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def even_targets(is_match_BC: Tensor) -> Tensor:
    """Return contrastive targets, shared evenly by a row's matches, float32 (B, C).

    is_match_BC: bool, at least one match each.
    """
    return is_match_BC / is_match_BC.sum(1, keepdim=True)


def semantic_targets(state_BL: Tensor, state_CL: Tensor) -> Tensor:
    """Return contrastive targets by labels (MedCLIP), float32 (B, C).

    They are the softmax over all candidates of products of label vectors: 1 present, -1 absent, 0
    unknown.
    """
    product_BC = state_BL.float() @ state_CL.float().T
    return product_BC.softmax(1, dtype=torch.float32)  # autocast rounds shares, not whole numbers


def similarities(image_BD: Tensor, text_CD: Tensor, temperature: Tensor) -> Tensor:
    """Return the products of features over the temperature, (B, C), at least float32."""
    # a small temperature magnifies bfloat16's rounding
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD = image_BD.to(torch.promote_types(image_BD.dtype, torch.float32))
        text_CD = text_CD.to(torch.promote_types(text_CD.dtype, torch.float32))
        return image_BD @ text_CD.T / temperature


def summed_cross_entropy(
    row_BD: Tensor,
    candidate_CD: Tensor,
    target_BC: Matrix,
    temperature: Tensor,
    is_ignored_BC: Matrix | None = None,
) -> Tensor:
    """Return the cross-entropy of rows over all candidates, summed over rows.

    See `contrastive`. A loss of one slice is plain autograd.
    """

    def loss_of(rows: slice, row_RD: Tensor, candidate_CD: Tensor, temperature: Tensor) -> Tensor:
        similarity_RC = similarities(row_RD, candidate_CD, temperature)
        if is_ignored_BC is not None:
            similarity_RC = similarity_RC.masked_fill(is_ignored_BC[rows], LOWEST)
        return F.cross_entropy(similarity_RC, target_BC[rows], reduction="sum")

    parts = slices(len(row_BD), len(candidate_CD))
    if len(parts) == 1:
        return loss_of(parts[0], row_BD, candidate_CD, temperature)
    return cast(Tensor, _SumOverSlices.apply(loss_of, parts, row_BD, candidate_CD, temperature))


def contrastive(
    image_BD: Tensor,
    text_BD: Tensor,
    image_CD: Tensor,
    text_CD: Tensor,
    target_BC: Matrix,
    temperature: Tensor,
    is_ignored_BC: Matrix | None = None,
) -> Tensor:
    """Return the image–text contrastive loss (ITC).

    It is the mean over both directions of the cross-entropy over all C candidates. Features have
    length 1. target_BC: share of each candidate in a row's target, equal for an image and its text.
    is_ignored_BC: bool, candidates that do not count, whose share is 0; None: all count.
    """
    B = len(image_BD)
    of_images = summed_cross_entropy(image_BD, text_CD, target_BC, temperature, is_ignored_BC) / B
    of_texts = summed_cross_entropy(text_BD, image_CD, target_BC, temperature, is_ignored_BC) / B
    return (of_images + of_texts) / 2


def singular_values(image_CD: Tensor, text_CD: Tensor) -> Tensor:
    """Return the singular values of similarities I Tᵀ, float32 (min(C, D),).

    I and T are all images and texts; the largest comes first. The gradient of each is u vᵀ of its
    singular vectors. These are computed without a gradient, in the smaller space of rows or
    features. It is not unique for equal values.
    """
    with torch.autocast(image_CD.device.type, enabled=False):
        image_CD = image_CD.float()
        text_CD = text_CD.float()
        with torch.no_grad():
            image_CR, image_RD = torch.linalg.qr(image_CD)
            text_CR, text_RD = torch.linalg.qr(text_CD)
            left_RR, _, right_RR = torch.linalg.svd(image_RD @ text_RD.T)
            left_CR = image_CR @ left_RR
            right_CR = text_CR @ right_RR.T
        return ((left_CR.T @ image_CD) * (right_CR.T @ text_CD)).sum(1)


def effective_rank(value_R: Tensor) -> Tensor:
    """Return exp of the entropy of normalised singular values; N if all N are equal."""
    share_R = value_R.clamp(min=0) / value_R.sum()
    return torch.special.entr(share_R).sum().exp()


def hard_negatives(
    similarity_BC: Tensor,
    is_match_BC: Tensor,
    draw_B: Tensor | None = None,
    own_B: Tensor | None = None,
) -> Tensor:
    """Sample one column without a match for each row, by softmax (ALBEF): int64 (B,).

    draw_B: random numbers in [0, 1) that choose the column; None: torch's generator does. own_B:
    int64, the column of a row without a negative; None: the row's number.
    """
    weights_BC = negative_weights(similarity_BC, is_match_BC)
    B, C = weights_BC.shape
    column_C = torch.arange(C, device=weights_BC.device)
    if own_B is None:
        own_B = column_C[:B]
    is_own_BC = own_B[:, None] == column_C
    weights_BC = torch.where(is_match_BC.all(1, keepdim=True), is_own_BC, weights_BC)
    if draw_B is None:
        return weights_BC.multinomial(1).squeeze(1)

    sum_BC = weights_BC.double().cumsum(1)
    # rounding must not lead beyond the last weight
    draw_B1 = draw_B.double().clamp(max=1 - 1e-12)[:, None]
    return torch.searchsorted(sum_BC, sum_BC[:, -1:] * draw_B1, right=True).squeeze(1)


def negative_weights(similarity_BC: Tensor, is_match_BC: Tensor) -> Tensor:
    """Return the sampling weight of each column for each row; 0 for matches."""
    return (similarity_BC.float().softmax(1) + 1e-5).masked_fill(is_match_BC, 0)


def matching(logits_B2: Tensor, is_match_B: Tensor) -> Tensor:
    """Return the matching loss (ITM): cross-entropy of two classes, 1 for a match."""
    return F.cross_entropy(logits_B2.float(), is_match_B.long())


def listwise_ranking(score_BC: Tensor, is_true_BC: Tensor) -> Tensor:
    """Return the cross-entropy of the first candidate, the row's own.

    Other true candidates (is_true_BC, bool) do not count.
    """
    B, C = score_BC.shape
    is_after_first_C = torch.arange(C, device=score_BC.device) > 0
    score_BC = score_BC.float().masked_fill(is_true_BC & is_after_first_C, -torch.inf)
    first_B = torch.zeros(B, dtype=torch.long, device=score_BC.device)
    return F.cross_entropy(score_BC, first_B)


def answer_bce(logits_BA: Tensor, target_BA: Tensor) -> Tensor:
    """Return the binary cross-entropy with soft targets.

    It is summed over answers, and the mean over questions.
    """
    total = F.binary_cross_entropy_with_logits(logits_BA.float(), target_BA, reduction="sum")
    return total / len(logits_BA)
