"""AdamW against a plain loop, Muon against torch's, and their state by parameter name."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import muon
from eve_vl.train.muon import Muon, orthogonalize
from eve_vl.train.optimizer import build_optimizer, initial_state, optimizer_tensors
from eve_vl.train.parameter_groups import muon_parts

CONFIG = TrainConfig(
    steps=10,
    lr=1.0,
    warmup=0.2,
    betas=(0.8, 0.9),
    weight_decay=0.1,
)
MUON = replace(CONFIG, optimizer="muon")


class SlowAdamW:
    """AdamW of one list of numbers, in Python's floats."""

    def __init__(self, values: list[float], weight_decay: float):
        self.values = values
        self.weight_decay = weight_decay
        self.first = [0.0] * len(values)
        self.second = [0.0] * len(values)
        self.num_steps = 0

    def step(self, gradients: list[float], rate: float) -> None:
        self.num_steps += 1
        for i, gradient in enumerate(gradients):
            self.first[i] = 0.8 * self.first[i] + 0.2 * gradient
            self.second[i] = 0.9 * self.second[i] + 0.1 * gradient**2
            mean = self.first[i] / (1 - 0.8**self.num_steps)
            square = self.second[i] / (1 - 0.9**self.num_steps)
            self.values[i] -= rate * self.weight_decay * self.values[i]
            self.values[i] -= rate * mean / (math.sqrt(square) + 1e-8)


def test_adamw_equals_a_slow_loop():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = build_optimizer(layer.named_parameters(), CONFIG)
    assert optimizer.defaults["fused"]
    slow = {
        "weight": SlowAdamW(layer.weight.flatten().tolist(), weight_decay=0.1),
        "bias": SlowAdamW(layer.bias.tolist(), weight_decay=0.0),
    }
    for rate in (0.5, 1.0, 0.9, 0.7, 0.3):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            slow[name].step(parameter.grad.flatten().tolist(), rate)
        optimizer.step()
    for name, parameter in layer.named_parameters():
        expected = pytest.approx(slow[name].values, rel=1e-4, abs=1e-5)
        assert parameter.flatten().tolist() == expected, name


SHAPES = {  # with the shape of the parts that Muon makes orthogonal
    "blocks.0.experts.fc1_weight": ((3, 12, 8), (12, 8)),
    "blocks.0.attn.qkv.weight": ((24, 8), (8, 8)),
    "blocks.0.attn.proj.weight": ((8, 8), (8, 8)),
    "blocks.0.experts.fc2_weight": ((3, 128, 6), (128, 6)),
}


def parts_of(tensors: dict[str, Tensor], rows_of_large: int) -> Iterator[Tensor]:
    """Yield copies of the parts of all matrices."""
    for name, tensor in tensors.items():
        rows, columns = SHAPES[name][1]
        rows = rows_of_large if rows == 128 else rows
        for part in tensor.reshape(-1, rows, columns):
            yield part.detach().clone()


