"""Configs report all mistakes at once and survive a round trip through their file."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eve_vl.cli.parsing import parse
from eve_vl.cli.train import TrainArgs
from eve_vl.config import (
    Config,
    DataConfig,
    EveModelConfig,
    InputConfig,
    TokenizerConfig,
    TrainConfig,
    changed_flags,
    config_from_dict,
    config_to_json,
    to_dict,
)
from eve_vl.config.json_form import from_dict
from eve_vl.recipes import get_finetune_recipe, get_recipe, recipes
from eve_vl.recipes.settings import layer_decay
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError, nearest

MISTAKES = [
    (
        InputConfig(image_size=225),
        "image_size 225 is not divisible by patch_size 16 (nearest: 224)",
    ),
    (InputConfig(image_size=8), "image_size 8 is smaller than patch_size 16"),
    (InputConfig(image_size=16), "image_size 16 is a single patch (patch_size 16)"),
    (
        InputConfig(padded_text_length=41),
        "padded_text_length 41 is not between 0 and text_length 40",
    ),
    (InputConfig(text_length=1), "text_length 1 is not in [2, 65536]"),
    (EveModelConfig(embed_dim=770), "embed_dim 770 is not divisible by num_heads 12"),
    (EveModelConfig(num_deep_blocks=13), "num_deep_blocks 13 is not between 0 and depth 12"),
    (EveModelConfig(top_k=33), "top_k 33 is larger than num_experts 32"),
    (EveModelConfig(mlp_ratio=float("inf")), "mlp_ratio inf is not in (0, 65536]"),
    (EveModelConfig(init_std=float("nan")), "init_std nan is not in (0, inf)"),
    (EveModelConfig(drop_path=1.0), "drop_path 1.0 is not in [0, 1)"),
    (
        EveModelConfig(shallow_ffn="none"),  # pyright: ignore[reportArgumentType]
        "shallow_ffn 'none' is not one of shared, modality, modality_vl, moe",
    ),
    (
        EveModelConfig(routing="referense"),  # pyright: ignore[reportArgumentType]
        "routing 'referense' is not one of dropless, reference, reference-dropless",
    ),
    (
        EveModelConfig(top_k=1, routing="reference"),
        "top_k 1, but routing reference is always top 2",
    ),
    (MaskedSignalConfig(image_mask_ratio=1.0), "image_mask_ratio 1.0 is not in (0, 1)"),
    (MaskedSignalConfig(mask_replace_prob=1.1), "mask_replace_prob 1.1 is not in [0, 1]"),
    (
        MaskedSignalConfig(mim_weight=0.0, joint_masking=True),
        "joint_masking needs both mim_weight and mlm_weight above 0",
    ),
    (
        MaskedSignalConfig(decoder_dim=100),
        "decoder_dim 100 is not divisible by 4 × decoder_num_heads",
    ),
    (
        MaskedSignalConfig(mim_weight=0.0, mlm_weight=0.0),
        "mim_weight and mlm_weight are both 0: nothing to learn",
    ),
    (
        ContrastMatchConfig(itc_weight=0.0),
        "itm_negatives local are sampled by contrastive similarity, but itc_weight is 0: set it "
        "to random_half",
    ),
    (
        ContrastMatchConfig(mlm_weight=0.0, itc_weight=0.0, itm_weight=0.0),
        "mim_weight, mlm_weight, itc_weight and itm_weight are all 0: nothing to learn",
    ),
    (
        ContrastMatchConfig(itc_targets="words"),  # pyright: ignore[reportArgumentType]
        "itc_targets 'words' is not one of image, diagonal, same_text, semantic",
    ),
    (
        ContrastMatchConfig(itc_targets="semantic", memory_batches=2),
        "memory_batches keeps no labels, which itc_targets semantic needs: set memory_batches to 0",
    ),
    (ContrastMatchConfig(svd_weight=float("nan")), "svd_weight nan is not in (-inf, inf)"),
    (
        RetrievalConfig(itm_weight=0.0),
        "rerank 128 needs the matching head, but itm_weight is 0: set it to 0 too",
    ),
    (
        RetrievalConfig(itm_weight=0.0, rerank=0, itm_batchnorm=True),
        "itm_batchnorm has no effect while itm_weight is 0: there is no matching head",
    ),
    (
        RetrievalConfig(rerank=1),
        "rerank 1 changes nothing, since one candidate has no order: give 0, or more than 1",
    ),
    (VQAConfig(min_answer_count=0), "min_answer_count 0 is not in [1, inf)"),
    (DataConfig(train=()), "train and val must each name a source"),
    (DataConfig(train_weights=(1.0, 2.0)), "train_weights has 2 values for 1 train sources"),
    (DataConfig(train_weights=(0.0,)), "train_weights (0.0,) is not in (0, inf)"),
    (
        DataConfig(crop_scale=(0.9, 0.5)),
        "crop_scale (0.9, 0.5) is not within (0, 1], smaller first",
    ),
    (DataConfig(val_fraction=0.0), "val_fraction 0.0 is not in"),
    (DataConfig(val_fraction=0.6), "val_fraction 0.6 is not in"),
    (TokenizerConfig(vocab_size=100), "vocab_size 100 is not in [261, 64000]"),
    (
        TrainConfig(batch_size=10, accumulation=3),
        "batch_size 10 is not divisible by accumulation 3",
    ),
    (TrainConfig(betas=(0.9, 1.0)), "betas (0.9, 1.0) is not in [0, 1)"),
    (
        TrainConfig(lr_multipliers=(("a", 1.0), ("b", 0.0))),
        "lr_multipliers: the factor of 'b' must be above 0, got 0.0",
    ),
    (TrainConfig(lr=-1e-4), "lr -0.0001 is not in (0, inf)"),
]
TASK_OF = {
    "icons_search": "retrieval",
    "photos_search": "retrieval",
    "photos_labels": "classification",
    "search_small": "retrieval",
    "questions_small": "vqa",
    "statements_small": "nlvr2",
    "labels_small": "classification",
    "mlim_pairs": "pair",
}  # of recipes that do not name theirs
SECTIONS = {
    InputConfig: "input",
    EveModelConfig: "model",
    HeadlessConfig: "task",
    MaskedSignalConfig: "task",
    ContrastMatchConfig: "task",
    RetrievalConfig: "task",
    VQAConfig: "task",
    NLVR2Config: "task",
    MlimConfig: "task",
    PairConfig: "task",
    DataConfig: "data",
    TokenizerConfig: "tokenizer",
    TrainConfig: "train",
}


@pytest.mark.parametrize(("section", "message"), MISTAKES)
def test_each_mistake_is_named_as_it_is_typed(section, message):
    assert len(section.validate()) == 1
    with pytest.raises(UserError) as caught:
        sections = {"task": MaskedSignalConfig(), SECTIONS[type(section)]: section}
        Config(recipe="x", out=Path("x"), **sections)
    assert str(caught.value).startswith(f"{SECTIONS[type(section)]}.{message}")


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        Config(
            recipe="x",
            out=Path("x"),
            input=InputConfig(image_size=225, padded_text_length=50),
            model=EveModelConfig(drop_path=2.0, balance_weight=-1.0),
            task=MaskedSignalConfig(image_mask_ratio=1.0),
            tokenizer=TokenizerConfig(vocab_size=1),
            train=TrainConfig(warmup=1.0),
        )
    assert "\n" not in str(caught.value)
    sections = [problem.partition(".")[0] for problem in str(caught.value).split("; ")]
    assert sections == ["input", "input", "model", "model", "task", "tokenizer", "train"]


def test_lists_come_back_with_their_items_checked():
    config = TrainConfig(
        freeze=("a.*", "b"), lr_multipliers=(*layer_decay(2, 0.5), ("c", 2)), betas=(0, 0.9)
    )
    text = json.dumps(to_dict(config))
    assert from_dict(TrainConfig, json.loads(text), "config.json") == config
    for wrong, message in (
        ({"lr_multipliers": [["a", 1.0, 2.0]]}, "has 3 values, expected 2"),
        (
            {"lr_multipliers": [["a", "b"]]},
            "config.json: lr_multipliers[0][1] 'b': JSON str, expected a number",
        ),
        ({"lr_multipliers": ["ab"]}, "lr_multipliers[0] 'ab': JSON str, expected a list"),
        ({"freeze": [1]}, "freeze[0] 1: JSON int, expected a text"),
        ({"betas": [0.9]}, "has 1 values, expected 2"),
        ({"betas": [0.9, None]}, "betas[1] None: JSON NoneType, expected a number"),
        ({"steps": True}, "config.json: steps True: JSON bool, expected a whole number"),
        ({"lr": False}, "lr False: JSON bool, expected a number"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            from_dict(TrainConfig, wrong, "config.json")


@pytest.mark.parametrize("name", recipes("pretrain"))
def test_recipes_come_back_from_their_file(name):
    config = get_recipe(name)
    assert config.recipe == name
    again = config_from_dict(json.loads(config_to_json(config)), "config.json")
    assert again == config
    assert to_dict(again) == to_dict(config)
    assert recipes("pretrain")[name].__doc__


@pytest.mark.parametrize("init", ["tiny", "demo", "base", "large"])
@pytest.mark.parametrize("name", recipes("finetune"))
def test_fine_tuning_recipes_come_back_from_their_file(name, init):
    """With the section of their own task, and the encoder of the run that they start from."""
    start = get_recipe(init)
    config = get_finetune_recipe(name, start)
    assert (config.recipe, config.init) == (name, start.out)
    assert config.task.name == TASK_OF.get(name, name.rpartition("_")[2])
    model = config.model
    if "vlmo" in name and isinstance(start.model, EveModelConfig):
        model = replace(model, drop_path=start.model.drop_path)  # pyright: ignore[reportCallIssue]
    assert model == start.model
    assert replace(config.input, image_size=start.input.image_size) == start.input
    assert config.input.image_size >= start.input.image_size
    again = config_from_dict(json.loads(config_to_json(config)), "config.json")
    assert again == config
    assert type(again.task) is type(config.task)
    assert recipes("finetune")[name].__doc__


def test_the_flags_of_a_config_give_it_again():
    recipe = get_finetune_recipe("icons_search", get_recipe("tiny"))
    train = {
        "lr_multipliers": (("encoder.text.*", 3.0), ("*", 0.5)),
        "betas": (0.8, 0.9),
        "compile": True,
    }
    data = {
        "train": ("a.jsonl", "b c.jsonl"),
        "batches_from": None,
        "flip": True,
    }
    config = replace(
        recipe, train=replace(recipe.train, **train), data=replace(recipe.data, **data)
    )
    flags = changed_flags(config, recipe)
    parsed = parse(TrainArgs, flags, "eve", None, TrainArgs(config=recipe))
    assert parsed.config == config


ALLOW_MISSING = {"init_allow_missing": ("encoder.norm.*",)}
START = {"init": Path("y")}


def small_config(**values: Any) -> Config:
    """Return a config of masked signals with some values."""
    return Config(
        task=MaskedSignalConfig(),
        recipe="x",
        out=Path("x"),
        **values,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"scratch": True},
            "scratch has no effect on pre-training, which starts at random weights",
        ),
        (
            {"train": TrainConfig(head_lr_multiplier=2.0)},
            "train.head_lr_multiplier has no effect without --init: all parameters are new",
        ),
        (
            START | {"tokenizer": TokenizerConfig(path=Path("tokenizer.json"))},
            "tokenizer.path has no effect with --init, which brings its run's tokenizer",
        ),
        (ALLOW_MISSING, "init_allow_missing has no effect without weights from an --init run"),
        (
            START | ALLOW_MISSING | {"scratch": True},
            "init_allow_missing has no effect without weights from an --init run",
        ),
    ],
)
def test_options_without_effect_are_refused(values, message):
    with pytest.raises(UserError, match=f"{re.escape(message)}$"):
        small_config(**values)


@pytest.mark.parametrize(
    ("section", "content", "message"),
    [
        ("task", {"name": "vqaa"}, r"no task 'vqaa'; did you mean 'vqa'\?$"),
        ("task", {"name": "vqa", "rerank": 1}, r"unknown key 'rerank'"),
        ("task", ["vqa"], r"task \['vqa'\]: JSON list, expected an object$"),
        ("task", {}, r"no task 'None'; choose from "),
        ("model", {"name": "evee"}, r"no model 'evee'; did you mean 'eve'\?$"),
        ("input", {"image_sizes": 8}, r"unknown key 'image_sizes'; did you mean 'image_size'\?$"),
        ("train", {"steps": 0}, r"train\.steps 0 is not in \[1, inf\)$"),
    ],
)
def test_a_section_that_is_not_understood_is_named(section, content, message):
    values = to_dict(get_recipe("tiny"))
    values[section] = content
    with pytest.raises(UserError, match=rf"^(run/config\.json: )?{message}"):
        from_dict(Config, values, "run/config.json")


def test_a_missing_key_is_named():
    values = to_dict(get_recipe("tiny"))
    del values["out"]
    message = r"^run/config\.json: key 'out' is missing from section Config$"
    with pytest.raises(UserError, match=message):
        from_dict(Config, values, "run/config.json")


def test_what_an_older_version_did_not_write_takes_its_default():
    values = to_dict(get_recipe("tiny"))
    del values["model"]["routing"]
    del values["train"]["clip_norm"]
    del values["input"]["padded_text_length"]
    config = from_dict(Config, values, "run/config.json")
    assert isinstance(config.model, EveModelConfig)
    assert config.input.padded_text_length == 0
    assert config.model.routing == EveModelConfig.routing
    assert config.train.clip_norm == TrainConfig.clip_norm


def test_nearest_names():
    assert nearest("scens", ["scenes", "demo"]) == "'scens'; did you mean 'scenes'?"
    assert nearest("zzz", ["scenes", "demo"]) == "'zzz'; choose from demo, scenes"
    with pytest.raises(UserError, match="no recipe 'bas'; did you mean 'base'"):
        get_recipe("bas")
    with pytest.raises(UserError, match="no recipe 'scenes_vqaa'; did you mean 'scenes_vqa'"):
        get_finetune_recipe("scenes_vqaa", get_recipe("tiny"))


def test_derived_sizes_of_the_papers_models():
    base = get_recipe("base").model
    large = get_recipe("large").model
    sizes = get_recipe("base").input
    assert isinstance(base, EveModelConfig)
    assert isinstance(large, EveModelConfig)
    assert (sizes.num_patches, sizes.patch_dim, base.ffn_dim) == (196, 768, 3072)
    assert sizes.max_text_tokens == 40
    assert replace(sizes, padded_text_length=30).max_text_tokens == 30
    assert base.ffn_policies == ("modality",) * 10 + ("moe",) * 2
    assert (large.ffn_dim, large.ffn_policies) == (4096, ("modality",) * 21 + ("moe",) * 3)


@pytest.mark.parametrize(
    ("name", "steps", "lr"),
    [
        ("base", 480_000, 5e-4),
        ("large", 280_000, 2e-4),
    ],
)
def test_training_of_the_papers_models(name, steps, lr):
    train = get_recipe(name).train
    assert (train.steps, train.batch_size, train.lr) == (steps, 2048, lr)
