"""Which parameters decay, which of them Muon takes, and groups with equal options."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eve_vl.config import TrainConfig
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from eve_vl.train.parameter_groups import is_decayed, muon_parts, parameter_groups
from helpers.tiny_config import tiny_config

CONFIG = TrainConfig(steps=10, weight_decay=0.3, head_lr_multiplier=10.0)
MATRICES_OF_BLOCKS = (
    "attn.qkv.weight",
    "attn.proj.weight",
    "fc1.weight",
    "fc2.weight",
    "experts.fc1_weight",
    "experts.fc2_weight",
)


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    return dict(task.named_parameters())


def test_weight_decay_spares_biases_norms_and_vectors(parameters):
    decayed = {name for name, parameter in parameters.items() if is_decayed(name, parameter)}
    for name, parameter in parameters.items():
        is_matrix = parameter.ndim >= 2 and "bias" not in name
        assert (name in decayed) == is_matrix, name
    assert "encoder.blocks.2.ffn.experts.fc1_weight" in decayed
    # 2-D only because experts are stacked
    assert parameters["encoder.blocks.2.ffn.experts.fc1_bias"].ndim == 2
    assert "encoder.blocks.2.ffn.experts.fc1_bias" not in decayed
    spared = ("norm.weight", "scale1", "q_bias", "cls", "type_embed", "mask_token")
    assert not any(name.endswith(spared) for name in decayed)


@pytest.mark.parametrize(
    ("new_prefix", "num_groups"),
    [
        ("token_head", 4),
        ("nothing", 2),
    ],
)
def test_each_parameter_is_in_the_group_of_its_options(parameters, new_prefix, num_groups):
    new = {name for name in parameters if name.startswith(new_prefix)}
    names = {parameter: name for name, parameter in parameters.items()}
    groups = parameter_groups(parameters, CONFIG, new)
    assert len(groups) == num_groups
    grouped_names = []
    for group in groups:
        for parameter in group["params"]:
            name = names[parameter]
            assert group["lr_scale"] == (10.0 if name in new else 1.0), name
            assert group["weight_decay"] == (0.3 if is_decayed(name, parameter) else 0.0), name
            grouped_names.append(name)
    assert sorted(grouped_names) == sorted(parameters)


def test_frozen_parameters_are_in_no_group():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    (group,) = parameter_groups(dict(layer.named_parameters()), CONFIG, ())
    assert group["params"] == [layer.bias]


def test_muon_takes_the_matrices_of_blocks_and_divides_queries_keys_and_values(parameters):
    parts = {name: muon_parts(name, parameter, "muon") for name, parameter in parameters.items()}
    expected = {}
    for name in parameters:
        is_matrix = "blocks" in name and name.endswith(MATRICES_OF_BLOCKS)
        expected[name] = 0
        if is_matrix:
            expected[name] = 3 if name.endswith("qkv.weight") else 1
    assert parts == expected
    assert any(name.startswith("pixel_decoder") for name, number in parts.items() if number)


@pytest.mark.parametrize(
    ("name", "shape", "parts", "parts_of_64_rows"),
    [
        ("attn.qkv.weight", (576, 192), 3, 9),
        ("attn.qkv.weight", (288, 96), 3, 3),
        ("attn.proj.weight", (192, 192), 1, 3),
        ("attn.proj.weight", (96, 96), 1, 1),
        ("experts.fc2_weight", (4, 192, 384), 1, 3),
        ("experts.router.weight", (4, 192), 0, 0),
    ],
)
def test_block_muon_takes_64_rows_where_64_divides_them(name, shape, parts, parts_of_64_rows):
    parameter = nn.Parameter(torch.empty(shape))
    assert muon_parts(f"blocks.0.{name}", parameter, "adamw") == 0
    assert muon_parts(f"blocks.0.{name}", parameter, "muon") == parts
    assert muon_parts(f"blocks.0.{name}", parameter, "block_muon") == parts_of_64_rows


def test_groups_of_muon_differ_by_parts():
    parameters = {
        "blocks.0.attn.qkv.weight": nn.Parameter(torch.empty(24, 8)),
        "blocks.0.attn.proj.weight": nn.Parameter(torch.empty(8, 8)),
        "head.weight": nn.Parameter(torch.empty(2, 8)),
    }
    groups = parameter_groups(parameters, replace(CONFIG, optimizer="muon"), ())
    assert [group["parts"] for group in groups] == [3, 1, 0]
