"""Recipes of related systems build models with the number of parameters computed by hand."""

from collections import defaultdict
from dataclasses import replace

import pytest

from eve_vl.config import Config
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes
from eve_vl.train.learning_rate import lr_scales
from helpers import paper_sizes
from helpers.model_counts import build_on_meta, count_parameters, inspect_once
from helpers.paper_sizes import DecoderShape, EncoderShape, TowersShape, VlmoShape

PAPER_DECODER = DecoderShape(384, 1536, 4)
NO_DECODER = DecoderShape(0, 0, 0)
VLMO = {
    "vlmo_base": VlmoShape(depth=12, D=768, top_blocks=2, heads=12),
    "vlmo_base_plus": VlmoShape(depth=24, D=544, top_blocks=3, heads=0),
    "vlmo_large": VlmoShape(depth=24, D=1024, top_blocks=3, heads=16),
    "vlmo_tiny": VlmoShape(
        depth=4, D=96, top_blocks=1, heads=3, image=48, patch=8, V=512, stem=(3, 24, 48, 96)
    ),
}
# README of microsoft/unilm's vlmo; it seems to count the encoder with its pooler, but no head
VLMO_PUBLISHED = {"vlmo_base": 175e6, "vlmo_base_plus": 167e6, "vlmo_large": 562e6}
VLMO_LOSSES = {
    "_images": ("mim",),
    "_texts": ("mlm",),
    "": ("mlm", "itc", "itc", "itm"),  # two contrasts
}
VLMO_HEADS = {"vlmo_vqa": "labels", "vlmo_nlvr2": "vlmo_nlvr2", "vlmo_retrieval": "contrast"}
VLMO_LARGER_IMAGES = {"vlmo_vqa": 480, "vlmo_nlvr2": 384, "vlmo_retrieval": 384}
MLIM = {
    "mlim_tiny": EncoderShape(
        depth=4,
        D=192,
        F=384,
        image=48,
        patch=16,
        T=32,
        V=512,
        reductions=(3, 16, 32, 64, 192),
        is_shared=True,
    ),
    "mlim_large": EncoderShape(
        depth=24,
        D=1024,
        F=4096,
        image=384,
        patch=128,
        T=64,
        V=30_522,
        reductions=(3, 16, 32, 64, 64, 96, 32, 1024),
        is_shared=True,
    ),
}
MLIM_IMAGE_DECODERS = {"mlim_tiny": 60_947, "mlim_large": 2_763_123}
M3AE = {
    "m3ae_base": TowersShape(
        D=768,
        F=3072,
        image_depth=11,
        text_depth=12,
        fusion_depth=6,
        image=288,
        patch=16,
        T=64,
        V=50_265,
    ),
    "m3ae_tiny": TowersShape(
        D=96, F=192, image_depth=2, text_depth=2, fusion_depth=2, image=64, patch=8, T=64, V=512
    ),
}
MEDFLIP = {
    "medflip_base": TowersShape(
        D=768,
        F=3072,
        image_depth=12,
        text_depth=12,
        fusion_depth=0,
        image=224,
        patch=16,
        T=77,
        V=30_522,
    ),
    "medflip_tiny": TowersShape(
        D=96, F=192, image_depth=3, text_depth=3, fusion_depth=0, image=64, patch=8, T=64, V=512
    ),
}
MEDFLIP_CONTRAST = {"medflip_base": 2 * 768 * 512 + 1, "medflip_tiny": 2 * 96 * 96 + 1}


def vlmo_text_length(size: str, stage: str) -> int:
    """Return the text length, which is 196 while images and texts train alone with biases."""
    if size == "vlmo_tiny":
        return 32
    if stage and VLMO[size].heads:
        return 196
    return 40


@pytest.mark.parametrize("stage", VLMO_LOSSES)
@pytest.mark.parametrize("size", VLMO)
def test_vlmo_has_the_parameters_computed_by_hand_and_those_of_its_readme(size, stage):
    shape = VLMO[size]
    encoder = paper_sizes.vlmo_parameters(shape, vlmo_text_length(size, stage))
    decoder = DecoderShape(48, 192, 1) if size == "vlmo_tiny" else PAPER_DECODER
    heads = paper_sizes.pretraining_head_parameters(VLMO_LOSSES[stage], shape, decoder)
    assert count_parameters(get_recipe(size + stage)) == encoder + heads
    if size in VLMO_PUBLISHED:
        assert encoder == pytest.approx(VLMO_PUBLISHED[size], abs=1e6)


