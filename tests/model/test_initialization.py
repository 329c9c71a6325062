"""Initial values against the table in the docstring of `initialize`."""

import math

import pytest
import torch
from torch import Tensor, nn

from eve_vl.model.initialization import initialize
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from helpers.tiny_config import tiny_config

BIASES = {"bias", "q_bias", "v_bias", "fc1_bias", "fc2_bias"}
NORMAL = {
    "weight",
    "fc1_weight",
    "fc2_weight",
    "cls",
    "positions",
    "type_embed",
    "modality_embed",
    "mask_token",
}
STD_OF_CUT = 0.8796  # of a normal distribution cut at two standard deviations


def assert_cut_normal(values: Tensor, std: float) -> None:
    """Check mean and deviation within six standard errors, and the cut."""
    num = values.numel()
    assert values.abs().max().item() <= 2 * std
    assert values.std().item() == pytest.approx(std * STD_OF_CUT, rel=6 / math.sqrt(2 * num))
    assert abs(values.mean().item()) < 6 * std * STD_OF_CUT / math.sqrt(num)


def test_initial_values_follow_the_table_and_leave_nothing_out():
    torch.manual_seed(0)
    config = tiny_config(
        model={
            "embed_dim": 64,
            "num_heads": 4,
            "init_std": 0.05,
            "pos_embed_init_std": 0.2,
            "layer_scale_init": 0.3,
        }
    )
    task = MaskedSignal(config, Sizes(vocab_size=200, mask_id=2))
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.fill_(float("nan"))
    initialize(task, config.model)

    checked = set()
    for name, parameter in task.named_parameters():
        module_name, _, kind = name.rpartition(".")
        values = parameter.detach()
        if isinstance(task.get_submodule(module_name), nn.LayerNorm):
            assert (values == (1 if kind == "weight" else 0)).all(), name
        elif kind in ("scale1", "scale2"):
            assert (values == torch.tensor(0.3)).all(), name
        elif kind in BIASES:
            assert not values.any(), name
            checked.add(kind)
        else:
            assert_cut_normal(values, 0.2 if kind == "positions" else 0.05)
            checked.add(kind)
    assert checked == BIASES | NORMAL
