"""Experts and their grouped product against plain products, expert by expert.

Letters: R rows, D width, E experts, I inputs, O outputs.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eve_vl.model.experts import grouped_linear, grouped_mm_works, row_tile
from helpers.slow_experts import random_moe, slow_ffn

WEIGHTS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def test_on_a_cpu_the_grouped_product_takes_float32_in_whole_16_bytes():
    weight_EOI = torch.randn(3, 12, 8)
    assert grouped_mm_works(torch.randn(5, 8), weight_EOI)
    assert not grouped_mm_works(torch.randn(5, 8).double(), weight_EOI.double())
    assert not grouped_mm_works(torch.randn(5, 6), torch.randn(3, 12, 6))  # rows of 24 bytes


@pytest.mark.parametrize("width", [8, 6], ids=["grouped product", "fallback"])
def test_rows_are_multiplied_by_the_matrix_of_their_group(width):
    x_RI = torch.randn(5, width)
    weight_EOI = torch.randn(3, 12, width)
    expected = torch.cat([x_RI[:2] @ weight_EOI[0].t(), x_RI[2:] @ weight_EOI[2].t()])
    y_RO = grouped_linear(x_RI, weight_EOI, torch.tensor([2, 0, 3]))
    torch.testing.assert_close(y_RO, expected)


@pytest.mark.parametrize(
    ("capability", "dtype", "width"),
    [
        ((7, 5), torch.bfloat16, 16),
        ((8, 0), torch.float32, 16),
        ((8, 0), torch.bfloat16, 12),
    ],
)
def test_on_cuda_the_grouped_product_needs_bfloat16_in_whole_16_bytes_and_ampere(
    monkeypatch, capability, dtype, width
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode():
        x_RI = torch.empty(40, width, dtype=dtype, device="cuda")
        weight_EOI = torch.empty(4, 32, width, dtype=dtype, device="cuda")
        assert not grouped_mm_works(x_RI, weight_EOI)


def test_on_cuda_the_grouped_product_does_not_wait_for_the_number_of_rows(monkeypatch):
    """On a pretended GPU, whose tensors have no values: reading one would raise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with FakeTensorMode():
        x_RI = torch.empty(40, 16, dtype=torch.bfloat16, device="cuda")
        weight_EOI = torch.empty(4, 32, 16, device="cuda")
        y_RO = grouped_linear(x_RI, weight_EOI, torch.empty(4, dtype=torch.long, device="cuda"))
        assert (y_RO.shape, y_RO.dtype, y_RO.device.type) == ((40, 32), torch.bfloat16, "cuda")


@pytest.mark.parametrize(
    ("dtype", "num_rows", "device", "tile"),
    [
        (torch.bfloat16, 1023, "cpu", 32),
        (torch.bfloat16, 1024, "cpu", 64),
        (torch.bfloat16, 1024, "meta", 1),
        (torch.float32, 1024, "cpu", 1),
    ],
)
def test_rows_are_tiled_only_in_bfloat16_on_a_cpu(dtype, num_rows, device, tile):
    assert row_tile(torch.empty(num_rows, 8, dtype=dtype, device=device), 4) == tile


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.15),
    ],
)
def test_experts_compute_in_the_type_of_their_rows(dtype, tolerance):
    experts = random_moe(experts=4).experts
    counts_E = torch.tensor([3, 0, 40, 1])
    x_RD = torch.randn(44, 8)
    expert_R = torch.arange(4).repeat_interleave(counts_E)
    y_RD = experts(x_RD.to(dtype), expert_R, counts_E)
    assert y_RD.dtype == dtype
    for row, expert in enumerate(expert_R.tolist()):
        expected = slow_ffn(x_RD[row], *(getattr(experts, name)[expert] for name in WEIGHTS))
        torch.testing.assert_close(y_RD[row].float(), expected, rtol=0, atol=tolerance)