@pytest.mark.parametrize(
    ("optimizer", "rows"),
    [
        ("muon", 128),
        ("block_muon", 64),
    ],
)
def test_muon_equals_torchs_on_every_part_of_a_matrix(optimizer, rows):
    torch.manual_seed(0)
    matrices = {name: nn.Parameter(torch.randn(shape)) for name, (shape, _) in SHAPES.items()}
    bias = nn.Parameter(torch.randn(8))
    parameters = [*matrices.items(), ("blocks.0.attn.proj.bias", bias)]
    config = replace(CONFIG, optimizer=optimizer)
    # torch's always multiplies in bfloat16
    ours = build_optimizer(parameters, config, products=torch.bfloat16)

    torch_parts = [nn.Parameter(part) for part in parts_of(dict(matrices), rows)]
    torch_bias = nn.Parameter(bias.detach().clone())
    torch_muon = torch.optim.Muon(
        torch_parts, lr=1.0, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    torch_adamw = torch.optim.AdamW(
        [torch_bias],
        lr=1.0,
        betas=(0.8, 0.9),
        weight_decay=0.0,
    )
    for step in range(4):
        gradients = {name: torch.randn_like(matrix) for name, matrix in matrices.items()}
        for name, matrix in matrices.items():
            matrix.grad = gradients[name]
        for part, gradient in zip(torch_parts, parts_of(gradients, rows), strict=True):
            part.grad = gradient
        bias.grad = torch.randn_like(bias)
        torch_bias.grad = bias.grad
        for each_optimizer in (ours, torch_muon, torch_adamw):
            for group in each_optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            each_optimizer.step()
    for part, expected in zip(parts_of(dict(matrices), rows), torch_parts, strict=True):
        torch.testing.assert_close(part, expected.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(bias.detach(), torch_bias.detach())


def test_muon_leaves_parameters_without_a_gradient_alone():
    """All others may be frozen, so that nothing is left to AdamW."""
    unused = nn.Parameter(torch.randn(2, 2))
    used = nn.Parameter(torch.randn(2, 2))
    before = unused.detach().clone()
    parameters = [("blocks.0.proj.weight", unused), ("blocks.1.proj.weight", used)]
    optimizer = build_optimizer(parameters, MUON)
    used.grad = torch.randn(2, 2)
    optimizer.step()
    assert torch.equal(unused, before)
    assert list(optimizer.state) == [used]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_muon_have_the_given_type(monkeypatch, dtype):
    dtypes = []

    def note_dtype(x: Tensor) -> Tensor:
        dtypes.append(x.dtype)
        return orthogonalize(x)

    monkeypatch.setattr(muon, "orthogonalize", note_dtype)
    parameter = nn.Parameter(torch.randn(2, 2))
    parameter.grad = torch.randn(2, 2)
    build_optimizer([("blocks.0.weight", parameter)], MUON, products=dtype).step()
    assert dtypes == [dtype]


@pytest.mark.parametrize(
    "shape",
    [
        (2, 6, 3),
        (2, 3, 6),
        (1, 4, 4),
    ],
)
def test_orthogonalized_matrix_has_singular_values_near_1_and_the_same_vectors(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(x)
    assert result.shape == x.shape
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    rotated = u.mT @ result @ v.mT
    singular_values = rotated.diagonal(dim1=1, dim2=2)
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3
    torch.testing.assert_close(rotated, torch.diag_embed(singular_values), rtol=0, atol=1e-4)
    assert not orthogonalize(torch.zeros(shape)).any()
    assert torch.equal(orthogonalize(x * 2**20), result)
    assert torch.equal(orthogonalize(x / 2**10), result)


@pytest.mark.parametrize("name", ["blocks.0.proj.weight", "head.weight"])
def test_initial_state_is_what_the_optimiser_starts_from(name):
    """Names, shapes and types of the state after a step without a gradient, whose moments are 0."""
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = build_optimizer([(name, parameter)], MUON)
    assert isinstance(optimizer, Muon)
    assert optimizer.adamw.defaults["fused"]
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = optimizer.state[parameter]
    with torch.device("meta"):  # the parameter's device counts, not the default one
        state = initial_state(parameter, muon_parts(name, parameter, "muon"))
    assert state.keys() == expected.keys()
    for key, value in state.items():
        assert value.shape == expected[key].shape
        assert value.dtype == expected[key].dtype
        assert value.device == expected[key].device
        assert not value.any()
        assert key == "step" or not expected[key].any()
    assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_optimizer_tensors_name_each_parameter_that_trains_before_any_step():
    block = nn.Linear(2, 3)
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([block]),
            "head": nn.Linear(3, 1),
        }
    )
    model["head"].requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), MUON)
    before = optimizer_tensors(model, optimizer)
    assert before.keys() == {
        "blocks.0.weight.momentum",
        "blocks.0.bias.step",
        "blocks.0.bias.exp_avg",
        "blocks.0.bias.exp_avg_sq",
    }
    assert not any(value.any() for value in before.values())
    block(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    after = optimizer_tensors(model, optimizer)
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert value.any(), name
        assert value.shape == before[name].shape, name
