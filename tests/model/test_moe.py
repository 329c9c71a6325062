"""The mixture of experts against a loop over tokens and the one-hot einsum form of the literature.

Letters: B batch, N tokens of a sequence, S rows, D width, M modalities, E experts.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.model.feed_forward import quick_gelu
from eve_vl.model.moe import MoE
from eve_vl.model.packing import ReadPositions
from eve_vl.model.router import chosen_ME
from helpers.slow_experts import (
    TwinStats,
    in_rows,
    random_moe,
    router_sums,
    slow_balance,
    slow_moe,
    slow_quick_gelu,
)

B = 3
N = 7
D = 8
NUM_IMAGE = 4  # tokens of N
NUM_REAL = 18  # tokens that are not padding


@dataclass
class Inputs:
    """Tokens, the first of them from the image, with or without a ragged end."""

    x_BND: Tensor
    is_text_BN: Tensor
    is_padding_BN: Tensor | None

    def run(self, moe: MoE) -> tuple[Tensor, Tensor]:
        """Return the output (B, N, D), 0 at padding, and the statistics."""
        num_image = int((~self.is_text_BN[0]).sum())
        x_SD, rows = in_rows(self.x_BND, num_image, self.is_padding_BN)
        y_SD, stats = moe(x_SD, rows)
        y_BND = rows.unpack(y_SD)
        if self.is_padding_BN is not None:
            y_BND = y_BND.masked_fill(self.is_padding_BN[:, :, None], 0)
        return y_BND, stats

    def run_slowly(self, moe: MoE) -> tuple[Tensor, TwinStats]:
        return slow_moe(moe, self.x_BND, self.is_text_BN, self.is_padding_BN)


def random_inputs(
    dtype: torch.dtype = torch.float32, *, padded: bool = True, dim: int = D
) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    x_BND = torch.randn(B, N, dim, generator=generator, dtype=torch.float64).to(dtype)
    is_text_BN = (torch.arange(N) >= NUM_IMAGE).expand(B, N)
    is_padding_BN = torch.arange(N) >= torch.tensor([[7], [5], [6]])
    return Inputs(x_BND.requires_grad_(), is_text_BN, is_padding_BN if padded else None)


@pytest.fixture(
    autouse=True,
    params=[1, 32],
    ids=["no tiles", "tiles"],
)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of texts, few here, are all real, or padding fills a tile."""
    monkeypatch.setattr("eve_vl.model.packing.TILE", request.param)


def balance_of(stats: Tensor) -> Tensor:
    sums = router_sums(stats)
    return objectives.balance(sums.first_E, sums.gate_E, sums.num_tokens)


def gradients(moe: MoE, x: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every output differently, by parameter name and "x"."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    loss = (output.double() * weights).sum()
    inputs = {"x": x, **dict(moe.named_parameters())}
    values = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    return dict(zip(inputs, values, strict=True))


def assert_gradients_close(
    moe: MoE,
    x: Tensor,
    output: Tensor,
    expected: Tensor,
    tolerance: float,
) -> None:
    """Check the output and all gradients."""
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    actual = gradients(moe, x, output)
    for name, gradient in gradients(moe, x, expected).items():
        scale = max(1.0, gradient.abs().max().item())
        assert (actual[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.float64, 1e-10),
    ],
)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k", "modality"),
    [
        (4, 2, True),
        (4, 2, False),
        (4, 1, True),
        (1, 1, True),
        (3, 3, False),
        (16, 2, True),
    ],
)
def test_output_and_all_gradients_equal_the_token_loop(
    dtype, tolerance, padded, experts, top_k, modality
):
    moe = random_moe(experts=experts, top_k=top_k, modality=modality).to(dtype)
    inputs = random_inputs(dtype, padded=padded)
    output, stats = inputs.run(moe)
    expected, twin = inputs.run_slowly(moe)
    assert_gradients_close(moe, inputs.x_BND, output, expected, tolerance)
    assert balance_of(stats).item() == pytest.approx(slow_balance(twin), rel=1e-5)