@pytest.mark.parametrize("init", VLMO)
@pytest.mark.parametrize("name", VLMO_HEADS)
def test_vlmo_of_the_papers_size_is_finetuned_on_larger_images(name, init):
    config = get_finetune_recipe(name, get_recipe(init))
    shape = VLMO[init]
    if init != "vlmo_tiny":
        shape = replace(shape, image=VLMO_LARGER_IMAGES[name])
    assert config.input.image_size == shape.image
    encoder = paper_sizes.vlmo_parameters(shape, vlmo_text_length(init, ""))
    head = paper_sizes.head_parameters(VLMO_HEADS[name], shape.D)
    assert count_parameters(config) == encoder + head
    if init == "vlmo_tiny":  # tracing takes seconds with 24 blocks
        assert sum(inspect_once(config).parameters.values()) == encoder + head


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("vlmo_vqa", 20),
        ("vlmo_nlvr2", 1),
        ("vlmo_retrieval", 1),
    ],
)
def test_new_parameters_of_vlmo_learn_faster_for_vqa_only(name, rate):
    config = get_finetune_recipe(name, get_recipe("vlmo_base"))
    assert config.train.head_lr_multiplier == rate


@pytest.mark.parametrize("name", MLIM)
def test_mlim_has_the_parameters_computed_by_hand(name):
    shape = MLIM[name]
    heads = paper_sizes.pretraining_head_parameters(("mlm",), shape, NO_DECODER)
    expected = paper_sizes.encoder_parameters(shape) + heads + MLIM_IMAGE_DECODERS[name]
    assert count_parameters(get_recipe(name)) == expected


@pytest.mark.parametrize("name", MEDFLIP)
def test_medflip_has_the_parameters_computed_by_hand(name):
    expected = paper_sizes.tower_parameters(MEDFLIP[name]) + MEDFLIP_CONTRAST[name]
    assert count_parameters(get_recipe(name)) == expected


@pytest.mark.parametrize("name", M3AE)
def test_m3ae_has_the_parameters_computed_by_hand(name):
    shape = M3AE[name]
    decoder = PAPER_DECODER if name == "m3ae_base" else DecoderShape(96, 192, 1)
    losses = ("mlm", "mim", "itm")
    heads = paper_sizes.pretraining_head_parameters(losses, shape, decoder)
    heads += 2 * shape.D  # matching reads both states
    assert count_parameters(get_recipe(name)) == paper_sizes.tower_parameters(shape) + heads


@pytest.mark.parametrize("init", M3AE)
@pytest.mark.parametrize("name", [name for name in recipes("finetune") if name.startswith("m3ae_")])
def test_heads_of_m3ae_read_the_states_of_text_and_image_side_by_side(name, init):
    start = get_recipe(init)
    config = get_finetune_recipe(name, start)
    is_paper_size = "tiny" not in name and init == "m3ae_base"
    assert config.input.image_size == (384 if is_paper_size else start.input.image_size)
    D = M3AE[init].D
    if name.endswith("retrieval"):
        head = paper_sizes.linear(2 * D, 1)
    else:
        head = paper_sizes.two_layer_head(2 * D, 2 * D, paper_sizes.NUM_LABELS)
    shape = replace(M3AE[init], image=config.input.image_size, V=config.tokenizer.vocab_size)
    assert count_parameters(config) == paper_sizes.tower_parameters(shape) + head


M3AE_ENCODER_RATES = {"encoder.image": 1, "encoder.text": 1, "encoder.fusion": 5}


@pytest.mark.parametrize(
    ("name", "head_rates"),
    [
        ("m3ae_base", {"token_head": 5, "pixel_decoder": 5, "contrast": 5}),
        ("m3ae_vqa", {"answer_head": 50}),
        ("m3ae_classification", {"class_head": 10}),
        ("m3ae_retrieval", {"contrast": 5}),
    ],
)
def test_each_part_of_m3ae_learns_at_its_rate(name, head_rates):
    """Patterns reach every parameter outside the encoder."""
    base = get_recipe("m3ae_base")
    base_names = parameter_names(base)
    config = base
    new_names = []
    names = base_names
    if name != "m3ae_base":
        config = get_finetune_recipe(name, base)
        names = parameter_names(config)
        new_names = set(names) - set(base_names)
    rates_of_parts = defaultdict(set)
    for parameter, scale in lr_scales(names, config.train, new_names).items():
        first, second, *_ = parameter.split(".")
        part = f"encoder.{second}" if first == "encoder" else first
        rates_of_parts[part].add(scale)
    rates = M3AE_ENCODER_RATES | head_rates
    assert rates_of_parts == {part: {rate} for part, rate in rates.items()}


def parameter_names(config: Config) -> list[str]:
    """Return the names of all parameters of a config's task."""
    return [name for name, _ in build_on_meta(config, num_labels=2).named_parameters()]
