"""Schedule against hand-computed numbers, AdamW against a plain loop, Muon against torch's."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from eve_vl.config import TrainConfig
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from eve_vl.train import muon
from eve_vl.train.learning_rate import learning_rate, lr_scales
from eve_vl.train.muon import Muon, orthogonalize
from eve_vl.train.optimizer import build_optimizer, initial_state
from eve_vl.train.parameter_groups import is_decayed, muon_parts
from eve_vl.train.running_averages import running_averages, running_averages_restored
from eve_vl.train.weight_averages import WeightAverages
from helpers.twins import tiny_config


def config_of(**changes: object) -> TrainConfig:
    return replace(TrainConfig(steps=10, lr=1.0, warmup=0.2), **changes)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # two steps of warm-up, then eight of decay, the first of which is at the peak
        ("linear", [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.0, 0.5, 1.0, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806]),
    ],
)
def test_schedule_by_hand(schedule, expected):
    rates = [learning_rate(step, config_of(schedule=schedule)) for step in range(10)]
    assert rates == pytest.approx(expected, abs=1e-5)
    scaled = [learning_rate(step, config_of(schedule=schedule, lr=3e-4)) for step in range(10)]
    assert scaled == pytest.approx([3e-4 * rate for rate in expected], abs=1e-8)


def test_without_warm_up_it_starts_at_the_peak():
    assert learning_rate(0, config_of(warmup=0.0)) == 1.0
    assert learning_rate(0, config_of(warmup=0.0, steps=1)) == 1.0
    assert learning_rate(99, config_of(warmup=0.0, steps=100, schedule="linear")) == pytest.approx(
        0.01
    )


def test_the_papers_run_warms_up_and_ends_near_zero():
    config = TrainConfig()
    peak = round(0.02 * 480_000)
    rates = [learning_rate(step, config) for step in (0, peak // 2, peak, 480_000 - 1)]
    assert rates == pytest.approx([0.0, 2.5e-4, 5e-4, 0.0], abs=1e-9)


def test_weight_decay_spares_biases_norms_and_everything_one_dimensional():
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    decayed = {name for name, parameter in task.named_parameters() if is_decayed(name, parameter)}
    for name, parameter in task.named_parameters():
        is_matrix = parameter.ndim >= 2 and "bias" not in name
        assert (name in decayed) == is_matrix, name
    assert "encoder.blocks.2.ffn.experts.fc1_weight" in decayed
    assert (
        "encoder.blocks.2.ffn.experts.fc1_bias" not in decayed
    )  # 2-D only because experts are stacked
    assert task.encoder.blocks[2].ffn.experts.fc1_bias.ndim == 2  # pyright: ignore
    spared = ("norm.weight", "scale1", "q_bias", "cls", "type_embed", "mask_token")
    assert not any(name.endswith(spared) for name in decayed)
    optimizer = build_optimizer(task.named_parameters(), config_of(weight_decay=0.3))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.3, 0.0}
    by_id = {id(parameter): name for name, parameter in task.named_parameters()}
    assert {by_id[id(parameter)] for parameter in groups[0.3]} == decayed
    assert sum(len(params) for params in groups.values()) == len(by_id)
    assert optimizer.defaults["fused"]


def test_frozen_parameters_are_left_out():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(layer.named_parameters(), config_of())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_new_parameters_learn_at_a_rate_of_their_own():
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    by_id = {id(parameter): name for name, parameter in task.named_parameters()}
    new = {name for name in by_id.values() if name.startswith("token_head")}
    optimizer = build_optimizer(
        task.named_parameters(), config_of(head_lr_multiplier=10.0, weight_decay=0.3), new
    )
    assert len(optimizer.param_groups) == 4
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = by_id[id(parameter)]
            assert group["lr_scale"] == (10.0 if name in new else 1.0), name
            assert group["weight_decay"] == (0.3 if is_decayed(name, parameter) else 0.0), name
            seen.append(name)
    assert sorted(seen) == sorted(by_id.values())
    plain = build_optimizer(task.named_parameters(), config_of(head_lr_multiplier=10.0))
    assert {group["lr_scale"] for group in plain.param_groups} == {1.0}


def test_fused_adamw_equals_a_plain_loop():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    config = config_of(betas=(0.8, 0.9), weight_decay=0.1)
    optimizer = build_optimizer(layer.named_parameters(), config)
    values = {
        name: parameter.detach().double().flatten().tolist()
        for name, parameter in layer.named_parameters()
    }
    first = {name: [0.0] * len(numbers) for name, numbers in values.items()}
    second = {name: [0.0] * len(numbers) for name, numbers in values.items()}
    for step in range(1, 6):
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            for i, gradient in enumerate(parameter.grad.flatten().tolist()):
                first[name][i] = 0.8 * first[name][i] + 0.2 * gradient
                second[name][i] = 0.9 * second[name][i] + 0.1 * gradient**2
                mean, square = first[name][i] / (1 - 0.8**step), second[name][i] / (1 - 0.9**step)
                decay = 0.1 if name == "weight" else 0.0
                values[name][i] -= rate * decay * values[name][i]
                values[name][i] -= rate * mean / (math.sqrt(square) + 1e-8)
        optimizer.step()
    for name, parameter in layer.named_parameters():
        assert parameter.detach().flatten().tolist() == pytest.approx(
            values[name], rel=1e-4, abs=1e-5
        ), name


def test_muon_takes_the_matrices_of_the_blocks():
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    parts = {
        name: muon_parts(name, parameter, "muon") for name, parameter in task.named_parameters()
    }
    taken = {name: count for name, count in parts.items() if count}
    kinds = (
        "attn.qkv.weight",
        "attn.proj.weight",
        "fc1.weight",
        "fc2.weight",
        "experts.fc1_weight",
        "experts.fc2_weight",
    )
    assert {name for name in parts if "blocks" in name and name.endswith(kinds)} == set(taken)
    assert any(name.startswith("pixel_decoder") for name in taken)
    assert {name for name, count in taken.items() if count == 3} == {
        name for name in parts if name.endswith("qkv.weight")
    }


@pytest.mark.parametrize(
    ("name", "shape", "parts", "of_64_rows"),
    [
        ("attn.qkv", (576, 192), 3, 9),
        ("attn.qkv", (288, 96), 3, 3),
        ("attn.proj", (192, 192), 1, 3),
        ("attn.proj", (96, 96), 1, 1),
        ("experts.fc2_", (4, 192, 384), 1, 3),
        ("experts.router", (4, 192), 0, 0),
    ],
)
def test_block_muon_takes_64_rows_at_a_time_where_64_divides_them(name, shape, parts, of_64_rows):
    parameter = nn.Parameter(torch.empty(shape))
    name = f"blocks.0.{name}" + ("weight" if name.endswith("_") else ".weight")
    found = {kind: muon_parts(name, parameter, kind) for kind in ("adamw", "muon", "block_muon")}
    assert found == {"adamw": 0, "muon": parts, "block_muon": of_64_rows}


@pytest.mark.parametrize(("kind", "rows"), [("muon", 128), ("block_muon", 64)])
def test_muon_equals_torchs_on_every_part_of_a_matrix(kind, rows):
    torch.manual_seed(0)
    named = {
        "blocks.0.experts.fc1_weight": nn.Parameter(torch.randn(3, 12, 8)),
        "blocks.0.attn.qkv.weight": nn.Parameter(torch.randn(24, 8)),
        "blocks.0.attn.proj.weight": nn.Parameter(torch.randn(8, 8)),
        "blocks.0.experts.fc2_weight": nn.Parameter(torch.randn(3, 128, 6)),
        "blocks.0.attn.proj.bias": nn.Parameter(torch.randn(8)),
    }
    config = config_of(optimizer=kind, weight_decay=0.1, betas=(0.8, 0.9))
    ours = build_optimizer(
        named.items(), config, products=torch.bfloat16
    )  # torch's always multiplies in bfloat16

    def matrices(take: str) -> list[torch.Tensor]:
        tensors = [
            getattr(parameter, take)
            for name, parameter in named.items()
            if not name.endswith("bias")
        ]
        rows_of = {
            24: 8,
            128: rows,
        }  # of a part: query, key or value, and a matrix or 64 of its rows
        shapes = [
            (rows_of.get(tensor.shape[-2], tensor.shape[-2]), tensor.shape[-1])
            for tensor in tensors
        ]
        return [
            m.clone()
            for tensor, shape in zip(tensors, shapes, strict=True)
            for m in tensor.reshape(-1, *shape)
        ]

    single = [nn.Parameter(matrix) for matrix in matrices("data")]
    bias = nn.Parameter(named["blocks.0.attn.proj.bias"].detach().clone())
    theirs = torch.optim.Muon(
        single, lr=1.0, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([bias], lr=1.0, betas=(0.8, 0.9), weight_decay=0.0)
    for step in range(4):
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        for parameter, gradient in zip(single, matrices("grad"), strict=True):
            parameter.grad = gradient
        bias.grad = named["blocks.0.attn.proj.bias"].grad
        for optimizer in (ours, theirs, adamw):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            optimizer.step()
    for found, expected in zip(matrices("data"), single, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(named["blocks.0.attn.proj.bias"].detach(), bias.detach())


@pytest.mark.parametrize("name", ["blocks.0.proj.weight", "head.weight"])
def test_the_state_before_the_first_step_is_what_the_optimiser_starts_from(name):
    """Names, shapes and types of the state after a step without a gradient, whose moments are 0."""
    parameter = nn.Parameter(torch.randn(3, 2))
    optimizer = build_optimizer([(name, parameter)], config_of(optimizer="muon"))
    assert isinstance(optimizer, Muon) and optimizer.adamw.defaults["fused"]
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with torch.device("meta"):  # the parameter's device counts, not the default one
        found = initial_state(parameter, muon_parts(name, parameter, "muon"))
        assert {value.device.type for value in initial_state(parameter, 0, "cpu").values()} == {
            "cpu"
        }
    expected = optimizer.state[parameter]
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert (value.shape, value.dtype, value.device) == (
            expected[key].shape,
            expected[key].dtype,
            expected[key].device,
        )
        assert not value.any() and (key == "step" or torch.equal(value, expected[key]))
    assert {value.device.type for value in initial_state(parameter, 0, "meta").values()} == {"meta"}
    assert len({value.data_ptr() for value in found.values()}) == len(found)


def test_muon_leaves_parameters_without_a_gradient_alone():
    """All others may be frozen, so that nothing is left to AdamW."""
    named = {f"blocks.{number}.proj.weight": nn.Parameter(torch.randn(2, 2)) for number in range(2)}
    optimizer, before = (
        build_optimizer(named.items(), config_of(optimizer="muon", lr=0.1)),
        named["blocks.0.proj.weight"].clone(),
    )
    named["blocks.1.proj.weight"].grad = torch.randn(2, 2)
    optimizer.step()
    assert torch.equal(named["blocks.0.proj.weight"], before) and len(optimizer.state) == 1


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_muons_products_have_the_type_that_is_asked_for(monkeypatch, products):
    seen = []
    monkeypatch.setattr(muon, "orthogonalize", lambda x: seen.append(x.dtype) or orthogonalize(x))
    parameter = nn.Parameter(torch.randn(2, 2))
    parameter.grad = torch.randn(2, 2)
    build_optimizer(
        [("blocks.0.weight", parameter)], config_of(optimizer="muon"), products=products
    ).step()
    assert seen == [products]


@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 3, 6), (1, 4, 4)])
def test_orthogonal_matrices_have_singular_values_near_1_and_the_singular_vectors(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(x)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    values = left.mT @ found @ right.mT
    assert found.shape == x.shape
    assert (values.diagonal(dim1=1, dim2=2) > 0.6).all() and (
        values.diagonal(dim1=1, dim2=2) < 1.3
    ).all()
    torch.testing.assert_close(
        values - torch.diag_embed(values.diagonal(dim1=1, dim2=2)),
        torch.zeros_like(values),
        rtol=0,
        atol=1e-4,
    )
    assert not orthogonalize(torch.zeros(shape)).any()
    assert torch.equal(orthogonalize(x * 2**20), found) and torch.equal(
        orthogonalize(x / 2**10), found
    )


def test_scales_are_rounded_where_factors_multiply_only():
    """So that equal products share a group; without factors every bit stays."""
    third = 1 / 3
    assert lr_scales(["a", "b"], config_of(head_lr_multiplier=third), {"a"}) == {
        "a": third,
        "b": 1.0,
    }
    config = config_of(head_lr_multiplier=0.1, lr_multipliers=(("a*", 3.0), ("b", 0.3)))
    assert lr_scales(["a1", "b"], config, {"a1"}) == {"a1": 0.3, "b": 0.3}


def test_running_averages_are_those_of_batch_normalisations_and_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    assert [len(buffer.shape) for buffer in running_averages(model)] == [1, 1, 0]
    with pytest.raises(KeyError), running_averages_restored(model):
        model(torch.randn(8, 2))
        assert running_averages(model)[2] == 1
        raise KeyError
    assert [buffer.tolist() for buffer in running_averages(model)] == [[0, 0], [1, 1], 0]


def test_averages_change_places_with_the_weights_and_back():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    averages = WeightAverages(layer, 0.9)
    assert WeightAverages(layer, 0.0).values == {} and [*averages.values] == ["weight"]
    first = layer.weight.detach().clone()
    layer.weight.data += 1
    averages.update(0)  # min(0.9, 2 / 11) of the old
    mean = first + 9 / 11
    with averages.in_place():
        torch.testing.assert_close(layer.weight.detach(), mean)
        assert torch.equal(averages.live()["weight"], layer.weight)
    assert torch.equal(layer.weight, first + 1)
    averages.restore({"weight": torch.full((2, 2), 5.0)})
    assert torch.equal(averages.values["weight"], first + 1) and (layer.weight == 5).all()
    for _ in range(2):
        averages.update(10**6)  # 0.9 of the old
    torch.testing.assert_close(averages.values["weight"], 5 + 0.81 * (first + 1 - 5))
