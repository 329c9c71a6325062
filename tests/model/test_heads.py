"""Heads against slow twins: explicit softmax, one query and one attention head at a time."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.heads import ContrastHead, MLPHead, PairedAttentionHead, TokenHead
from helpers.twins import randomize

D, HEADS = 8, 2
LENGTHS = (7, 4, 5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def slow_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer on one vector, output by output."""
    return torch.stack(
        [weight @ x + bias for weight, bias in zip(layer.weight, layer.bias, strict=True)]
    )


def slow_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / (
        ((x - x.mean()) ** 2).mean() + norm.eps
    ).sqrt() * norm.weight + norm.bias


def slow_gelu(x: Tensor) -> Tensor:
    """x · Φ(x)."""
    return torch.stack([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x])


@torch.no_grad()
def test_classifier_equals_its_formula_row_by_row():
    head = MLPHead(6, 10, 3)
    randomize(head, 1)
    first, norm, _, second = head
    assert (
        isinstance(first, nn.Linear)
        and isinstance(norm, nn.LayerNorm)
        and isinstance(second, nn.Linear)
    )
    assert (first.out_features, second.in_features, second.out_features) == (10, 10, 3)
    x = torch.randn(4, 6)
    for row, found in zip(x, head(x), strict=True):
        torch.testing.assert_close(
            found, slow_linear(second, slow_gelu(slow_norm(norm, slow_linear(first, row))))
        )


@torch.no_grad()
def test_token_head_equals_its_formula_row_by_row():
    head = TokenHead(6, 11)
    randomize(head, 1)
    x = torch.randn(4, 6)
    for row, found in zip(x, head(x), strict=True):
        torch.testing.assert_close(
            found,
            slow_linear(head.fc2, slow_norm(head.norm, slow_gelu(slow_linear(head.fc1, row)))),
        )


@torch.no_grad()
def test_features_have_length_one_and_a_projection_each():
    head = ContrastHead(6, 6, 4)
    randomize(head, 1)
    x = torch.randn(3, 6)
    for found, projection in (
        (head.image_features(x), head.image),
        (head.text_features(x.double().float()), head.text),
    ):
        for row, feature in zip(x, found, strict=True):
            projected = projection.weight @ row
            torch.testing.assert_close(feature, projected / projected.square().sum().sqrt())
    assert not torch.allclose(head.image_features(x), head.text_features(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert head.image_features(x).dtype == torch.float32


# Two pairs that attend to each other


def slow_attention(attention: nn.MultiheadAttention, own_ND: Tensor, other_MD: Tensor) -> Tensor:
    """What each token of one side gathers from the other side's tokens, all of them real."""
    assert attention.in_proj_weight is not None
    (wq, wk, wv), (bq, bk, bv) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    width = D // HEADS
    rows = []
    for own in own_ND:
        gathered = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            query = wq[part] @ own + bq[part]
            scores = [
                (query @ (wk[part] @ other + bk[part])).item() / math.sqrt(width)
                for other in other_MD
            ]
            total = sum(math.exp(score) for score in scores)
            values = [wv[part] @ other + bv[part] for other in other_MD]
            gathered.append(
                sum(
                    math.exp(score) / total * value
                    for score, value in zip(scores, values, strict=True)
                )
            )
        rows.append(slow_linear(attention.out_proj, torch.cat(gathered)))
    return torch.stack(rows)


def slow_paired(head: PairedAttentionHead, left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Logits of one pair of pairs without padding."""
    fuse = head.fuse[0]
    assert isinstance(fuse, nn.Linear)
    pooled = []
    for attention, own_ND, other_ND in (
        (head.attend_right, left_ND, right_ND),
        (head.attend_left, right_ND, left_ND),
    ):
        attended_ND = slow_attention(attention, own_ND, other_ND)
        fused = [
            slow_linear(fuse, torch.cat([attended, own])).clamp(min=0)
            for attended, own in zip(attended_ND, own_ND, strict=True)
        ]
        scores = [max(0.0, slow_linear(head.score, row).item()) for row in fused]
        total = sum(math.exp(score) for score in scores)
        pooled.append(
            sum(math.exp(score) / total * row for score, row in zip(scores, fused, strict=True))
        )
    return slow_linear(head.classify, torch.cat(pooled))


def paired_head() -> PairedAttentionHead:
    head = PairedAttentionHead(D, HEADS)
    randomize(head, 2, std=0.4)
    return head.eval()


def states() -> tuple[Tensor, Tensor, Tensor]:
    is_padding_BN = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return torch.randn(3, 7, D), torch.randn(3, 7, D), is_padding_BN


@torch.no_grad()
def test_paired_attention_equals_the_slow_twin():
    head, (left, right, is_padding) = paired_head(), states()
    found = head(left, right, is_padding)
    assert found.shape == (3, 2)
    for b, length in enumerate(LENGTHS):
        expected = slow_paired(head, left[b, :length], right[b, :length])
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head(left[:1], right[:1], None), found[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(head(right, left, is_padding), found, atol=1e-3)


@torch.no_grad()
def test_padding_never_matters():
    head, (left, right, is_padding) = paired_head(), states()
    plain = head(left, right, is_padding)
    for noise in (0.0, 1e3):
        filled = [x.masked_fill(is_padding[:, :, None], noise) for x in (left, right)]
        torch.testing.assert_close(head(*filled, is_padding), plain, rtol=1e-4, atol=1e-5)
    longer = [F.pad(x, (0, 0, 0, 3), value=7.0) for x in (left, right)]
    torch.testing.assert_close(
        head(*longer, F.pad(is_padding, (0, 3), value=True)), plain, rtol=1e-4, atol=1e-5
    )


def test_every_weight_of_the_paired_head_learns():
    head, (left, right, is_padding) = paired_head().train(), states()
    head(left, right, is_padding).square().sum().backward()
    assert not [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert all(
        parameter.grad.isfinite().all()
        for parameter in head.parameters()
        if parameter.grad is not None
    )
