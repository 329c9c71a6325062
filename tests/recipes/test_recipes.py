"""Every recipe builds on the meta device with its hand-computed number of parameters."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import eve_vl
from eve_vl.config import Config, TaskConfig, config_to_json
from eve_vl.recipes.registry import (
    EITHER,
    find_recipe,
    get_finetune_recipe,
    get_recipe,
    recipes,
    start_of,
)
from eve_vl.run.flops import NUM_LABELS, inspect_config
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.train.learning_rate import lr_scales

PAPER = {"experts": 32, "image": 224, "patch": 16, "T": 40, "V": 64_000}
DEMO: dict[str, Any] = {
    "depth": 2,
    "D": 192,
    "F": 384,
    "moe_blocks": 0,
    "experts": 0,
    "image": 48,
    "patch": 16,
    "T": 32,
    "V": 512,
}
DEMO["stem"] = (3, 24, 48, 96, 192)  # channels
WHOLE = DEMO | {"moe_blocks": 1, "experts": 4, "narrow": 192}
TINY: dict[str, Any] = {
    "depth": 3,
    "D": 48,
    "F": 192,
    "moe_blocks": 2,
    "experts": 4,
    "image": 32,
    "patch": 8,
    "T": 32,
    "V": 400,
}
SHAPES: dict[str, dict[str, Any]] = {
    "base": {**PAPER, "depth": 12, "D": 768, "F": 3072, "moe_blocks": 2},
    "large": {**PAPER, "depth": 24, "D": 1024, "F": 4096, "moe_blocks": 3},
    "demo": WHOLE,
    "demo_words": DEMO,
    "scenes": WHOLE,
    "scenes_words": DEMO,
    "emoji": {**WHOLE, "image": 64, "V": 2000},
    "icons": {
        **DEMO,
        "depth": 1,
        "image": 64,
        "patch": 32,
        "stem": (3, 24, 48, 96, 192, 192),
        "T": 16,
        "V": 4000,
    },
    "tiny": TINY,
    "mlim_tiny": {
        **DEMO,
        "depth": 4,
        "blocks": (3, 16, 32, 64, 192),
        "is_shared": True,
        "stem": (),
    },
    "mlim_large": {
        "depth": 24,
        "D": 1024,
        "F": 4096,
        "moe_blocks": 0,
        "experts": 0,
        "image": 384,
        "patch": 128,
        "T": 64,
        "V": 30_522,
        "blocks": (3, 16, 32, 64, 64, 96, 32, 1024),
        "is_shared": True,
    },
}
DECODERS = {
    "base": (384, 1536, 4),
    "large": (512, 2048, 8),
    "demo": (96, 192, 1),
    "scenes": (96, 192, 1),
    "emoji": (96, 192, 1),
    "icons": (96, 192, 1),
    "tiny": (48, 192, 1),
}
PRETRAINED_BY = {
    "": ("mlm", "mim"),
    "mlm_itc_itm": ("mlm", "itc", "itm"),
    "all_losses": ("mlm", "mim", "itc", "itm"),
}
VLMO: dict[str, dict[str, Any]] = {
    "vlmo_base": {"depth": 12, "D": 768, "top": 2, "heads": 12},
    "vlmo_base_plus": {"depth": 24, "D": 544, "top": 3, "heads": 0},  # positions are learned
    "vlmo_large": {"depth": 24, "D": 1024, "top": 3, "heads": 16},
}
VLMO_PUBLISHED = {
    "vlmo_base": 175e6,
    "vlmo_base_plus": 167e6,
    "vlmo_large": 562e6,
}  # README of microsoft/unilm's vlmo
VLMO["vlmo_tiny"] = {
    "depth": 4,
    "D": 96,
    "top": 1,
    "heads": 3,
    "image": 48,
    "patch": 8,
    "T": 32,
    "V": 512,
}
VLMO["vlmo_tiny"]["stem"] = (3, 24, 48, 96)
VLMO_STAGES = {
    "_images": ("mim",),
    "_texts": ("mlm",),
    "": ("mlm", "itc", "itc", "itm"),
}  # two contrasts
TOWERS: dict[str, dict[str, Any]] = {
    "m3ae_base": {
        "D": 768,
        "F": 3072,
        "depths": (11, 12, 6),
        "image": 288,
        "patch": 16,
        "T": 64,
        "V": 50_265,
    },
    "m3ae_tiny": {
        "D": 96,
        "F": 192,
        "depths": (2, 2, 2),
        "image": 64,
        "patch": 8,
        "T": 64,
        "V": 512,
    },
    "medflip_base": {
        "D": 768,
        "F": 3072,
        "depths": (12, 12, 0),
        "image": 224,
        "patch": 16,
        "T": 77,
        "V": 30_522,
    },
    "medflip_tiny": {
        "D": 96,
        "F": 192,
        "depths": (3, 3, 0),
        "image": 64,
        "patch": 8,
        "T": 64,
        "V": 512,
    },
}
"""depths: of the tower for images, of that for texts, and of co-attention."""
WITHOUT_PIXELS = ("demo_words", "scenes_words", "icons")
VERBS = ("pretrain", "finetune")
EVES, EVES_TASKS = (  # those on its encoder
    [
        name
        for name, recipe in recipes(verb).items()
        if recipe.__module__.startswith("eve_vl.tasks.")
    ]
    for verb in VERBS
)
WITHOUT_MATCHING = ("demo_retrieval", "icons_search", "search_small", "vlmo_retrieval")
LARGER = {
    "vqa": 480,
    "nlvr2": 384,
    "retrieval": 384,
}  # pixels, where the run to start from has the paper's 224
LARGER |= {f"vlmo_{name}": pixels for name, pixels in LARGER.items()}


def encoder_on_paper(
    *,
    depth: int,
    D: int,
    F: int,
    moe_blocks: int,
    experts: int,
    image: int,
    patch: int,
    T: int,
    V: int,
    narrow: Any = 0,
    stem: Any = (),
    blocks: Any = (),
    is_shared: Any = False,
):
    """Parameters of the encoder from the shapes alone: §3 of the paper, hard router below, soft
    above; or of MLIM's, which has one network for all tokens. narrow: width of the experts, unless
    it is F."""
    P, X = (image // patch) ** 2, 3 * patch * patch
    norm, ffn = 2 * D, (D * F + F) + (F * D + D)
    attention = 3 * D * D + 2 * D + (D * D + D)  # no bias on k
    convolutions = (
        sum(9 * before * after + 2 * after for before, after in pairwise(stem)) + D * D + D
    )
    convolutions = (
        sum(4 * before * after + after for before, after in pairwise(blocks))
        if blocks
        else convolutions
    )
    image_embed = (convolutions if stem or blocks else X * D + D) + D + (1 + P) * D + D
    text_embed = V * D + norm + T * D + D
    hard = norm + attention + 2 * D + (1 if is_shared else 2) * (norm + ffn)
    expert = 2 * D * (narrow or F) + (narrow or F) + D
    soft = norm + attention + 2 * D + norm + experts * D + 2 * D + experts * expert
    return image_embed + text_embed + norm + (depth - moe_blocks) * hard + moe_blocks * soft + norm


def vlmo_on_paper(
    *,
    depth: int,
    D: int,
    top: int,
    heads: int,
    image: int = 224,
    patch: int = 16,
    T: int,
    V: int = 30_522,
    stem: Any = (),
) -> int:
    """Parameters of VLMo's encoder and pooler: three networks in each of the top blocks, two below;
    one table of biases, or learned positions where heads is 0."""
    side, X, F = image // patch, 3 * patch * patch, 4 * D
    norm, ffn, attention = 2 * D, (D * F + F) + (F * D + D), 3 * D * D + 2 * D + (D * D + D)
    convolutions = (
        sum(9 * before * after + 2 * after for before, after in pairwise(stem)) + D * D + D
    )
    embed = (convolutions if stem else X * D + D) + V * D + norm + 3 * D  # one [CLS], two types
    blocks = depth * (norm + attention + 2 * D + 2 * (norm + ffn)) + top * (norm + ffn)
    positions = (
        depth * heads * ((2 * side - 1) ** 2 + 5 + 2 * T) if heads else (1 + side**2 + T) * D
    )
    return embed + blocks + positions + norm + D * D + D


def towers_on_paper(
    *, D: int, F: int, depths: tuple[int, int, int], image: int, patch: int, T: int, V: int
) -> int:
    """Parameters of two towers and, where they are joined, a projection and a pooler of each, and
    co-attention of each side: to itself, to the other, a network, and a norm after each of the
    three."""
    P, X = (image // patch) ** 2, 3 * patch * patch
    norm, ffn, attention = 2 * D, (D * F + F) + (F * D + D), 3 * D * D + 2 * D + (D * D + D)
    embed = (
        (X * D + D) + D + (1 + P) * D + D + norm + (V * D + norm + T * D + D)
    )  # norm before the images' first block
    blocks = (depths[0] + depths[1]) * (norm + attention + 2 * D + norm + ffn)
    fusion = 4 * (D * D + D) + depths[2] * 2 * (2 * attention + ffn + 3 * norm)
    return embed + blocks + 2 * norm + fusion * bool(depths[2])


def pretraining_on_paper(
    tasks: tuple[str, ...], *, D: int, V: int, patch: int, decoder: tuple[int, int, int]
) -> int:
    """Parameters of the heads of pre-training."""
    X = 3 * patch * patch
    d, f, blocks = decoder
    narrow = 2 * d + (3 * d * d + 2 * d + d * d + d) + 2 * d + 2 * d + (d * f + f + f * d + d)
    counts = {
        "mlm": (D * D + D) + 2 * D + (D * V + V),
        "mim": (D * d + d) + d + blocks * narrow + 2 * d + (d * X + X),
        "itc": 2 * D * D + 1,
        "itm": 2 * D + 2,
    }
    return sum(counts[task] for task in tasks)


def head_on_paper(recipe: str, D: int) -> int:
    """Parameters of a downstream task's heads."""

    def two_layers(in_dim: int, out_dim: int) -> int:
        return (in_dim * 2 * D + 2 * D) + 2 * 2 * D + (2 * D * out_dim + out_dim)

    attention = (3 * D * D + 3 * D) + (D * D + D)
    paired = 2 * attention + (2 * D * D + D) + (D + 1) + (2 * D * 2 + 2)
    contrast = D * D + D * D + 1
    labels = two_layers(D, NUM_LABELS)
    heads = {
        "vqa": labels,
        "classification": labels,
        "nlvr2": two_layers(4 * D, 2),
        "retrieval": contrast + (D * 2 + 2),
    }
    if recipe == "vlmo_nlvr2":
        return two_layers(2 * D, 2) + D  # and the type of the right image
    if recipe in WITHOUT_MATCHING:
        return contrast
    own = {
        "questions_small": "vqa",
        "statements_small": "demo_nlvr2",
        "labels_small": "classification",
    }
    return paired if recipe == "nlvr2" else heads[own.get(recipe, recipe).rpartition("_")[2]]


