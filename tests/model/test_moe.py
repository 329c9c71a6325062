"""The mixture of experts against a loop over tokens, and against the one-hot einsum form of the literature."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from eve_vl import objectives
from eve_vl.model.experts import grouped_linear, grouped_mm_works, row_tile
from eve_vl.model.feed_forward import quick_gelu
from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.reference_moe import ReferenceMoE, capacity, gumbel_noise, queue
from eve_vl.model.router import chosen_ME
from eve_vl.model.tokens import Tokens
from helpers.twins import (
    TwinStats,
    in_rows,
    random_moe,
    randomize,
    router_sums,
    slow_balance,
    slow_entropy,
    slow_ffn,
    slow_moe,
    slow_quick_gelu,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
B, N, D = 3, 7, 8


def inputs(
    dtype: torch.dtype = torch.float32, *, padded: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, 4 of the 7 from the image, and a ragged end."""
    x_BND = torch.randn(
        B, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)
    is_text_BN = (torch.arange(N) >= 4).expand(B, N)
    is_padding_BN = torch.arange(N) >= torch.tensor([[7], [5], [6]]) if padded else None
    return x_BND, is_text_BN, is_padding_BN


@pytest.fixture(autouse=True, params=[1, 32], ids=["no tiles", "tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of texts, few here, are all real, or padding fills a tile."""
    monkeypatch.setattr("eve_vl.model.packing.TILE", request.param)
    return request.param


def run(
    moe: MoE, x_BND: Tensor, is_text_BN: Tensor, is_padding_BN: Tensor | None
) -> tuple[Tensor, Tensor]:
    x_SD, rows = in_rows(x_BND, int((~is_text_BN[0]).sum()), is_padding_BN)
    y_SD, stats = moe(x_SD, rows)
    y_BND = rows.unpack(y_SD)
    return y_BND if is_padding_BN is None else y_BND.masked_fill(
        is_padding_BN[:, :, None], 0
    ), stats


def balance_of(stats: Tensor) -> Tensor:
    return objectives.balance(
        router_sums(stats).first_E, router_sums(stats).gate_E, router_sums(stats).num_tokens
    )


def gradients(
    moe: MoE, x_BND: Tensor, output: Tensor, extra: Tensor | float = 0.0
) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every output differently, by parameter name and "x"."""
    weights = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    names = {"x": x_BND, **dict(moe.named_parameters())}
    found = torch.autograd.grad((output.double() * weights).sum() + extra, list(names.values()))
    return dict(zip(names, found, strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k", "modality"),
    [(4, 2, True), (4, 2, False), (4, 1, True), (1, 1, True), (3, 3, False), (16, 2, True)],
)
def test_output_and_all_gradients_equal_the_token_loop(dtype, padded, experts, top_k, modality):
    moe = random_moe(experts=experts, top_k=top_k, modality=modality).to(dtype)
    x_BND, is_text_BN, is_padding_BN = inputs(dtype, padded=padded)
    x_BND.requires_grad_()
    output, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    expected, twin = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    torch.testing.assert_close(output, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert balance_of(stats).item() == pytest.approx(slow_balance(twin), rel=1e-5)
    assert_same(gradients(moe, x_BND, output), gradients(moe, x_BND, expected), TOLERANCE[dtype])


def test_float32_takes_the_grouped_product_and_float64_the_fallback():
    weight_EOI = torch.randn(3, 12, 8)
    assert grouped_mm_works(torch.randn(5, 8), weight_EOI)
    assert not grouped_mm_works(torch.randn(5, 8).double(), weight_EOI.double())
    assert not grouped_mm_works(torch.randn(5, 6), torch.randn(3, 12, 6))  # rows of 24 bytes
    counts_E = torch.tensor([2, 0, 3])
    for width in (8, 6):
        x_RI, weight_EOI = torch.randn(5, width), torch.randn(3, 12, width)
        expected = torch.cat([x_RI[:2] @ weight_EOI[0].t(), x_RI[2:] @ weight_EOI[2].t()])
        torch.testing.assert_close(grouped_linear(x_RI, weight_EOI, counts_E), expected)


@pytest.mark.parametrize(
    ("capability", "dtype", "width"),
    [((7, 5), torch.bfloat16, 16), ((8, 0), torch.float32, 16), ((8, 0), torch.bfloat16, 12)],
)
def test_on_cuda_the_grouped_product_takes_bfloat16_in_whole_16_bytes_on_ampere_or_later(
    monkeypatch, capability, dtype, width
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode():
        x_RI, weight_EOI = (
            torch.empty(*shape, width, dtype=dtype, device="cuda") for shape in ((40,), (4, 32))
        )
        assert not grouped_mm_works(x_RI, weight_EOI)


def test_on_cuda_the_grouped_product_has_its_shapes_and_types_without_asking_how_many_rows_there_are(
    monkeypatch,
):
    """On a pretended GPU, whose tensors have no values: reading one would raise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with FakeTensorMode():
        x_RI = torch.empty(40, 16, dtype=torch.bfloat16, device="cuda")
        weight_EOI = torch.empty(4, 32, 16, device="cuda")
        y_RO = grouped_linear(x_RI, weight_EOI, torch.empty(4, dtype=torch.long, device="cuda"))
        assert (y_RO.shape, y_RO.dtype, y_RO.device.type) == ((40, 32), torch.bfloat16, "cuda")


def test_widths_that_the_grouped_product_refuses_still_work():
    moe = random_moe(dim=6, ffn=10)
    x_BND, is_text_BN, is_padding_BN = torch.randn(B, N, 6), *inputs()[1:]
    x_BND.requires_grad_()
    output, _ = run(moe, x_BND, is_text_BN, is_padding_BN)
    expected, _ = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert_same(gradients(moe, x_BND, output), gradients(moe, x_BND, expected), 1e-5)


@pytest.mark.parametrize("padded", [True, False])
def test_bfloat16_autocast_stays_close(padded):
    """Exercises the row tiles: rows are padded per expert and must come back in place."""
    moe = random_moe(dim=16, ffn=32, experts=5)
    x_BND, is_text_BN, is_padding_BN = torch.randn(B, N, 16), inputs()[1], inputs(padded=padded)[2]
    x_BND.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    assert output.dtype == torch.bfloat16
    assert router_sums(stats).gate_E.dtype == torch.float32
    expected, twin = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    assert balance_of(stats).item() == pytest.approx(slow_balance(twin), rel=1e-5)
    torch.testing.assert_close(
        output.float(), expected, rtol=0, atol=0.03 * expected.abs().max().item()
    )
    found, exact = gradients(moe, x_BND, output), gradients(moe, x_BND, expected)
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_an_expert_without_tokens_gets_an_exactly_zero_gradient_and_one_with_all_of_them_works():
    moe = random_moe(experts=4, top_k=2, modality=False)
    x_BND, is_text_BN, is_padding_BN = inputs()
    x_BND = x_BND.abs()
    with torch.no_grad():
        moe.router.weight[:] = torch.tensor([-1.0, 4.0, -2.0, 2.0])[
            :, None
        ]  # all to expert 1, then 3
    x_BND.requires_grad_()
    output, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    expected, _ = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert router_sums(stats).first_E.tolist() == [0, 18, 0, 0]
    found = gradients(moe, x_BND, output)
    assert_same(found, gradients(moe, x_BND, expected), 1e-5)
    for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
        gradient = found[f"experts.{name}"]
        assert not gradient[0].any()
        assert not gradient[2].any()
        assert gradient[1].any()
        assert gradient[3].any()
    assert balance_of(stats).item() == pytest.approx(
        4.0, rel=0.01
    )  # N · 1 · p₁, the worst there is


def test_modality_embedding_reaches_the_router_alone():
    moe = random_moe(
        experts=4, top_k=4
    )  # all experts: the output depends on b_m through the gates only
    x_BND, is_text_BN, _ = inputs()
    x_SD, rows = in_rows(x_BND, 4)
    gates, _, _ = moe.router(x_SD, rows)
    assert moe.router.modality_embed is not None
    with torch.no_grad():
        seen = x_BND + moe.router.modality_embed[is_text_BN.long()]
        expected = (seen.flatten(0, 1) @ moe.router.weight.t()).softmax(-1)
    torch.testing.assert_close(rows.unpack_flat(gates), expected.sort(-1, descending=True).values)
    as_image, _ = run(moe, x_BND, torch.zeros(B, N, dtype=torch.bool), None)
    as_text, _ = run(moe, x_BND, torch.ones(B, N, dtype=torch.bool), None)
    assert not torch.allclose(as_image, as_text)
    with torch.no_grad():
        moe.router.modality_embed[1] = moe.router.modality_embed[0]
    torch.testing.assert_close(
        as_image, run(moe, x_BND, torch.ones(B, N, dtype=torch.bool), None)[0]
    )
    without = random_moe(modality=False)
    assert [name for name, _ in without.router.named_parameters()] == ["weight"]


def test_statistics_equal_hand_counts():
    """Two experts' axes, tokens on them: every choice can be seen with the eye."""
    moe = random_moe(dim=4, ffn=4, experts=3, top_k=2, modality=False)
    with torch.no_grad():
        moe.router.weight[:] = torch.eye(4)[:3]
    x_BND = torch.tensor(
        [
            [[3.0, 2, 1, 0], [1, 3, 2, 0], [3, 1, 2, 0], [0, 0, 0, 0]],
            [[2, 1, 3, 0], [3, 2, 1, 0], [9, 9, 9, 9], [1, 2, 3, 0]],
        ]
    )
    is_text_BN = torch.tensor([[False, False, True, True]] * 2)
    is_padding_BN = torch.tensor([[False, False, False, True], [False, False, True, False]])
    _, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    # choices: (0,1) (1,2) | (0,2) pad || (2,0) (0,1) | pad (2,1); image tokens: first two of each row
    assert router_sums(stats).first_E.tolist() == [3, 1, 2]
    assert chosen_ME(stats).tolist() == [[3, 3, 2], [1, 1, 2]]
    assert router_sums(stats).num_tokens.item() == 6
    gates = torch.tensor(
        [[3.0, 2, 1], [1, 3, 2], [3, 1, 2], [2, 1, 3], [3, 2, 1], [1, 2, 3]]
    ).softmax(-1)
    torch.testing.assert_close(router_sums(stats).gate_E, gates.sum(0))
    torch.testing.assert_close(router_sums(stats).entropy, -(gates * gates.log()).sum())


def test_statistics_equal_the_loops_counts():
    moe = random_moe(experts=5, top_k=3)
    x_BND, is_text_BN, is_padding_BN = inputs()
    _, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    _, twin = slow_moe(moe, x_BND, is_text_BN, is_padding_BN)
    chosen = [[0.0] * 5, [0.0] * 5]
    for choices, is_text in zip(twin.choices, twin.is_text, strict=True):
        for expert in choices:
            chosen[is_text][expert] += 1
    assert chosen_ME(stats).tolist() == chosen
    assert router_sums(stats).first_E.tolist() == [
        sum(choice[0] == expert for choice in twin.choices) for expert in range(5)
    ]
    assert router_sums(stats).entropy.item() == pytest.approx(slow_entropy(twin), rel=1e-5)
    assert router_sums(stats).num_tokens.item() == len(twin.gates) == 18
    assert [router_sums(stats).gate_E[e].item() for e in range(5)] == pytest.approx(
        [sum(gates[e] for gates in twin.gates) for e in range(5)], rel=1e-5
    )


def test_balance_loss_is_1_when_even_and_its_gradient_flows_through_the_gates_alone():
    even = TwinStats(gates=[[0.5, 0.5]] * 4, choices=[[0], [1], [0], [1]])
    assert slow_balance(even) == 1
    moe = random_moe().double()
    x_BND, is_text_BN, is_padding_BN = inputs(torch.float64)
    _, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    assert not router_sums(stats).first_E.requires_grad
    balance_of(stats).backward()
    gradient = moe.router.weight.grad
    assert gradient is not None
    for index in [(0, 0), (1, 3), (3, 7)]:  # central differences; small enough that no choice flips
        numbers = []
        for sign in (1, -1):
            with torch.no_grad():
                moe.router.weight[index] += sign * 1e-6
                numbers.append(slow_balance(slow_moe(moe, x_BND, is_text_BN, is_padding_BN)[1]))
                moe.router.weight[index] -= sign * 1e-6
        assert (numbers[0] - numbers[1]) / 2e-6 == pytest.approx(
            gradient[index].item(), rel=1e-4, abs=1e-8
        )


def test_contents_of_padding_change_nothing_and_are_not_counted():
    moe = random_moe()
    x_BND, is_text_BN, is_padding_BN = inputs()
    assert is_padding_BN is not None
    output, stats = run(moe, x_BND, is_text_BN, is_padding_BN)
    other = torch.where(is_padding_BN[:, :, None], torch.full_like(x_BND, 1e3), x_BND)
    again, stats_again = run(moe, other, is_text_BN, is_padding_BN)
    assert torch.equal(output, again)
    assert torch.equal(stats, stats_again)


def test_a_samples_output_never_depends_on_its_batch_mates():
    """As in an overfull expert of capacity-based routing: the mates all crowd onto this sample's experts."""
    moe = random_moe(experts=4)
    x_BND, is_text_BN, is_padding_BN = inputs()
    assert is_padding_BN is not None
    together, _ = run(moe, x_BND, is_text_BN, is_padding_BN)
    for b in range(B):
        alone, _ = run(moe, x_BND[b : b + 1], is_text_BN[b : b + 1], is_padding_BN[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-5, atol=1e-6)
        crowd = x_BND[b : b + 1].repeat(40, 1, 1)
        crowded, _ = run(
            moe, crowd, is_text_BN[b : b + 1].expand(40, N), is_padding_BN[b : b + 1].expand(40, N)
        )
        torch.testing.assert_close(crowded[17], together[b], rtol=1e-5, atol=1e-6)
    order = torch.tensor([2, 0, 1])
    permuted, _ = run(moe, x_BND[order], is_text_BN[order], is_padding_BN[order])
    torch.testing.assert_close(permuted, together[order], rtol=1e-5, atol=1e-6)


# The published arithmetic


def reference(*, drops: bool, num_image: int = 4, modality: bool = True) -> ReferenceMoE:
    moe = ReferenceMoE(
        8,
        12,
        4,
        modality_routing=modality,
        activation="quick_gelu",
        num_image=num_image,
        drops=drops,
    )
    randomize(moe, 0)
    return moe


def slow_reference(
    moe: ReferenceMoE, x_AD: Tensor, is_text: list[bool], noise_AE: Tensor
) -> tuple[Tensor, list[list[float]]]:
    """Token after token: first choices queue before second ones; what is beyond the capacity is left out. Returns the output
    and, per modality, first choices, gates, entropies and choices with room of each expert."""
    if moe.router.modality_embed is not None:
        x_AD = x_AD + moe.router.modality_embed[[int(each) for each in is_text]]
    gates = (x_AD @ moe.router.weight.T).softmax(1).tolist()
    noisy = (x_AD @ moe.router.weight.T + noise_AE).tolist()
    A, E = len(gates), len(gates[0])
    first = [max(range(E), key=row.__getitem__) for row in gates]
    second = [
        max((e for e in range(E) if e != own), key=row.__getitem__)
        for row, own in zip(noisy, first, strict=True)
    ]
    room = max(-(-2 * A // E), 4) if moe.drops else 2 * A
    queues: list[list[tuple[int, int]]] = [[] for _ in range(E)]
    for choice, chosen in enumerate((first, second)):
        for token, expert in enumerate(chosen):
            queues[expert].append((token, choice))
    kept = {(token, expert) for expert, each in enumerate(queues) for token, _ in each[:room]}
    output, stats = torch.zeros(A, 8), [[0.0] * 4 * E for _ in range(2)]
    for token in range(A):
        chosen = [e for e in (first[token], second[token]) if (token, e) in kept]
        sums = stats[is_text[token]]
        sums[first[token]] += 1
        for e in range(E):
            sums[E + e] += gates[token][e]
            sums[2 * E + e] -= gates[token][e] * math.log(gates[token][e])
            sums[3 * E + e] += e in chosen
            if e in chosen:
                weights = (
                    getattr(moe.experts, name)[e]
                    for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
                )
                output[token] += (
                    gates[token][e]
                    / sum(gates[token][each] for each in chosen)
                    * slow_ffn(x_AD[token], *weights)
                )
    return output, stats


@pytest.mark.parametrize(
    ("drops", "boundary", "modality"),
    [(True, 4, True), (False, 4, True), (True, 2, True), (True, 4, False)],
)
@torch.no_grad()
def test_the_published_routing_equals_a_slow_queue(drops, boundary, modality):
    """Padding queues too; the boundary of the modalities is where a whole image ends."""
    moe, noise = (
        reference(drops=drops, num_image=boundary, modality=modality),
        inputs()[0].flatten(0, 1)[:, :4] * 2,
    )
    noise[:, 2] += 3  # the favourite has no room for all
    moe.noise = (lambda _: noise) if drops else None
    x_BND, _, is_padding_BN = inputs()
    rows = PackedTokens.of(
        Tokens(x_BND=x_BND, num_image=4, is_padding_BN=is_padding_BN), 1, packs=False
    )
    x_SD = rows.pack(x_BND)
    expected, stats = slow_reference(
        moe,
        rows.unpack_flat(x_SD),
        [token % N >= boundary for token in range(B * N)],
        noise * drops,
    )
    found, found_stats = moe(x_SD, rows)
    torch.testing.assert_close(found, rows.pack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_stats, torch.tensor(stats), rtol=1e-5, atol=1e-5)
    assert (chosen_ME(found_stats).sum() < 2 * B * N) == drops
    read = ReadPositions(row_M=torch.tensor([5, 0]), is_image=True)
    torch.testing.assert_close(moe(x_SD, rows, read)[0], found[[5, 0]])


@pytest.mark.parametrize("num_image", [0, N])
@torch.no_grad()
def test_a_pass_of_one_modality_has_no_boundary(num_image):
    moe, x_BND = reference(drops=True, num_image=2), inputs()[0]
    moe.noise = torch.zeros_like
    x_SD, rows = in_rows(x_BND, num_image)
    expected, stats = slow_reference(
        moe, rows.unpack_flat(x_SD), [not num_image] * (B * N), torch.zeros(B * N, 4)
    )
    found, found_stats = moe(x_SD, rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_stats, torch.tensor(stats), rtol=1e-5, atol=1e-5)


def test_capacity_is_an_even_share_of_both_choices_and_at_least_four():
    assert [
        capacity(*sizes) for sizes in ((10, 4), (9, 4), (8, 4), (4, 4), (1, 32), (640, 32))
    ] == [5, 5, 4, 4, 4, 40]


def test_places_in_queues():
    experts_S2 = torch.tensor([[2, 0], [0, 2], [2, 1], [2, 0]])
    assert queue(experts_S2, 4).tolist() == [[0, 1], [0, 3], [1, 0], [2, 2]]


def test_gumbel_noise_is_that_of_the_quantiles(monkeypatch):
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(20_000, 2))
    assert noise.shape == (20_000, 2)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)
    monkeypatch.setattr(torch, "rand_like", lambda _: torch.tensor([0.0, 0.25, 0.5, 1.0]))
    found = gumbel_noise(torch.empty(4))
    assert found[1:3].tolist() == pytest.approx(
        [-math.log(-math.log(each)) for each in (0.25, 0.5)]
    )
    assert found.isfinite().all() and found.tolist() == sorted(found.tolist())


def test_noise_comes_with_drops_only():
    assert reference(drops=True).noise is gumbel_noise and reference(drops=False).noise is None


# Types and devices


def test_rows_are_tiled_in_bfloat16_on_the_cpu_only():
    sizes = [
        (dtype, num, device)
        for dtype in (torch.bfloat16, torch.float32)
        for num in (1023, 1024)
        for device in ("cpu", "meta")
    ]
    tiles = [
        row_tile(torch.empty(num, 8, dtype=dtype, device=device), 4) for dtype, num, device in sizes
    ]
    assert tiles == [32, 1, 64, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_compute_in_the_type_of_their_rows(dtype):
    moe, counts_E = random_moe(experts=4), torch.tensor([3, 0, 40, 1])
    x_RD, expert_R = torch.randn(44, 8), torch.arange(4).repeat_interleave(counts_E)
    found = moe.experts(x_RD.to(dtype), expert_R, counts_E)
    assert found.dtype == dtype
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    for row, expert in enumerate(expert_R.tolist()):
        expected = slow_ffn(x_RD[row], *(getattr(moe.experts, name)[expert] for name in names))
        torch.testing.assert_close(
            found[row].float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.15
        )


@pytest.mark.parametrize("build", [random_moe, lambda: reference(drops=True)])
def test_autocast_reaches_the_experts_and_not_the_router(build):
    moe, seen = build(), []
    moe.noise = torch.zeros_like
    moe.experts.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    x_SD, rows = in_rows(inputs()[0].bfloat16(), 4)
    with torch.autocast("cpu", torch.bfloat16):
        _, stats = moe(x_SD.float(), rows)
    assert seen == [torch.bfloat16]
    assert stats.dtype == torch.float32
    torch.testing.assert_close(stats, moe(x_SD.float(), rows)[1])
    gates, _, _ = moe.router(x_SD, rows)
    assert gates.dtype == torch.float32


def test_read_rows_are_those_of_the_whole_output():
    moe = random_moe()
    x_SD, rows = in_rows(inputs()[0], 4)
    whole, stats = moe(x_SD, rows)
    some, same = moe(x_SD, rows, ReadPositions(row_M=torch.tensor([9, 2]), is_image=True))
    torch.testing.assert_close(some, whole[[9, 2]])
    assert torch.equal(stats, same)


def test_new_tensors_are_on_the_device_of_the_inputs():
    """The default device is another one here, and tensors of two devices do not mix."""
    x_SD, rows = in_rows(inputs()[0], 4)
    x_RD, expert_R, counts_E = (
        torch.randn(4, 8).bfloat16(),
        torch.tensor([0, 1, 1, 3]),
        torch.tensor([1, 2, 0, 1]),
    )
    moes = random_moe(), reference(drops=True), reference(drops=False)
    with torch.device("meta"):
        for moe in moes:
            assert {each.device.type for each in moe(x_SD, rows)} == {"cpu"}
        assert moes[0].experts(x_RD, expert_R, counts_E).device.type == "cpu"


def test_quick_gelu_and_its_gradient():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), slow_quick_gelu(x))
    assert torch.autograd.gradcheck(quick_gelu, (x,))
    weights = torch.randn(101, dtype=torch.float64)
    (found,) = torch.autograd.grad((quick_gelu(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((slow_quick_gelu(x) * weights).sum(), x)
    torch.testing.assert_close(found, expected)


def benchmark_module() -> ModuleType:
    sys.path.insert(
        0, str(Path(__file__).parents[2] / "benchmarks")
    )  # scripts import each other by name
    return importlib.import_module("moe")


def test_one_hot_einsum_twin_of_the_benchmark_equals_ours_when_nothing_is_dropped():
    bench = benchmark_module()
    moe = random_moe(dim=8, ffn=16, experts=4, modality=False)
    x_SD = torch.randn(20, 8, requires_grad=True)
    ours, _ = moe(*in_rows(x_SD[None], 20))
    einsum = bench.einsum_moe(moe, x_SD, capacity=40)
    torch.testing.assert_close(ours, einsum, rtol=1e-5, atol=1e-5)
    assert_same(gradients(moe, x_SD, ours), gradients(moe, x_SD, einsum), 1e-5)
    dropped = bench.einsum_moe(moe, x_SD, capacity=2)
    assert not torch.allclose(dropped, einsum)


def test_randomized_weights_make_the_comparisons_worth_something():
    moe = random_moe()
    assert all(bool(parameter.abs().min() > 1e-6) for parameter in moe.parameters())
    before = [parameter.clone() for parameter in moe.parameters()]
    randomize(moe, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, moe.parameters(), strict=True))
