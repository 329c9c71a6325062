"""Heads against their formulas, in torch's functions and one row or pair at a time.

Letters: B batch, N tokens of a pair, D width.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.heads import ContrastHead, ITMHead, MLPHead, PairedAttentionHead, TokenHead
from helpers.random_weights import randomize

D = 8
HEADS = 2
LENGTHS = (7, 4, 5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def test_classifier_equals_its_formula():
    head = MLPHead(6, 10, 3)
    randomize(head, 1)
    weight1, bias1, norm_weight, norm_bias, weight2, bias2 = head.parameters()
    x = torch.randn(4, 6)
    hidden = F.layer_norm(x @ weight1.T + bias1, (10,), norm_weight, norm_bias, 1e-5)
    torch.testing.assert_close(head(x), F.gelu(hidden) @ weight2.T + bias2)


@torch.no_grad()
def test_token_head_equals_its_formula():
    head = TokenHead(6, 11)
    randomize(head, 1)
    x = torch.randn(4, 6)
    hidden = F.gelu(x @ head.fc1.weight.T + head.fc1.bias)
    normed = F.layer_norm(hidden, (6,), head.norm.weight, head.norm.bias, 1e-6)
    torch.testing.assert_close(head(x), normed @ head.fc2.weight.T + head.fc2.bias)


@pytest.mark.parametrize("standardize", [False, True])
def test_matching_head_standardises_by_the_batch_and_ranks_by_a_single_logit(standardize):
    x = torch.randn(5, D) * 3 + 1
    inputs = x
    if standardize:
        inputs = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    head = ITMHead(D, standardize=standardize)
    expected = inputs @ head.weight.T + head.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)

    head = ITMHead(D, standardize=standardize, ranks=True)
    scores = inputs @ head.weight.T + head.bias
    expected = torch.cat([torch.zeros(5, 1), scores], dim=1)
    torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_features_have_length_1_and_a_projection_per_modality():
    head = ContrastHead(6, 6, 4)
    randomize(head, 1)
    x = torch.randn(3, 6)
    for features, projection in (
        (head.image_features(x), head.image),
        (head.text_features(x), head.text),
    ):
        projected = x @ projection.weight.T
        length = projected.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(features, projected / length)
    assert not torch.allclose(head.image_features(x), head.text_features(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert head.image_features(x).dtype == torch.float32


# Two pairs that attend to each other


def slow_pooled(
    head: PairedAttentionHead,
    attention: nn.MultiheadAttention,
    x_ND: Tensor,
    keys_ND: Tensor,
) -> Tensor:
    """Pool the states of one pair after attention to the other, without padding or batch."""
    attended_ND, _ = attention(x_ND, keys_ND, keys_ND)
    fuse = head.fuse[0]
    fused_ND = F.relu(torch.cat([attended_ND, x_ND], dim=1) @ fuse.weight.T + fuse.bias)  # pyright: ignore
    score_N = F.relu(fused_ND @ head.score.weight[0] + head.score.bias)
    weight_N = score_N.exp() / score_N.exp().sum()
    return (weight_N[:, None] * fused_ND).sum(0)


def slow_paired(head: PairedAttentionHead, left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Return the logits of one pair of pairs."""
    left_D = slow_pooled(head, head.attend_right, left_ND, right_ND)
    right_D = slow_pooled(head, head.attend_left, right_ND, left_ND)
    return head.classify.weight @ torch.cat([left_D, right_D]) + head.classify.bias


@torch.no_grad()
def test_paired_attention_equals_a_twin_that_takes_one_pair_at_a_time():
    head = PairedAttentionHead(D, HEADS)
    randomize(head, 2, std=0.4)
    head.eval()
    left = torch.randn(3, 7, D)
    right = torch.randn(3, 7, D)
    is_padding = torch.arange(7) >= torch.tensor(LENGTHS)[:, None]
    logits = head(left, right, is_padding)
    assert logits.shape == (3, 2)
    for b, length in enumerate(LENGTHS):
        expected = slow_paired(head, left[b, :length], right[b, :length])
        torch.testing.assert_close(logits[b], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(left[:1], right[:1], None), logits[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(head(right, left, is_padding), logits, atol=1e-3)
