"""Losses against slow loops and numbers on paper."""

import math

import numpy as np
import pytest
import torch

from eve_vl import objectives


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_masked_tokens_is_the_cross_entropy_over_any_number_of_targets():
    logits, targets = torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total -= math.log(math.exp(row[target]) / sum(math.exp(logit) for logit in row))
    assert objectives.masked_tokens(logits, targets, 5.0).item() == pytest.approx(total / 5, rel=1e-5)
    assert objectives.masked_tokens(logits, targets, torch.tensor(2.5)).item() == pytest.approx(total / 2.5, rel=1e-5)
    uniform = objectives.masked_tokens(torch.zeros(3, 64_000), torch.tensor([0, 1, 2]), 3.0)
    assert uniform.item() == pytest.approx(math.log(64_000), rel=1e-5)


def test_masked_pixels_is_the_mean_squared_error():
    predicted, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    total = sum((a - b) ** 2 for a, b in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True))
    assert objectives.masked_pixels(predicted, target).item() == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.parametrize(("loss", "shape"), [(objectives.masked_pixels, (2, 3, 4)), (None, (6, 9))])
def test_half_precision_is_summed_in_float32(loss, shape):
    x = torch.randn(shape).bfloat16()
    if loss is None:
        loss, target, args = objectives.masked_tokens, torch.randint(9, (6,)), (6.0,)
    else:
        target, args = torch.randn(shape).bfloat16(), ()
    assert loss(x, target, *args).dtype == torch.float32
    assert torch.equal(loss(x, target, *args), loss(x.float(), target if target.dtype == torch.long else target.float(), *args))


@pytest.mark.parametrize(
    ("first", "gate", "expected"),
    [
        ([5, 5, 5, 5], [5, 5, 5, 5], 1.0),  # even
        ([20, 0, 0, 0], [20, 0, 0, 0], 4.0),  # all to one: N
        ([20, 0, 0, 0], [5, 5, 5, 5], 1.0),  # even gates
        ([10, 10, 0, 0], [8, 8, 2, 2], 1.6),  # 4 · 2 · 0.5 · 0.4
        ([8], [8], 1.0),
    ],
)
def test_balance_on_paper(first, gate, expected):
    num_tokens = torch.tensor(float(sum(first)))
    found = objectives.balance(torch.tensor(first, dtype=torch.float32), torch.tensor(gate, dtype=torch.float32), num_tokens)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_balance_against_a_loop():
    gates = torch.randn(11, 5).softmax(-1)
    total = 0.0
    for expert in range(5):
        f = sum(int(row.argmax() == expert) for row in gates) / 11
        total += f * sum(row[expert].item() for row in gates) / 11
    first = torch.bincount(gates.argmax(-1), minlength=5).float()
    assert objectives.balance(first, gates.sum(0), torch.tensor(11.0)).item() == pytest.approx(5 * total, rel=1e-5)


def test_patch_statistics_equal_numpys_with_one_degree_of_freedom_less():
    """As MAE's code: torch's var, which is the unbiased one, plus 1e-6 under the root."""
    patches = torch.randn(2, 3, 12) * 3 + 1
    patches[0, 0] = 0.25  # a patch of one colour must not divide by 0
    mean, std = objectives.patch_statistics(patches)
    assert mean.shape == std.shape == (2, 3, 1)
    array = patches.double().numpy()
    np.testing.assert_allclose(mean.squeeze(2), array.mean(2), rtol=1e-5)
    np.testing.assert_allclose(std.squeeze(2), np.sqrt(array.var(2, ddof=1) + 1e-6), rtol=1e-5)
    assert std[0, 0].item() == pytest.approx(1e-3)
