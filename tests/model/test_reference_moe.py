"""The published routing against a slow queue of tokens.

Letters: B batch, N tokens of a sequence, A = B·N tokens, D width, E experts.
"""

import math

import pytest
import torch
from torch import Tensor

from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.reference_moe import ReferenceMoE, capacity, gumbel_noise, queue
from eve_vl.model.router import chosen_ME
from eve_vl.model.tokens import Tokens
from helpers.random_weights import randomize
from helpers.slow_experts import in_rows, slow_ffn

B = 3
N = 7
D = 8
E = 4
NUM_IMAGE = 4  # tokens of N
WEIGHTS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def random_tokens() -> tuple[Tensor, Tensor]:
    """Return tokens with a ragged end, and where it is."""
    x_BND = torch.randn(B, N, D, generator=torch.Generator().manual_seed(1))
    return x_BND, torch.arange(N) >= torch.tensor([[7], [5], [6]])


def reference(*, drops: bool, num_image: int = NUM_IMAGE, modality: bool = True) -> ReferenceMoE:
    """Return a published mixture of experts; num_image: tokens of a whole image."""
    moe = ReferenceMoE(
        D,
        12,
        E,
        modality_routing=modality,
        activation="quick_gelu",
        num_image=num_image,
        drops=drops,
    )
    randomize(moe, 0)
    return moe


def slow_reference(
    moe: ReferenceMoE,
    x_AD: Tensor,
    is_text: list[bool],
    noise_AE: Tensor,
) -> tuple[Tensor, list[list[float]]]:
    """Token after token; first choices queue before second ones, and those beyond the capacity
    drop.

    Returns the output and, per modality, first choices, gates, entropies and choices with room of
    each expert.
    """
    if moe.router.modality_embed is not None:
        x_AD = x_AD + moe.router.modality_embed[torch.tensor(is_text).long()]
    logits_AE = x_AD @ moe.router.weight.T
    gates = logits_AE.softmax(1).tolist()
    A = len(gates)
    first = []
    second = []
    for token in range(A):
        choice = int(logits_AE[token].argmax())
        noisy = (logits_AE + noise_AE)[token].clone()
        noisy[choice] = -math.inf
        first.append(choice)
        second.append(int(noisy.argmax()))

    queues: list[list[int]] = [[] for _ in range(E)]
    for choices in (first, second):
        for token, expert in enumerate(choices):
            queues[expert].append(token)
    room = 2 * A
    if moe.drops:
        room = max(math.ceil(2 * A / E), 4)

    output = torch.zeros(A, D)
    stats = [[0.0] * 4 * E for _ in range(2)]
    for token in range(A):
        sums = stats[is_text[token]]
        sums[first[token]] += 1
        served = [e for e in (first[token], second[token]) if token in queues[e][:room]]
        total = sum(gates[token][e] for e in served)
        for e, gate in enumerate(gates[token]):
            sums[E + e] += gate
            sums[2 * E + e] -= gate * math.log(gate)
        for e in served:
            sums[3 * E + e] += 1
            weights = [getattr(moe.experts, name)[e] for name in WEIGHTS]
            output[token] += gates[token][e] / total * slow_ffn(x_AD[token], *weights)
    return output, stats


@pytest.mark.parametrize(
    ("drops", "boundary", "modality"),
    [
        (True, 4, True),
        (False, 4, True),
        (True, 2, True),
        (True, 4, False),
    ],
)
@torch.no_grad()
def test_published_routing_equals_a_slow_queue(drops, boundary, modality):
    """Padding queues too; the boundary of the modalities is where a whole image ends."""
    moe = reference(drops=drops, num_image=boundary, modality=modality)
    x_BND, is_padding_BN = random_tokens()
    noise_AE = torch.zeros(B * N, E)
    if drops:
        noise_AE = x_BND.flatten(0, 1)[:, :E] * 2
        noise_AE[:, 2] += 3  # the favourite has no room for all
        moe.noise = lambda _: noise_AE
    tokens = Tokens(x_BND=x_BND, num_image=NUM_IMAGE, is_padding_BN=is_padding_BN)
    rows = PackedTokens.of(tokens, 1, packs=False)
    x_SD = rows.pack(x_BND)

    is_text = [token % N >= boundary for token in range(B * N)]
    expected, expected_stats = slow_reference(moe, rows.unpack_flat(x_SD), is_text, noise_AE)
    y_SD, stats = moe(x_SD, rows)
    torch.testing.assert_close(y_SD, rows.pack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats, torch.tensor(expected_stats), rtol=1e-5, atol=1e-5)
    assert (chosen_ME(stats).sum() < 2 * B * N) == drops
    read = ReadPositions(row_M=torch.tensor([5, 0]), is_image=True)
    torch.testing.assert_close(moe(x_SD, rows, read)[0], y_SD[[5, 0]])


@pytest.mark.parametrize("num_image", [0, N], ids=["text", "image"])
@torch.no_grad()
def test_a_pass_of_one_modality_has_no_boundary(num_image):
    moe = reference(drops=True, num_image=2)
    moe.noise = torch.zeros_like
    x_SD, rows = in_rows(random_tokens()[0], num_image)
    is_text = [num_image == 0] * (B * N)
    noise_AE = torch.zeros(B * N, E)
    expected, expected_stats = slow_reference(moe, rows.unpack_flat(x_SD), is_text, noise_AE)
    y_SD, stats = moe(x_SD, rows)
    torch.testing.assert_close(y_SD, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats, torch.tensor(expected_stats), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "expected"),
    [
        (10, 4, 5),
        (9, 4, 5),
        (8, 4, 4),
        (4, 4, 4),
        (1, 32, 4),
        (640, 32, 40),
    ],
)
def test_capacity_is_an_even_share_of_both_choices_and_at_least_four(
    num_tokens, num_experts, expected
):
    assert capacity(num_tokens, num_experts) == expected


def test_first_choices_queue_before_second_ones():
    experts_S2 = torch.tensor(
        [
            [2, 0],
            [0, 2],
            [2, 1],
            [2, 0],
        ]
    )
    assert queue(experts_S2, 4).tolist() == [
        [0, 1],
        [0, 3],
        [1, 0],
        [2, 2],
    ]


def test_gumbel_noise_has_the_moments_and_quantiles_of_its_distribution(monkeypatch):
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(20_000, 2))
    assert noise.shape == (20_000, 2)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)

    monkeypatch.setattr(torch, "rand_like", lambda _: torch.tensor([0.0, 0.25, 0.5, 1.0]))
    quantiles = gumbel_noise(torch.empty(4))
    assert quantiles[1].item() == pytest.approx(-math.log(-math.log(0.25)))
    assert quantiles[2].item() == pytest.approx(-math.log(-math.log(0.5)))
    assert quantiles.isfinite().all()
    assert quantiles.tolist() == sorted(quantiles.tolist())


@pytest.mark.parametrize("drops", [True, False])
def test_new_tensors_are_on_the_device_of_the_inputs(drops):
    """The default device is another one here, and tensors of two devices do not mix."""
    moe = reference(drops=drops)
    x_SD, rows = in_rows(random_tokens()[0], NUM_IMAGE)
    with torch.device("meta"):
        y_SD, stats = moe(x_SD, rows)
    assert (y_SD.device.type, stats.device.type) == ("cpu", "cpu")
