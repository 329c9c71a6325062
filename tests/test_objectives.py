"""Losses against slow loops and hand-computed numbers.

Letters: B batch, C candidates, D width of features, V vocabulary.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from helpers.slow_contrast import slow_contrastive, softmax


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Masked signal


@pytest.mark.parametrize("num_targets", [5.0, torch.tensor(2.5)])
def test_loss_of_masked_tokens_is_the_cross_entropy_over_the_number_of_targets(num_targets):
    logits = torch.randn(5, 7)
    targets = torch.tensor([0, 6, 3, 3, 1])
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total -= math.log(softmax(row)[target])
    loss = objectives.masked_tokens(logits, targets, num_targets)
    assert loss.item() == pytest.approx(total / float(num_targets), rel=1e-5)


def test_loss_of_masked_pixels_is_the_mean_squared_error():
    predicted = torch.randn(2, 3, 4)
    target = torch.randn(2, 3, 4)
    expected = np.mean((predicted.double().numpy() - target.double().numpy()) ** 2)
    loss = objectives.masked_pixels(predicted, target)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_losses_of_half_precision_are_those_of_float32():
    images = torch.randn(2, 3, 4).bfloat16()
    rows = torch.randn(6, 9).bfloat16()
    pairs = torch.randn(3, 2).bfloat16()
    classes = torch.randint(9, (6,))
    is_true = torch.rand(6, 9) < 0.5
    cases = [
        (objectives.masked_pixels, images, torch.randn(2, 3, 4)),
        (partial(objectives.masked_tokens, num_targets=6.0), rows, classes),
        (objectives.answer_bce, rows, torch.rand(6, 9)),
        (objectives.matching, pairs, torch.tensor([True, False, True])),
        (objectives.listwise_ranking, rows, is_true),
    ]
    for function, predicted, target in cases:
        loss = function(predicted, target)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, function(predicted.float(), target))


def test_patch_statistics_equal_numpys_with_one_degree_of_freedom_less():
    """As MAE's code: torch's var, which is the unbiased one, plus 1e-6 under the root."""
    patches = torch.randn(2, 3, 12) * 3 + 1
    patches[0, 0] = 0.25  # a patch of one colour must not divide by 0
    mean, std = objectives.patch_statistics(patches)
    assert mean.shape == std.shape == (2, 3, 1)
    array = patches.double().numpy()
    np.testing.assert_allclose(mean.squeeze(2), array.mean(2), rtol=1e-5)
    np.testing.assert_allclose(
        std.squeeze(2),
        np.sqrt(array.var(2, ddof=1) + 1e-6),
        rtol=1e-5,
    )
    assert std[0, 0].item() == pytest.approx(1e-3)
    half_mean, half_std = objectives.patch_statistics(patches.bfloat16())
    assert half_mean.dtype == half_std.dtype == torch.float32


# Balance


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
def test_balance_is_the_one_worked_out_by_hand(first, gate, expected):
    num_tokens = torch.tensor(float(sum(first)))
    loss = objectives.balance(
        torch.tensor(first).float(),
        torch.tensor(gate).float(),
        num_tokens,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_balance_keeps_leading_axes():
    first = torch.rand(3, 4)
    gate = torch.rand(3, 4)
    num_tokens = torch.tensor([2.0, 3.0, 4.0])
    losses = objectives.balance(first, gate, num_tokens)
    for row in range(3):
        single = objectives.balance(first[row], gate[row], num_tokens[row])
        assert losses[row] == pytest.approx(single.item())


# Contrast


def features(count: int) -> Tensor:
    return F.normalize(torch.randn(count, 6), dim=1)


@pytest.mark.parametrize(
    "images",
    [
        [0, 1, 2, 3, 4],
        [0, 1, 0, 0, 4],
        [7, 7, 7, 7, 7],
    ],
)
def test_contrast_with_several_captions_of_an_image_equals_a_loop(images):
    all_images = features(5)
    all_texts = features(5)
    image_C = torch.tensor(images)
    # of this process; two are of another
    image = all_images[:3]
    text = all_texts[:3]
    is_match = image_C[:3, None] == image_C
    target = objectives.even_targets(is_match)
    loss = objectives.contrastive(image, text, all_images, all_texts, target, torch.tensor(0.2))
    expected = slow_contrastive(image, text, all_images, all_texts, is_match, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_contrast_leaves_out_ignored_candidates():
    images = features(9)
    texts = features(9)
    image_C = torch.tensor([0, 1, 0, 3, 0, 5, 1, 7, 8])
    is_match = image_C[:4, None] == image_C
    is_ignored = is_match & (torch.arange(9) >= 4)
    target = objectives.even_targets(is_match & ~is_ignored)
    image = images[:4].clone().requires_grad_()
    text = texts[:4].clone().requires_grad_()
    temperature = torch.tensor(0.01)
    loss = objectives.contrastive(image, text, images, texts, target, temperature, is_ignored)

    total = 0.0
    for row in range(4):
        query = slice(row, row + 1)
        counts = ~is_ignored[row]
        total += slow_contrastive(
            images[query],
            texts[query],
            images[counts],
            texts[counts],
            is_match[query, counts],
            0.01,
        )
    assert loss.item() == pytest.approx(total / 4, rel=1e-4)
    loss.backward()
    for gradient in (image.grad, text.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


def test_contrast_is_the_one_worked_out_by_hand():
    one_hot = torch.eye(4)
    ones = torch.ones(4, 4)
    target = objectives.even_targets(torch.eye(4, dtype=torch.bool))
    temperature = torch.tensor(1.0)
    loss = objectives.contrastive(one_hot, one_hot, one_hot, one_hot, target, temperature)
    assert loss.item() == pytest.approx(math.log(1 + 3 / math.e), rel=1e-5)
    equal = objectives.contrastive(one_hot[:1], one_hot[:1], ones, ones, target[:1], temperature)
    assert equal.item() == pytest.approx(math.log(4), rel=1e-5)


def test_autocast_and_half_precision_coarsen_neither_similarities_nor_singular_values():
    image = features(5)
    text = features(5)
    temperature = torch.tensor(0.01)
    similarity = objectives.similarities(image, text, temperature)
    values = objectives.singular_values(image, text)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objectives.similarities(image, text, temperature), similarity)
        assert torch.equal(objectives.singular_values(image, text), values)
    image = image.bfloat16()
    text = text.bfloat16()
    assert objectives.similarities(image, text, temperature).dtype == torch.float32
    assert objectives.singular_values(image, text).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([0.5, 0.25, 0.25], 2**1.5),
        ([4.0, 2, 2, -1e-6], 2**1.5),  # rounding made it negative
        ([0.01] * 7, 7),
    ],
)
def test_effective_rank_of_known_shares(values, rank):
    assert objectives.effective_rank(torch.tensor(values)).item() == pytest.approx(rank, rel=1e-5)


# Hard negatives


def slow_weights(scores: list[float], is_match: list[bool]) -> list[float]:
    weights = [probability + 1e-5 for probability in softmax(scores)]
    return [0.0 if match else weight for weight, match in zip(weights, is_match, strict=True)]


def test_weights_of_negatives_are_softmax_without_matches():
    similarity = torch.tensor([[0.5, -1.0, 2.0, -30.0]])
    is_match = torch.tensor([[False, True, False, False]])
    weights = objectives.negative_weights(similarity.bfloat16(), is_match)
    assert weights.dtype == torch.float32
    expected = slow_weights(similarity[0].tolist(), is_match[0].tolist())
    assert weights[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert objectives.hard_negatives(similarity, is_match).shape == (1,)


def test_a_row_that_matches_everything_gets_itself():
    is_match = torch.ones(5, 5, dtype=torch.bool)
    assert objectives.hard_negatives(torch.randn(5, 5), is_match).tolist() == [0, 1, 2, 3, 4]
    is_match[2, 4] = False  # however unlikely
    similarity = torch.zeros(5, 5)
    similarity[2, 4] = -1e4
    assert objectives.hard_negatives(similarity, is_match).tolist() == [0, 1, 4, 3, 4]


def test_hard_negatives_follow_the_softmax():
    num_samples = 4000
    scores = [3.0, 1.0, 0.0, 2.0, -1.0, 2.5]
    is_match = [True, False, False, False, False, True]
    similarity = torch.tensor(scores).expand(num_samples, 6)
    is_match_BC = torch.tensor(is_match).expand(num_samples, 6)
    own_B = torch.zeros(num_samples, dtype=torch.long)  # all rows have negatives
    columns = objectives.hard_negatives(similarity, is_match_BC, own_B=own_B)
    weights = slow_weights(scores, is_match)
    for column, weight in enumerate(weights):
        share = weight / sum(weights)
        margin = 5 * math.sqrt(share * (1 - share) / num_samples) + 1e-3
        observed = (columns == column).float().mean().item()
        assert observed == pytest.approx(share, abs=margin), column


@pytest.mark.parametrize("paired", [None, [5, 4, 3, 2]])
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.7, 1.0])
def test_random_numbers_choose_the_first_column_whose_cumulative_weight_exceeds_them(paired, draw):
    similarity = torch.randn(4, 6) * 2
    is_match = torch.rand(4, 6) < 0.3
    is_match[:, [0, 5]] = True  # a match at both ends
    is_match[:, 2] = False
    is_match[3] = True  # no negative
    paired_B = None if paired is None else torch.tensor(paired)
    columns = objectives.hard_negatives(similarity, is_match, torch.full((4,), draw), paired_B)
    for row in range(3):
        weights = slow_weights(similarity[row].tolist(), is_match[row].tolist())
        cumulative = np.cumsum(weights)
        above = np.flatnonzero(cumulative > draw * cumulative[-1])
        last = np.flatnonzero(weights)[-1]
        assert columns[row] == (above[0] if len(above) else last)
    assert columns[3] == (3 if paired is None else 2)
    single = objectives.hard_negatives(similarity[:1], is_match[:1], torch.tensor([draw]))
    assert single.tolist() == columns[:1].tolist()


# Matching, ranking, answers


def test_matching_is_the_cross_entropy_of_two_classes():
    logits = torch.randn(5, 2)
    labels = torch.tensor([True, False, False, True, True])
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total -= math.log(softmax(row)[label])
    assert objectives.matching(logits, labels).item() == pytest.approx(total / 5, rel=1e-5)


def test_ranking_leaves_out_true_candidates_but_the_first():
    scores = torch.randn(3, 5)
    is_true = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()
    total = 0.0
    for row, row_is_true in zip(scores.tolist(), is_true.tolist(), strict=True):
        false = [score for score, right in zip(row[1:], row_is_true[1:], strict=True) if not right]
        total -= math.log(softmax([row[0], *false])[0])
    loss = objectives.listwise_ranking(scores, is_true)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_loss_of_answers_is_the_entropy_summed_over_answers():
    logits = torch.randn(3, 4) * 3
    targets = torch.tensor(
        [
            [0, 0.3, 1.0, 0],
            [0, 0, 0, 0],
            [0.9, 0.6, 0, 0.3],
        ]
    )
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    target = targets.double().numpy()
    entropy = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    loss = objectives.answer_bce(logits, targets)
    assert loss.item() == pytest.approx(entropy.sum() / 3, rel=1e-5)


def test_new_tensors_are_on_the_device_of_the_inputs():
    """The default device is another one here, and tensors of two devices do not mix."""
    similarity = torch.randn(3, 3)
    is_match = torch.eye(3, dtype=torch.bool)
    draw = torch.rand(3)
    with torch.device("meta"):
        assert objectives.hard_negatives(similarity, is_match, draw).device.type == "cpu"
        assert objectives.listwise_ranking(similarity, is_match).device.type == "cpu"
