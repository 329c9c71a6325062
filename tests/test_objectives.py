"""Losses against slow loops and hand-computed numbers."""

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
    assert objectives.masked_tokens(logits, targets, 5.0).item() == pytest.approx(
        total / 5, rel=1e-5
    )
    assert objectives.masked_tokens(logits, targets, torch.tensor(2.5)).item() == pytest.approx(
        total / 2.5, rel=1e-5
    )
    uniform = objectives.masked_tokens(torch.zeros(3, 64_000), torch.tensor([0, 1, 2]), 3.0)
    assert uniform.item() == pytest.approx(math.log(64_000), rel=1e-5)


def test_masked_pixels_is_the_mean_squared_error():
    predicted, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    total = sum(
        (a - b) ** 2
        for a, b in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True)
    )
    assert objectives.masked_pixels(predicted, target).item() == pytest.approx(total / 24, rel=1e-5)


@pytest.mark.parametrize(("loss", "shape"), [(objectives.masked_pixels, (2, 3, 4)), (None, (6, 9))])
def test_half_precision_is_summed_in_float32(loss, shape):
    x = torch.randn(shape).bfloat16()
    if loss is None:
        loss, target, args = objectives.masked_tokens, torch.randint(9, (6,)), (6.0,)
    else:
        target, args = torch.randn(shape).bfloat16(), ()
    assert loss(x, target, *args).dtype == torch.float32
    assert torch.equal(
        loss(x, target, *args),
        loss(x.float(), target if target.dtype == torch.long else target.float(), *args),
    )


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
    found = objectives.balance(
        torch.tensor(first, dtype=torch.float32),
        torch.tensor(gate, dtype=torch.float32),
        num_tokens,
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_balance_against_a_loop():
    gates = torch.randn(11, 5).softmax(-1)
    total = 0.0
    for expert in range(5):
        f = sum(int(row.argmax() == expert) for row in gates) / 11
        total += f * sum(row[expert].item() for row in gates) / 11
    first = torch.bincount(gates.argmax(-1), minlength=5).float()
    assert objectives.balance(first, gates.sum(0), torch.tensor(11.0)).item() == pytest.approx(
        5 * total, rel=1e-5
    )


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


# Contrast, matching, answers


def slow_contrastive(image, text, all_images, all_texts, is_match, temperature) -> float:
    """One query after the other: minus the mean log-probability of its matches among all candidates."""
    total = 0.0
    for queries, candidates in ((image, all_texts), (text, all_images)):
        for query, matches in zip(queries.tolist(), is_match.tolist(), strict=True):
            scores = [
                sum(x * y for x, y in zip(query, candidate, strict=True)) / temperature
                for candidate in candidates.tolist()
            ]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            right = [
                score - log_sum for score, is_right in zip(scores, matches, strict=True) if is_right
            ]
            total -= sum(right) / len(right)
    return total / (2 * len(image))


def features(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 6), dim=1)


@pytest.mark.parametrize("images", [[0, 1, 2, 3, 4], [0, 1, 0, 0, 4], [7, 7, 7, 7, 7]])
def test_contrast_against_a_loop_with_several_captions_of_one_image(images):
    all_images, all_texts, image = features(5), features(5), torch.tensor(images)
    is_match = image[:3, None] == image  # three rows of this process, two of another
    found = objectives.contrastive(
        all_images[:3],
        all_texts[:3],
        all_images,
        all_texts,
        objectives.even_targets(is_match),
        torch.tensor(0.2),
    )
    assert found.item() == pytest.approx(
        slow_contrastive(all_images[:3], all_texts[:3], all_images, all_texts, is_match, 0.2),
        rel=1e-5,
    )


def test_contrast_against_a_loop_with_candidates_that_do_not_count():
    """Each query looks only at those that do."""
    images, texts, image_id = features(9), features(9), torch.tensor([0, 1, 0, 3, 0, 5, 1, 7, 8])
    is_match = image_id[:4, None] == image_id
    is_ignored = is_match & (torch.arange(9) >= 4)
    target = objectives.even_targets(is_match & ~is_ignored)
    image, text = (each[:4].clone().requires_grad_() for each in (images, texts))
    found = objectives.contrastive(
        image, text, images, texts, target, torch.tensor(0.01), is_ignored
    )
    total = 0.0
    for row in range(4):
        kept = ~is_ignored[row]
        query = slice(row, row + 1)
        total += slow_contrastive(
            images[query], texts[query], images[kept], texts[kept], is_match[query, kept], 0.01
        )
    assert found.item() == pytest.approx(total / 4, rel=1e-4)
    found.backward()
    assert all(
        each.grad is not None and each.grad.isfinite().all() and each.grad.any()
        for each in (image, text)
    )