SYSTEMS = {"vlmo": ("vlmo_",), "mlim": ("mlim_",), "medical": ("m3ae_", "medflip_")}
RECIPES = [
    *(
        f"eve_vl.tasks.{task}.recipes"
        for task in (
            "masked_signal",
            "contrast_match",
            "vqa",
            "nlvr2",
            "retrieval",
            "classification",
        )
    ),
    "eve_vl.systems.vlmo.recipes",
    "eve_vl.systems.mlim.recipes",
    "eve_vl.systems.medical.m3ae.recipes",
    "eve_vl.systems.medical.medflip.recipes",
]
MODULES = [importlib.import_module(name) for name in RECIPES]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_recipe_of_a_module_is_registered(module):
    """Each function of no argument, or of `init`, in the order of the file, with a docstring that
    shows the command."""
    defined = [
        node
        for node in ast.parse(Path(module.__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]
    arguments = {
        node.name: [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)] for node in defined
    }
    written = [name for name, names in arguments.items() if names in ([], ["init"])]
    known = {
        verb: [
            (name, each)
            for name, each in recipes(verb).items()
            if each.__module__ == module.__name__
        ]
        for verb in VERBS
    }
    assert sorted(written) == sorted(name for found in known.values() for name, _ in found)
    for verb, found in known.items():
        assert [name for name, _ in found] == [
            name for name in written if (verb == "finetune") == bool(arguments[name])
        ]
        for name, recipe in found:
            assert recipe is getattr(module, name)
            text = recipe.__doc__ or ""
            assert f"{verb} {name}" in text
            assert text.splitlines()[0].endswith(".")  # the list of recipes shows the first line


def test_a_recipe_without_its_docstring_starts_from_the_same_run(monkeypatch):
    """As under python -OO."""
    found = recipes("finetune")
    starts = {name: start_of(name, recipe) for name, recipe in found.items()}
    for recipe in found.values():
        monkeypatch.setattr(recipe, "__doc__", None)
    assert {name: start_of(name, find_recipe("finetune", name)) for name in found} == starts
    assert {starts[name] for name in ("demo_vqa", "vqa", "m3ae_tiny_vqa")} == {
        "demo",
        "base",
        "m3ae_tiny",
    }
    assert {start for start in starts.values() if start} <= {*recipes("pretrain")}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_can_be_left_out(name, tmp_path):
    """EVE and each other system work without its folder."""
    package = Path(eve_vl.__file__).parent
    shutil.copytree(
        package,
        tmp_path / "eve_vl",
        ignore=lambda folder, _: [name] * (Path(folder).name == "systems"),
    )
    code = "from eve_vl.recipes.registry import EITHER, recipes; from eve_vl.cli.main import main; print(*recipes(EITHER)); main(['help'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()[0].split()
    assert found == [each for each in recipes(EITHER) if not each.startswith(SYSTEMS[name])]


def test_a_recipe_loads_its_own_system_only():
    code = "import sys; from eve_vl.recipes.registry import is_recipe, get_recipe; get_recipe('demo'); is_recipe('finetune', 'nothing'); "
    for more, systems in (("", set()), ("get_recipe('mlim_tiny'); ", {"mlim"})):
        shown = "print(*(name for name in sys.modules if name.startswith('eve_vl.systems.')))"
        done = subprocess.run(
            [sys.executable, "-c", code + more + shown], capture_output=True, text=True
        )
        assert {name.split(".")[2] for name in done.stdout.split()} == systems, done.stderr


def once(function: Callable[[Config], Any]) -> Callable[[Config], Any]:
    """Compute what many recipes share once: the same shapes, task and rows of a micro-batch."""
    known: dict[str, Any] = {}

    def found(config: Config) -> Any:
        rows = config.train.batch_size, config.train.accumulation
        key = repr((config.input, config.model, config.tokenizer, config.task, rows))
        if key not in known:
            known[key] = function(config)
        return known[key]

    return found


@once
def count(config: Config) -> int:
    with torch.device("meta"):
        task = build_untrained(
            config, Sizes(vocab_size=config.tokenizer.vocab_size, labels=("",) * NUM_LABELS)
        )
    assert all(parameter.device.type == "meta" for parameter in task.parameters())
    return sum(parameter.numel() for parameter in task.parameters())


@pytest.mark.parametrize("stage", VLMO_STAGES)
@pytest.mark.parametrize("size", VLMO)
def test_parameters_of_vlmo_equal_the_count_on_paper_and_its_readme(size, stage):
    """Which counts the encoder with its pooler, so it seems, but no head."""
    shapes = VLMO[size]
    length = 40 if not shapes["heads"] or not stage else 196
    encoder = vlmo_on_paper(**{"T": length, **shapes})
    decoder = (384, 1536, 4) if size != "vlmo_tiny" else (48, 192, 1)
    V, patch = shapes.get("V", 30_522), shapes.get("patch", 16)
    heads = pretraining_on_paper(
        VLMO_STAGES[stage], D=shapes["D"], V=V, patch=patch, decoder=decoder
    )
    assert count(get_recipe(size + stage)) == encoder + heads
    if size in VLMO_PUBLISHED:
        assert encoder == pytest.approx(VLMO_PUBLISHED[size], abs=1e6)


@pytest.mark.parametrize("init", VLMO)
@pytest.mark.parametrize("name", ["vlmo_vqa", "vlmo_nlvr2", "vlmo_retrieval"])
def test_vlmo_is_fine_tuned_on_larger_images(name, init):
    """The paper's sizes are for its own alone; new parameters learn faster for VQA alone."""
    config, shapes = (
        get_finetune_recipe(name, get_recipe(init)),
        {"T": 40, "image": 224, **VLMO[init]},
    )
    shapes["image"] = LARGER[name] if shapes["image"] == 224 else shapes["image"]
    assert config.input.image_size == shapes["image"]
    assert count(config) == vlmo_on_paper(**shapes) + head_on_paper(name, shapes["D"])
    if init == "vlmo_tiny":  # tracing takes seconds with 24 blocks
        assert sum(inspect_config(config).parameters.values()) == count(config)
    assert config.train.head_lr_multiplier == (20 if name == "vlmo_vqa" else 1)


@pytest.mark.parametrize("name", TOWERS)
def test_parameters_of_towers_equal_the_count_on_paper(name):
    shapes: dict[str, Any] = TOWERS[name]
    contrast: dict[str, Any] = {"medflip_base": 2 * 768 * 512 + 1, "medflip_tiny": 2 * 96 * 96 + 1}
    decoder = (384, 1536, 4) if name == "m3ae_base" else (96, 192, 1)
    values = {key: shapes[key] for key in ("D", "V", "patch")}
    of_m3ae = (
        pretraining_on_paper(("mlm", "mim", "itm"), **values, decoder=decoder) + 2 * shapes["D"]
    )  # reads both states
    assert count(get_recipe(name)) == towers_on_paper(**shapes) + contrast.get(name, of_m3ae)


@pytest.mark.parametrize("name", [*EVES, "mlim_tiny", "mlim_large"])
def test_parameters_of_recipes_equal_the_count_on_paper(name):
    family, _, variant = name.partition("_")
    if family == "mlim":
        heads = pretraining_on_paper(
            ("mlm",), **{key: SHAPES[name][key] for key in ("D", "V", "patch")}, decoder=(0, 0, 0)
        )
        painted = {"mlim_tiny": 60_947, "mlim_large": 2_763_123}[name]
        assert count(get_recipe(name)) == encoder_on_paper(**SHAPES[name]) + heads + painted
        return
    shapes = SHAPES[
        f"{family}_words" if variant and family in ("demo", "scenes") else family
    ]  # baselines have no experts
    heads = pretraining_on_paper(
        ("mlm",) if name in WITHOUT_PIXELS else PRETRAINED_BY[variant],
        D=shapes["D"],
        V=shapes["V"],
        patch=shapes["patch"],
        decoder=DECODERS[family],
    )
    assert count(get_recipe(name)) == encoder_on_paper(**shapes) + heads


@pytest.mark.parametrize("name", ["base", "vlmo_base", "m3ae_tiny", "medflip_tiny", "mlim_tiny"])
def test_a_model_is_built_without_reading_a_value(name):
    """Tools that measure memory build it of tensors that have none."""
    config = get_recipe(name)
    with FakeTensorMode(), torch.device("meta"):
        task = build_untrained(config, Sizes(vocab_size=config.tokenizer.vocab_size))
    assert sum(each.numel() for each in task.parameters()) == count(config)


@pytest.mark.parametrize("init", ["tiny", "demo", "base", "large"])
@pytest.mark.parametrize("name", EVES_TASKS)
def test_fine_tuning_recipes_put_their_head_on_the_encoder_of_any_run(name, init):
    config = get_finetune_recipe(name, get_recipe(init))
    shapes = dict(SHAPES[init])
    if init in ("base", "large"):
        shapes["image"] = LARGER.get(name, shapes["image"])
    assert config.input.image_size == shapes["image"]
    assert count(config) == encoder_on_paper(**shapes) + head_on_paper(name, shapes["D"])


M3AES = [name for name in recipes("finetune") if name.startswith("m3ae_")]


@pytest.mark.parametrize("init", ["m3ae_tiny", "m3ae_base"])
@pytest.mark.parametrize("name", M3AES)
def test_m3ae_is_fine_tuned_on_its_towers(name, init):
    """Its heads read the pooled states of text and image side by side; the paper's sizes are for
    its own size alone."""
    start = get_recipe(init)
    config = get_finetune_recipe(name, start)
    D, is_paper = config.model.embed_dim, "tiny" not in name and init == "m3ae_base"
    assert config.input.image_size == (384 if is_paper else start.input.image_size)
    with torch.device("meta"):
        towers = build_untrained(config, Sizes(vocab_size=400, labels=("",))).encoder
    heads = {"retrieval": 2 * D + 1}
    labels = (2 * D * 2 * D + 2 * D) + 4 * D + (2 * D * NUM_LABELS + NUM_LABELS)
    own = replace(config, tokenizer=replace(config.tokenizer, vocab_size=400))
    assert count(own) == sum(each.numel() for each in towers.parameters()) + heads.get(
        name.rpartition("_")[2], labels
    )


M3AE_RATES = {"encoder.image": 1, "encoder.text": 1, "encoder.fusion": 5}


@pytest.mark.parametrize(
    ("name", "of_heads"),
    [
        ("m3ae_base", {"token_head": 5, "pixel_decoder": 5, "contrast": 5}),
        ("m3ae_vqa", {"answer_head": 50}),
        ("m3ae_classification", {"class_head": 10}),
        ("m3ae_retrieval", {"contrast": 5}),
    ],
)
def test_the_parts_of_m3ae_learn_at_rates_of_their_own(name, of_heads):
    """Patterns reach every parameter outside the encoder, whatever it is called; what fine-tuning
    lacks is new to it."""

    def names(config: Config) -> list[str]:
        with torch.device("meta"):
            task = build_untrained(config, Sizes(vocab_size=400, labels=("", " ")))
        return [each for each, _ in task.named_parameters()]

    base = get_recipe("m3ae_base")
    config = base if name == "m3ae_base" else get_finetune_recipe(name, base)
    known = names(config)
    scales = lr_scales(known, config.train, [] if config is base else {*known} - {*names(base)})
    found: dict[str, set[float]] = {}
    for each, scale in scales.items():
        parts = each.split(".")
        found.setdefault(".".join(parts[: 2 if parts[0] == "encoder" else 1]), set()).add(scale)
    assert found == {part: {scale} for part, scale in (M3AE_RATES | of_heads).items()}


FILE = """
from dataclasses import replace
from eve_vl.recipes import get_finetune_recipe, get_recipe, starts_from
def small():
    return replace(get_recipe("tiny"), tokenizer=replace(get_recipe("tiny").tokenizer, vocab_size=300))
@starts_from("tiny")
def ask(init):
    return get_finetune_recipe("demo_vqa", init)
def judge(init):
    return get_finetune_recipe("demo_nlvr2", init)
def three(a, b, c): ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> Path:
    """A file of recipes next to a run of tiny shape with smaller images."""
    (tmp_path / "own_shapes.py").write_text(FILE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_shapes", raising=False)
    (tmp_path / "run").mkdir()
    config = replace(get_recipe("tiny"), input=replace(get_recipe("tiny").input, image_size=16))
    for name, text in {
        "config.json": config_to_json(config),
        "model.safetensors": "",
        "state.json": "{}",
    }.items():
        (tmp_path / "run" / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "start", "head", "changes"),
    [
        *((name, "demo", name, {}) for name in recipes("finetune") if name.startswith("demo_")),
        *(
            (name, "base", name, {"image": LARGER.get(name, 224)})
            for name in ("vqa", "nlvr2", "retrieval", "classification")
        ),
        ("easy_vqa", "scenes", "vqa", {}),
        ("search_small", "demo", "search_small", {}),
        ("own_shapes.py:ask", "tiny", "vqa", {}),
        ("own_shapes.py:judge", "base", "demo_nlvr2", {}),
        ("own_shapes.py:ask --init run", "tiny", "vqa", {"image": 16}),
    ],
)
def test_inspect_counts_recipes_of_fine_tuning_and_says_what_they_start_from(
    eve, own, words, start, head, changes
):
    done = eve("inspect", *words.split(), "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    name, _, run = words.partition(" --init ")
    assert done.stdout.startswith(
        f"{name}: starts from {run or f'the recipe {start}; --init RUN selects a run'}\n"
    )
    shapes = SHAPES[start] | changes
    total = json.loads(Path("numbers.json").read_text())["parameters"]["total"]
    assert total == encoder_on_paper(**shapes) + head_on_paper(head, shapes["D"])


def test_inspect_counts_own_recipes_and_configs_of_runs(eve, own):
    heads = pretraining_on_paper(("mlm", "mim"), D=48, V=400, patch=8, decoder=DECODERS["tiny"])
    fewer = pretraining_on_paper(("mlm", "mim"), D=48, V=300, patch=8, decoder=DECODERS["tiny"])
    for words, expected in (
        ("own_shapes.py:small", encoder_on_paper(**TINY | {"V": 300}) + fewer),
        ("run/config.json", encoder_on_paper(**TINY | {"image": 16}) + heads),
    ):
        done = eve("inspect", words, "--json", "numbers.json")
        assert done.returncode == 0, done.stderr
        assert "starts from" not in done.stdout
        assert json.loads(Path("numbers.json").read_text())["parameters"]["total"] == expected


def test_inspect_prints_the_name_of_a_recipe_as_it_is(eve, own):
    """That of a run's config.json may be anything."""
    config = json.loads((own / "run/config.json").read_text()) | {"recipe": "[/red] :x:.py:a"}
    (own / "run/config.json").write_text(json.dumps(config))
    done = eve("inspect", "run/config.json")
    assert done.stdout.startswith("[/red] :x:.py:a: 3 blocks"), done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "inspect own_shapes.py:three",
            "is no recipe for eve pretrain or finetune: a function of no argument for eve pretrain",
        ),
        ("inspect own_shapes.py:aks", "own_shapes.py: no recipe 'aks'; did you mean 'ask'?"),
        ("inspect demo_vqs", "no recipe 'demo_vqs'; did you mean 'demo_vqa'?"),
        (
            "inspect own_shapes.py:small --init run",
            "--init has no effect: own_shapes.py:small is not a fine-tuning recipe",
        ),
        ("inspect runs/none", "runs/none: no such run folder"),
        ("inspect run --init run", "--init has no effect: run is a run"),
        ("inspect demo_vqa --init nowhere", "nowhere: no such run folder"),
        ("data check own_shapes.py --init run", "--init has no effect without --recipe; name one"),
    ],
)
def test_recipes_that_cannot_be_looked_at(eve, own, words, message):
    done = eve(*words.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_the_baseline_takes_the_arithmetic_that_its_docstring_says():
    demo, baseline = (
        inspect_config(get_recipe(name)).flops_per_step
        for name in ("demo_words", "demo_mlm_itc_itm")
    )
    assert f"{baseline / demo:.1f} times the arithmetic" in (
        find_recipe("pretrain", "demo_mlm_itc_itm").__doc__ or ""
    )


inspected = once(inspect_config)


@pytest.mark.parametrize(
    ("name", "init"), [*((name, "tiny") for name in EVES_TASKS), ("vqa", "base"), ("nlvr2", "base")]
)
def test_arithmetic_of_fine_tuning_is_counted_in_passes(name, init):
    """In passes over the pair: VQA one, NLVR2 two, retrieval three if it matches and each modality
    alone, less than one; classification one over what is read. A pass whose last block computes
    [CLS] alone costs less."""
    config = get_finetune_recipe(name, get_recipe(init))
    found = inspected(config)

    def blocks(task: TaskConfig) -> float:
        return inspected(replace(config, task=task)).flops["blocks"]

    one, whole, total = (
        blocks(VQAConfig()),
        blocks(NLVR2Config(head="paired")) / 2,
        found.flops["blocks"],
    )
    assert one < whole < 2 * one
    if isinstance(config.task, RetrievalConfig) and not config.task.itm_weight:
        assert config.task.pooling == "mean"
        assert 0.5 * whole < total < whole
    elif isinstance(config.task, RetrievalConfig):
        assert 3.5 * one < total < 4 * one
    elif isinstance(config.task, ClassificationConfig):
        assert total < one
        assert blocks(replace(config.task, inputs="both")) == one
    elif isinstance(config.task, NLVR2Config):
        assert total == pytest.approx(
            2 * (whole if config.task.head == "paired" else one), rel=1e-5
        )
    else:
        assert total == one
    assert found.active_parameters < sum(found.parameters.values()) == count(config)
