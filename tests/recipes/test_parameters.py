"""EVE's recipes build models with the number of parameters that is computed by hand."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes
from helpers import paper_sizes
from helpers.model_counts import count_parameters
from helpers.paper_sizes import BASE, DEMO_STEM, LARGE, TINY, DecoderShape, EncoderShape

DEMO_WORDS = EncoderShape(
    depth=2,
    D=192,
    F=384,
    image=48,
    patch=16,
    T=32,
    V=512,
    stem=DEMO_STEM,
)
DEMO = replace(
    DEMO_WORDS,
    soft_blocks=1,
    experts=4,
    expert_width=192,
)
PHOTOS = replace(DEMO, image=96, T=24, V=4000, residual_stem=True)
SHAPES = {
    "base": BASE,
    "large": LARGE,
    "demo": DEMO,
    "demo_words": DEMO_WORDS,
    "scenes": DEMO,
    "scenes_words": DEMO_WORDS,
    "emoji": replace(DEMO, image=64, V=2000),
    "icons": replace(
        DEMO_WORDS,
        depth=1,
        image=64,
        patch=32,
        stem=(*DEMO_STEM, 192),
        T=16,
        V=4000,
    ),
    "photos": PHOTOS,
    "photos_32": replace(PHOTOS, depth=4, soft_blocks=2, image=32, patch=4, stem=(3, 96, 192)),
    "tiny": TINY,
}
DECODERS = {
    "base": DecoderShape(384, 1536, 4),
    "large": DecoderShape(512, 2048, 8),
    "tiny": DecoderShape(48, 192, 1),
    "photos": DecoderShape(96, 192, 2),
}
SMALL_DECODER = DecoderShape(96, 192, 1)
LOSSES = {
    "": ("mlm", "mim"),
    "mlm_itc_itm": ("mlm", "itc", "itm"),
    "all_losses": ("mlm", "mim", "itc", "itm"),
}
WITHOUT_PIXELS = ("demo_words", "scenes_words", "icons")
HEADS = {
    "nlvr2": "paired",
    "demo_retrieval": "contrast",
    "icons_search": "contrast",
    "search_small": "contrast",
    "photos_search": "contrast",
    "photos_labels": "labels",
    "questions_small": "labels",
    "statements_small": "concatenated",
    "labels_small": "labels",
}
HEADS_OF_TASKS = {
    "vqa": "labels",
    "classification": "labels",
    "nlvr2": "concatenated",
    "retrieval": "retrieval",
}
LARGER_IMAGES = {"vqa": 480, "nlvr2": 384, "retrieval": 384}  # where the start has 224 pixels


def recipes_of_eve(verb: str) -> list[str]:
    """Return the recipes on EVE's encoder."""
    names = []
    for name, recipe in recipes(verb).items():
        if recipe.__module__.startswith("eve_vl.tasks."):
            names.append(name)
    return names


def head_of(recipe: str) -> str:
    """Return the kind of a fine-tuning recipe's head."""
    if recipe in HEADS:
        return HEADS[recipe]
    return HEADS_OF_TASKS[recipe.rpartition("_")[2]]


@pytest.mark.parametrize("name", recipes_of_eve("pretrain"))
def test_pretraining_recipes_have_the_parameters_computed_by_hand(name):
    family, _, variant = name.partition("_")
    if name == "photos_32":
        shape = SHAPES[name]
        losses = ("mim",)
    else:
        has_experts = not (variant and family in ("demo", "scenes"))  # baselines have none
        shape = SHAPES[family] if has_experts else SHAPES[f"{family}_words"]
        losses = ("mlm",) if name in WITHOUT_PIXELS else LOSSES[variant]
    decoder = DECODERS.get(family, SMALL_DECODER)
    heads = paper_sizes.pretraining_head_parameters(losses, shape, decoder)
    expected = paper_sizes.encoder_parameters(shape) + heads
    assert count_parameters(get_recipe(name)) == expected


@pytest.mark.parametrize("init", ["tiny", "demo", "base", "large"])
@pytest.mark.parametrize("name", recipes_of_eve("finetune"))
def test_finetuning_recipes_put_their_head_on_the_encoder_of_any_run(name, init):
    config = get_finetune_recipe(name, get_recipe(init))
    shape = SHAPES[init]
    if init in ("base", "large"):
        shape = replace(shape, image=LARGER_IMAGES.get(name, shape.image))
    assert config.input.image_size == shape.image
    head = paper_sizes.head_parameters(head_of(name), shape.D)
    assert count_parameters(config) == paper_sizes.encoder_parameters(shape) + head


@pytest.mark.parametrize("name", ["base", "vlmo_base", "m3ae_tiny", "medflip_tiny", "mlim_tiny"])
def test_a_model_is_built_without_reading_a_value(name):
    """Tools that measure memory build it of tensors that have none."""
    config = get_recipe(name)
    with FakeTensorMode(), torch.device("meta"):
        task = build_untrained(config, Sizes(vocab_size=config.tokenizer.vocab_size))
    num_parameters = sum(parameter.numel() for parameter in task.parameters())
    assert num_parameters == count_parameters(config)