def test_contrast_on_paper():
    one_hot, matches = torch.eye(4), torch.eye(4, dtype=torch.bool)
    matches = objectives.even_targets(matches)
    at_one = objectives.contrastive(one_hot, one_hot, one_hot, one_hot, matches, torch.tensor(1.0))
    assert at_one.item() == pytest.approx(math.log(1 + 3 / math.e), rel=1e-5)
    ones = torch.ones(4, 4)
    blind = objectives.contrastive(
        one_hot[:1], one_hot[:1], ones, ones, matches[:1], torch.tensor(0.07)
    )
    assert blind.item() == pytest.approx(math.log(4), rel=1e-5)


def test_hard_negatives_are_never_matches():
    for _ in range(100):
        similarity = torch.randn(6, 6) * 50
        is_match = torch.rand(6, 6) < 0.6
        is_match.fill_diagonal_(True)
        drawn = objectives.hard_negatives(similarity, is_match)
        assert drawn.dtype == torch.int64
        for row, column in enumerate(drawn.tolist()):
            if is_match[row].all():
                assert column == row
            else:
                assert not is_match[row, column]


def test_where_everything_matches_a_row_gets_itself():
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert objectives.hard_negatives(torch.randn(5, 5), everything).tolist() == [0, 1, 2, 3, 4]
    everything[2, 4] = False  # however unlikely
    similarity = torch.zeros(5, 5)
    similarity[2, 4] = -1e4
    assert objectives.hard_negatives(similarity, everything).tolist() == [0, 1, 4, 3, 4]


def test_hard_negatives_follow_the_softmax():
    draws = 4000
    scores = [3.0, 1.0, 0.0, 2.0, -1.0, 2.5]
    matches = [True, False, False, False, False, True]
    similarity = torch.tensor(scores).expand(6, 6)
    drawn = torch.cat(
        [
            objectives.hard_negatives(similarity, torch.tensor(matches).expand(6, 6))
            for _ in range(draws // 6)
        ]
    )
    weights = [
        0.0 if is_match else math.exp(score)
        for score, is_match in zip(scores, matches, strict=True)
    ]
    for column, weight in enumerate(weights):
        share = weight / sum(weights)
        margin = 5 * math.sqrt(share * (1 - share) / draws) + 1e-3
        assert (drawn == column).float().mean().item() == pytest.approx(share, abs=margin), column


def slow_weights(scores: list[float], is_match: list[bool]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [
        0.0 if match else math.exp(score) / total + 1e-5
        for score, match in zip(scores, is_match, strict=True)
    ]


@pytest.mark.parametrize("own", [None, [5, 4, 3, 2]])
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.7, 1.0])
def test_given_numbers_choose_the_first_column_whose_cumulative_weight_exceeds_them(own, draw):
    similarity, is_match = torch.randn(4, 6) * 2, torch.rand(4, 6) < 0.3
    is_match[:, [0, 5]], is_match[:, 2], is_match[3] = (
        True,
        False,
        True,
    )  # a match at both ends, and no negative of the last
    own_B = None if own is None else torch.tensor(own)
    found = objectives.hard_negatives(similarity, is_match, torch.full((4,), draw), own_B)
    for row, column in enumerate(found[:3].tolist()):
        weights = slow_weights(similarity[row].tolist(), is_match[row].tolist())
        above = [each for each in range(6) if sum(weights[: each + 1]) > draw * sum(weights)]
        assert column == (above or [each for each in range(6) if weights[each]][-1:])[0]
    assert found[3] == (3 if own is None else 2)
    alone = objectives.hard_negatives(similarity[:1], is_match[:1], torch.tensor([draw]))
    assert alone.tolist() == found[:1].tolist()