def test_widths_that_the_grouped_product_refuses_equal_the_token_loop():
    moe = random_moe(dim=6, ffn=10)
    inputs = random_inputs(dim=6)
    output, _ = inputs.run(moe)
    expected, _ = inputs.run_slowly(moe)
    assert_gradients_close(moe, inputs.x_BND, output, expected, 1e-5)


@pytest.mark.parametrize("padded", [True, False])
def test_bfloat16_autocast_stays_close(padded):
    """Rows are padded to tiles per expert and must come back in place."""
    moe = random_moe(dim=16, ffn=32, experts=5)
    inputs = random_inputs(padded=padded, dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        output, stats = inputs.run(moe)
    expected, twin = inputs.run_slowly(moe)
    assert output.dtype == torch.bfloat16
    assert balance_of(stats).item() == pytest.approx(slow_balance(twin), rel=1e-5)
    atol = 0.03 * expected.abs().max().item()
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=atol)
    actual = gradients(moe, inputs.x_BND, output)
    for name, gradient in gradients(moe, inputs.x_BND, expected).items():
        assert (actual[name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_autocast_reaches_the_experts_but_not_the_router():
    moe = random_moe()
    expert_types = []
    moe.experts.register_forward_pre_hook(lambda _, args: expert_types.append(args[0].dtype))
    x_SD, rows = in_rows(random_inputs().x_BND.bfloat16(), NUM_IMAGE)
    with torch.autocast("cpu", torch.bfloat16):
        _, stats = moe(x_SD.float(), rows)
    assert expert_types == [torch.bfloat16]
    assert stats.dtype == torch.float32
    torch.testing.assert_close(stats, moe(x_SD.float(), rows)[1])
    gates_SK, _, _ = moe.router(x_SD, rows)
    assert gates_SK.dtype == torch.float32


def test_an_expert_without_tokens_gets_zero_gradients_and_one_with_all_tokens_works():
    moe = random_moe(experts=4, top_k=2, modality=False)
    preference_E = torch.tensor([-1.0, 4.0, -2.0, 2.0])  # all to expert 1, then 3
    with torch.no_grad():
        moe.router.weight[:] = preference_E[:, None]
    inputs = random_inputs()
    inputs.x_BND = inputs.x_BND.detach().abs().requires_grad_()
    output, stats = inputs.run(moe)
    expected, _ = inputs.run_slowly(moe)
    assert_gradients_close(moe, inputs.x_BND, output, expected, 1e-5)
    assert router_sums(stats).first_E.tolist() == [0, NUM_REAL, 0, 0]
    for name, gradient in gradients(moe, inputs.x_BND, output).items():
        if name.startswith("experts."):
            assert [bool(expert.any()) for expert in gradient] == [False, True, False, True]
    worst = 4.0  # N · 1 · p₁
    assert balance_of(stats).item() == pytest.approx(worst, rel=0.01)


def test_statistics_equal_hand_counts():
    """The experts' axes are those of the tokens, so every choice can be read off."""
    moe = random_moe(
        dim=4,
        ffn=4,
        experts=3,
        top_k=2,
        modality=False,
    )
    with torch.no_grad():
        moe.router.weight[:] = torch.eye(4)[:3]
    x_BND = torch.tensor(
        [
            [
                [3.0, 2, 1, 0],
                [1, 3, 2, 0],
                [3, 1, 2, 0],
                [0, 0, 0, 0],
            ],
            [
                [2, 1, 3, 0],
                [3, 2, 1, 0],
                [9, 9, 9, 9],
                [1, 2, 3, 0],
            ],
        ]
    )
    is_text_BN = torch.tensor([[False, False, True, True]] * 2)
    is_padding_BN = torch.tensor(
        [
            [False, False, False, True],
            [False, False, True, False],
        ]
    )
    _, stats = Inputs(x_BND, is_text_BN, is_padding_BN).run(moe)
    # choices of images: (0,1) (1,2) (2,0) (0,1), of texts: (0,2) (2,1)
    sums = router_sums(stats)
    assert sums.first_E.tolist() == [3, 1, 2]
    assert chosen_ME(stats).tolist() == [
        [3, 3, 2],
        [1, 1, 2],
    ]
    assert sums.num_tokens.item() == 6
    gates = x_BND[~is_padding_BN][:, :3].softmax(-1)
    torch.testing.assert_close(sums.gate_E, gates.sum(0))
    torch.testing.assert_close(sums.entropy, -(gates * gates.log()).sum())


def test_gradient_of_the_balance_loss_flows_only_through_the_gates():
    moe = random_moe().double()
    inputs = random_inputs(torch.float64)
    _, stats = inputs.run(moe)
    assert not router_sums(stats).first_E.requires_grad
    balance_of(stats).backward()
    gradient = moe.router.weight.grad
    assert gradient is not None

    def balance_at(index: tuple[int, int], step: float) -> float:
        with torch.no_grad():
            moe.router.weight[index] += step
            value = slow_balance(inputs.run_slowly(moe)[1])
            moe.router.weight[index] -= step
        return value

    for index in [(0, 0), (1, 3), (3, 7)]:  # central differences so small that no choice flips
        slope = (balance_at(index, 1e-6) - balance_at(index, -1e-6)) / 2e-6
        assert slope == pytest.approx(gradient[index].item(), rel=1e-4, abs=1e-8)


def test_read_rows_are_those_of_the_whole_output():
    moe = random_moe()
    x_SD, rows = in_rows(random_inputs().x_BND, NUM_IMAGE)
    whole_SD, stats = moe(x_SD, rows)
    read = ReadPositions(row_M=torch.tensor([9, 2]), is_image=True)
    read_MD, read_stats = moe(x_SD, rows, read)
    torch.testing.assert_close(read_MD, whole_SD[[9, 2]])
    assert torch.equal(stats, read_stats)


def test_new_tensors_are_on_the_device_of_the_inputs():
    """The default device is another one here, and tensors of two devices do not mix."""
    moe = random_moe()
    x_SD, rows = in_rows(random_inputs().x_BND, NUM_IMAGE)
    x_RD = torch.randn(4, D).bfloat16()  # tiled
    expert_R = torch.tensor([0, 1, 1, 3])
    counts_E = torch.tensor([1, 2, 0, 1])
    with torch.device("meta"):
        y_SD, stats = moe(x_SD, rows)
        y_RD = moe.experts(x_RD, expert_R, counts_E)
    assert y_SD.device.type == "cpu"
    assert stats.device.type == "cpu"
    assert y_RD.device.type == "cpu"


def test_quick_gelu_equals_its_formula_with_gradients():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(101, dtype=torch.float64)
    torch.testing.assert_close(quick_gelu(x), slow_quick_gelu(x))
    (gradient,) = torch.autograd.grad((quick_gelu(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((slow_quick_gelu(x) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_one_hot_einsum_of_the_benchmark_equals_ours_when_nothing_is_dropped(monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"  # scripts import each other by name
    monkeypatch.syspath_prepend(str(folder))
    benchmark = importlib.import_module("moe")
    moe = random_moe(
        dim=8,
        ffn=16,
        experts=4,
        modality=False,
    )
    x_SD = torch.randn(20, 8, requires_grad=True)
    output, _ = moe(*in_rows(x_SD[None], 20))
    einsum = benchmark.einsum_moe(moe, x_SD, capacity=40)
    assert_gradients_close(moe, x_SD, output, einsum, 1e-5)
    assert not torch.allclose(benchmark.einsum_moe(moe, x_SD, capacity=2), einsum)
    sys.modules.pop("moe")
