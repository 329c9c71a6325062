"""FLOPs and parameters of recipes against counts by hand and torch's count of a real batch."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eve_vl.config import Config
from eve_vl.model import experts
from eve_vl.recipes import get_finetune_recipe, get_recipe, recipes
from eve_vl.recipes.registry import start_of
from eve_vl.run.flops import forward_flops, inspect_config
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.task import Sizes, task_class
from helpers.masked_pairs import masked_batch
from helpers.pretraining_losses import build, config_of

# Forward MFLOP per row, from formulas for each matrix product of the encoder's passes and of
# decoders. Token heads are included, other heads and losses are left out. A dense or routed block
# is 2·N·D·3D + 4·N²·D + 2·N·D² + 4·N·D·F, the last one less.
BY_HAND = {
    "tiny": 23.148,
    # a quarter of the image pass, a router, and a last block that computes all rows for its router
    "demo": 74.093,
    "base": 65_871.658,
    "vlmo_tiny_images": 18.796,
    "mlim_tiny": 180.056,
    "m3ae_tiny": 257.616,
    "medflip_tiny": 50.062,
    "demo_vqa": 50.596,
    "demo_nlvr2": 101.193,
    "demo_retrieval": 61.704,
    "demo_classification": 19.679,
    "scenes_retrieval": 201.695
    - 3 * 10.354,  # contrast embeds the image, matching three times embeds nothing
    "mlim_pairs": 119.740,
    "m3ae_tiny_retrieval": 802.671,
}
HEADS = {"answer head", "class head", "compare head", "contrast", "losses"}


def recipe(name: str) -> Config:
    if name in recipes("pretrain"):
        return get_recipe(name)
    start = start_of(name, recipes("finetune")[name])
    assert start is not None
    return get_finetune_recipe(name, get_recipe(start))


@pytest.mark.parametrize("name", BY_HAND)
def test_flops_are_those_counted_by_hand(name):
    inspected = inspect_config(recipe(name))
    flops = inspected.flops
    total = sum(count for part, count in flops.items() if part not in HEADS)
    assert total / 1e6 == pytest.approx(BY_HAND[name], rel=0.002)
    assert sum(flops.values()) < 1.15 * total
    assert flops.keys() - {"losses"} <= inspected.parameters.keys()


@pytest.mark.parametrize(
    ("name", "shallow_ffn", "deep_ffn"),
    [
        ("mlm+mim", "shared", "shared"),
        ("mlm+itc+mim", "moe", "moe"),
        ("mlm+itc+itm", "shared", "shared"),
        ("all", "modality", "moe"),
    ],
)
def test_flops_are_those_of_a_real_batch(name, shallow_ffn, deep_ffn, monkeypatch):
    """torch counts neither grouped_mm nor the fused attention of CPUs: both take their plain form
    here."""
    monkeypatch.setattr(experts, "grouped_mm_works", lambda *_: False)
    config = config_of(
        name,
        shallow_ffn=shallow_ffn,
        deep_ffn=deep_ffn,
        depth=4,
        embed_dim=48,
        num_experts=4,
        top_k=2,
    )
    config = replace(config, train=replace(config.train, batch_size=2, accumulation=1))
    task = build(config)
    batch = masked_batch((12, 12))
    expected = 2 * sum(forward_flops(config, task.sizes).values())
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = task(batch).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.01)
    assert backward.get_total_flops() == pytest.approx(2 * expected, rel=0.02)


@pytest.mark.parametrize(
    ("modality", "weights", "absent"),
    [
        ("image", {"mlm_weight": 0.0, "mim_weight": 1.0}, {"token head"}),
        ("text", {"mim_weight": 0.0}, {"image embedding", "pixel decoder"}),
    ],
)
def test_rows_of_one_modality_cost_nothing_for_the_other(modality, weights, absent):
    config = get_recipe("tiny")
    flops_of_pairs = inspect_config(config).flops
    task = replace(config.task, **weights)
    config = replace(config, task=task, data=replace(config.data, modality=modality))
    flops = inspect_config(config).flops
    parts = {"image embedding", "token head", "pixel decoder"}
    assert parts <= flops_of_pairs.keys()
    assert parts - flops.keys() == absent
    assert sum(flops.values()) <= sum(flops_of_pairs.values())


def test_a_users_own_task_is_not_counted(monkeypatch):
    config = recipe("demo_classification")
    assert isinstance(config.task, ClassificationConfig)
    assert inspect_config(config).flops
    monkeypatch.setattr(task_class(ClassificationConfig), "__module__", "my_task")
    assert inspect_config(config).flops == {}


def test_counting_draws_no_random_numbers():
    config = get_recipe("tiny")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    forward_flops(replace(config, input=replace(config.input, text_length=9)), Sizes(vocab_size=99))
    assert torch.equal(torch.get_rng_state(), before)


def test_flops_do_not_depend_on_where_a_run_starts(tmp_path):
    config = recipe("demo_vqa")
    started = replace(
        config,
        init=tmp_path,
        scratch=True,
        out=tmp_path,
    )
    train = replace(config.train, head_lr_multiplier=1.0)
    random = replace(config, init=None, train=train)
    assert inspect_config(started).flops == inspect_config(random).flops