def test_weights_of_negatives_and_one_row_without_given_numbers():
    similarity, is_match = (
        torch.tensor([[0.5, -1.0, 2.0, -30.0]]),
        torch.tensor([[False, True, False, False]]),
    )
    found = objectives.negative_weights(similarity.bfloat16(), is_match)
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(
        slow_weights([0.5, -1, 2, -30], [False, True, False, False]), rel=1e-5
    )
    assert objectives.hard_negatives(similarity, is_match).shape == (1,)


def test_ranking_leaves_out_other_true_candidates():
    scores, is_true = (
        torch.randn(3, 5),
        torch.tensor([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0]]).bool(),
    )
    total = 0.0
    for row, others in zip(scores.tolist(), is_true.tolist(), strict=True):
        counted = [score for place, score in enumerate(row) if place == 0 or not others[place]]
        total -= math.log(math.exp(row[0]) / sum(map(math.exp, counted)))
    assert objectives.listwise_ranking(scores, is_true).item() == pytest.approx(total / 3, rel=1e-5)
    assert objectives.listwise_ranking(scores.bfloat16(), is_true).dtype == torch.float32


def test_effective_rank_of_known_shares_and_of_a_value_that_rounding_made_negative():
    assert objectives.effective_rank(torch.tensor([0.5, 0.25, 0.25])).item() == pytest.approx(
        2**1.5
    )
    assert objectives.effective_rank(torch.tensor([4.0, 2, 2, -1e-6])).item() == pytest.approx(
        2**1.5, rel=1e-5
    )
    assert objectives.effective_rank(torch.full((7,), 0.01)).item() == pytest.approx(7)


def test_balance_keeps_leading_axes():
    first, gate = torch.rand(3, 4), torch.rand(3, 4)
    found = objectives.balance(first, gate, torch.tensor([2.0, 3.0, 4.0]))
    each = [objectives.balance(first[i], gate[i], torch.tensor(2.0 + i)).item() for i in range(3)]
    assert found.tolist() == pytest.approx(each)


def test_autocast_coarsens_neither_similarities_nor_singular_values_nor_labels():
    image, text = features(5), features(5)
    wanted = (
        objectives.similarities(image, text, torch.tensor(0.01)),
        objectives.singular_values(image, text),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = (
            objectives.similarities(image, text, torch.tensor(0.01)),
            objectives.singular_values(image, text),
        )
    for one, two in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, two)
    half = objectives.similarities(image.bfloat16(), text.bfloat16(), torch.tensor(0.01))
    assert (
        half.dtype
        == objectives.singular_values(image.bfloat16(), text.bfloat16()).dtype
        == torch.float32
    )
    for statistic in objectives.patch_statistics(torch.randn(1, 2, 4).bfloat16()):
        assert statistic.dtype == torch.float32
    assert (
        objectives.matching(torch.randn(3, 2).bfloat16(), torch.ones(3, dtype=torch.bool)).dtype
        == torch.float32
    )


def test_new_tensors_are_on_the_device_of_the_inputs():
    """The default device is another one here, and tensors of two devices do not mix."""
    similarity, is_match, draw = torch.randn(3, 3), torch.eye(3, dtype=torch.bool), torch.rand(3)
    with torch.device("meta"):
        assert objectives.hard_negatives(similarity, is_match, draw).device.type == "cpu"
        assert objectives.listwise_ranking(similarity, is_match).device.type == "cpu"


def test_matching_is_the_cross_entropy_of_two_classes():
    logits, labels = torch.randn(5, 2), torch.tensor([True, False, False, True, True])
    total = 0.0
    for (no, yes), label in zip(logits.tolist(), labels.tolist(), strict=True):
        probability = math.exp(yes) / (math.exp(no) + math.exp(yes))
        total -= math.log(probability if label else 1 - probability)
    assert objectives.matching(logits, labels).item() == pytest.approx(total / 5, rel=1e-5)


def test_answers_against_the_entropy_of_each_answer():
    logits, targets = (
        torch.randn(3, 4) * 3,
        torch.tensor([[0, 0.3, 1.0, 0], [0, 0, 0, 0], [0.9, 0.6, 0, 0.3]]),
    )
    total = 0.0
    for row, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        for logit, target in zip(row, wanted, strict=True):
            probability = 1 / (1 + math.exp(-logit))
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    assert objectives.answer_bce(logits, targets).item() == pytest.approx(total / 3, rel=1e-5)
    assert objectives.answer_bce(logits.bfloat16(), targets).dtype == torch.float32
