"""Dual encoder and co-attention against torch's attention, one pair at a time.

Letters: B batch, P tokens of an image, T text tokens, N tokens of either, D width.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import DualEncoderConfig, TaskConfig
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.model.tower import Tower
from eve_vl.recipes import get_recipe
from eve_vl.run.loading import LoadedRun, build_task, build_untrained
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.systems.medical.m3ae.encoder import FusedDualEncoder
from eve_vl.systems.medical.m3ae.fusion import CoAttention
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.heads import heads_of
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.task import MaskedSignalTask
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError
from helpers.tiny_encoder import torch_twin
from helpers.tiny_runs import ANSWERS, TEXT, noise
from helpers.tiny_towers import tiny_towers
from helpers.twins import CAPTIONS, randomize, tiny_config

VOCAB = 300
NUM_IMAGE = 17
LENGTHS = (6, 2, 4)
DECODER = {"decoder_depth": 1, "decoder_dim": 16, "decoder_num_heads": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def towers(**model: Any) -> FusedDualEncoder:
    config = tiny_towers(ClassificationConfig(), **model)
    assert isinstance(config.model, M3aeModelConfig)
    encoder = FusedDualEncoder(config.model, config.input, VOCAB).eval()
    randomize(encoder, 1, std=0.4)
    return encoder


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, ids and padding of three pairs."""
    is_padding = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return torch.randn(3, 3, 16, 16), torch.randint(1, VOCAB, (3, max(LENGTHS))), is_padding


def slow_tower(tower: Tower, x_ND: Tensor, *, is_image: bool) -> Tensor:
    """One sequence without padding through the blocks."""
    rows = PackedTokens.of(
        Tokens(x_BND=x_ND[None], num_image=len(x_ND) * is_image), tower.num_heads
    )
    x_ND = tower.norm_pre(x_ND)
    for block in tower.blocks:
        x_ND, _ = block(x_ND, rows)
    return tower.norm(x_ND)


def slow_layer(layer: CoAttention, x_1ND: Tensor, other_1MD: Tensor) -> Tensor:
    """Section 3.1: to itself, add & norm; to the other, add & norm; GELU network, add & norm."""
    attended, _ = torch_twin(layer.attn)(x_1ND, x_1ND, x_1ND)
    x = F.layer_norm(x_1ND + attended, (16,), layer.norm1.weight, layer.norm1.bias, 1e-6)
    attended, _ = torch_twin(layer.cross)(x, other_1MD, other_1MD)
    x = F.layer_norm(x + attended, (16,), layer.norm2.weight, layer.norm2.bias, 1e-6)
    hidden = (
        F.gelu(x @ layer.ffn.fc1.weight.T + layer.ffn.fc1.bias) @ layer.ffn.fc2.weight.T
        + layer.ffn.fc2.bias
    )
    return F.layer_norm(x + hidden, (16,), layer.norm3.weight, layer.norm3.bias, 1e-6)


@torch.no_grad()
def test_pairs_equal_a_twin_by_torchs_attention_one_pair_at_a_time():
    """Both sides see the other as it was before the layer; padding is seen by nobody."""
    encoder = towers()
    pixels, ids, is_padding = batch()
    image = encoder.image(pixels)
    text = encoder.text(ids, is_padding)
    encoded = encoder.encode(image, text)
    pooled, _ = encoder.cls(image, text)
    places = torch.tensor([0, 1, 6, 15])
    some, _ = encoder.for_tokens(image, text, places)
    assert pooled.shape == (3, encoder.pair_dim) == (3, 32)
    for b, length in enumerate(LENGTHS):
        states = slow_tower(
            encoder.image, encoder.image.embed(pixels[b : b + 1]).x_BND[0], is_image=True
        )
        words = slow_tower(
            encoder.text, encoder.text.embed(ids[b : b + 1, :length], None).x_BND[0], is_image=False
        )
        torch.testing.assert_close(encoder.cls(image, None)[0][b], states[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            encoder.encode(None, text).x_BND[b, :length], words, rtol=1e-4, atol=1e-5
        )
        x = encoder.fusion.image_proj(states)[None]
        y = encoder.fusion.text_proj(words)[None]
        for block in encoder.fusion.blocks:
            image_layer = block.get_submodule("image")
            text_layer = block.get_submodule("text")
            assert isinstance(image_layer, CoAttention)
            assert isinstance(text_layer, CoAttention)
            new_x = slow_layer(image_layer, x, y)
            y = slow_layer(text_layer, y, x)
            x = new_x
        torch.testing.assert_close(
            encoded.x_BND[b, : NUM_IMAGE + length], torch.cat([x[0], y[0]]), rtol=1e-4, atol=1e-5
        )
        sides = encoder.fusion.text_pooler(y[0, 0]), encoder.fusion.image_pooler(x[0, 0])
        torch.testing.assert_close(pooled[b], torch.cat(sides).tanh(), rtol=1e-4, atol=1e-5)
        own_places = [place % 6 for place in places.tolist() if place // 6 == b]
        torch.testing.assert_close(some[places // 6 == b], y[0, own_places], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_towers_once_and_co_attention_for_each_pair_equal_all_at_once():
    encoder = towers()
    pixels, ids, is_padding = batch()
    rows = torch.tensor([0, 0, 2, 1, 2])
    columns = torch.tensor([1, 0, 2, 2, 0])
    cached = (
        index_tokens(encoder.image(pixels), rows),
        index_tokens(encoder.text(ids, is_padding), columns),
    )
    at_once = encoder.image(pixels[rows]), encoder.text(ids[columns], is_padding[columns])
    torch.testing.assert_close(
        encoder.cls(*cached)[0], encoder.cls(*at_once)[0], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_dropped_patches_are_as_if_there_were_none():
    """The tower computes on the [CLS] and what is kept, each with its own position."""
    encoder = towers()
    pixels, *_ = batch()
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    states = encoder.image(pixels, keep).x_BND
    whole = encoder.image.embed(pixels).x_BND
    for b in range(3):
        expected = whole[b, [0, *(1 + keep[b]).tolist()]]
        torch.testing.assert_close(
            encoder.image.norm(states[b]),
            slow_tower(encoder.image, expected, is_image=True),
            rtol=1e-4,
            atol=1e-5,
        )


def pixel_states(tap: int, task: MaskedSignalTask, wrong: bool = False) -> Tensor:
    """What M3AE's pass of masked pixels predicts, (1, 12, 48), with the right caption or
    another."""
    pixels = torch.linspace(-1, 1, 768).view(1, 3, 16, 16)
    ids = torch.tensor([[1, 7, 8, 9]])
    order = torch.arange(16).view(1, 16)
    text = task.encoder.text(ids + 20 * wrong, None)
    return task.pixel_decoder(
        task.encoder.for_pixels(task.encoder.image(pixels, order[:, :4]), text),
        order[:, :4],
        order[:, 4:],
    )


@pytest.mark.parametrize("tap", [0, 1, 2])
def test_words_reach_pixels_through_co_attention_below_the_tap_alone(tap):
    """At tap 0 the caption changes no bit; layers from the tap on get no gradient."""
    config = tiny_towers(MaskedSignalConfig(**DECODER), pixel_layer=tap)  # pyright: ignore[reportArgumentType]
    task = build_untrained(config, Sizes(vocab_size=VOCAB))
    assert isinstance(task, MaskedSignalTask)
    right = pixel_states(tap, task)
    wrong = pixel_states(tap, task, wrong=True)
    assert torch.equal(right, wrong) == (tap == 0)
    right.square().sum().backward()
    named = dict(task.encoder.named_parameters())
    for number in range(2):
        of_layer = [
            named[name].grad for name in named if name.startswith(f"fusion.blocks.{number}.image")
        ]
        reached = [gradient is not None and bool(gradient.any()) for gradient in of_layer]
        assert all(reached) if number < tap else not any(reached)
    assert (named["text.embed.words.weight"].grad is not None) == (tap > 0)


def test_the_recipe_has_the_published_sizes():
    """Section 3.1: eleven blocks for images, twelve for texts, 2 × 6 layers of about 9.45M
    parameters, 113M in all."""
    with torch.device("meta"):
        task = build_untrained(get_recipe("m3ae_base"), Sizes(vocab_size=50_265))
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())  # noqa: E731
    D = 768
    FF = 3072
    encoder = task.encoder
    norm = 2 * D
    attention = 4 * D * D + 3 * D
    network = 2 * D * FF + FF + D
    block = 2 * norm + attention + network + 2 * D
    layer = 2 * attention + network + 3 * norm
    assert count(encoder.get_submodule("fusion.blocks")) == 12 * layer
    assert round(layer / 1e6, 2) == 9.45
    assert round(12 * layer / 1e6) == 113
    assert count(encoder.get_submodule("fusion")) == 12 * layer + 4 * (D * D + D)
    assert count(encoder.image) == (D * D + D) + D + (1 + 324) * D + D + norm + 11 * block + norm  # pyright: ignore
    assert count(encoder.text) == 50_265 * D + norm + 64 * D + D + 12 * block + norm  # pyright: ignore
    assert task.contrast.match_head.in_features == 1536  # pyright: ignore


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            MaskedSignalConfig(),
            "image_text",
            r"task\.mlm_weight 1\.0 needs states of pairs, which model dual_encoder",
        ),
        (ContrastMatchConfig(mlm_weight=0.0), "image_text", r"task\.itm_weight 1\.0 needs"),
        (RetrievalConfig(), "image_text", r"task\.itm_weight 1\.0 needs"),
        (VQAConfig(), "image_text", r"task\.name vqa needs"),
        (NLVR2Config(), "image_text", r"task\.name nlvr2 needs"),
        (PairConfig(), "image_text", r"task\.name pair compares whole items and single modalities"),
        (ClassificationConfig(inputs="both"), "image_text", r"task\.inputs both needs"),
        (MaskedSignalConfig(mim_weight=0.0), "text", None),
        (MaskedSignalConfig(mlm_weight=0.0), "image_text", None),
        (ClassificationConfig(inputs="text"), "image_text", None),
        (RetrievalConfig(itm_weight=0.0, rerank=0), "image_text", None),
    ],
)
def test_towers_that_nothing_joins_refuse_what_needs_pairs(task, rows, message):
    config = tiny_config()
    section = DualEncoderConfig()

    def made():
        return replace(config, task=task, model=section, data=replace(config.data, modality=rows))

    if message is None:
        assert made().model is section
    else:
        with pytest.raises(UserError, match=message):
            made()


def test_bad_values_and_pairs_of_bare_towers_are_said_in_a_line():
    for values, message in (
        ({"pixel_layer": 7}, "pixel_layer 7 is not between 0 and fusion_depth 6"),
        ({"embed_dim": 770}, "embed_dim 770 is not divisible by num_heads 12"),
        ({"dropout": 1.0}, r"dropout 1\.0 is not in \[0, 1\)"),
        ({"towers": "bert"}, "towers 'bert' is not one of eve, clip_roberta, clip, siglip"),
        (
            {"towers": "clip"},
            "towers clip have no co-attention: take model dual_encoder",
        ),
        (
            {"text_dim": 120},
            "text_dim, text_num_heads and text_mlp_ratio have no effect with co-attention, .*",
        ),
    ):
        section = replace(M3aeModelConfig(), **values)
        with pytest.raises(UserError, match=rf"^model\.{message}$"):
            replace(tiny_config(), model=section)
    with pytest.raises(UserError, match="pair compares whole items and single modalities"):
        tiny_towers(PairConfig())
    with pytest.raises(UserError, match="joint_masking masks both modalities"):
        tiny_towers(MaskedSignalConfig(joint_masking=True, **DECODER))  # pyright: ignore[reportArgumentType]
    config = tiny_towers(ClassificationConfig())
    bare = DualEncoderConfig(embed_dim=16, num_heads=2, mlp_ratio=2.0, image_depth=1, text_depth=1)
    encoder = DualEncoder(bare, config.input, VOCAB)
    pixels, ids, is_padding = batch()
    with pytest.raises(UserError, match="give one of the two"):
        encoder.encode(encoder.image(pixels), encoder.text(ids, is_padding))


def run(task: TaskConfig) -> LoadedRun:
    config = tiny_towers(task)
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    built = build_task(config, tokenizer, ANSWERS)
    randomize(built, seed=1, std=0.35)
    return LoadedRun(
        config=config, tokenizer=tokenizer, task=built.eval(), step=1, folder=config.out
    )


def test_a_pre_trained_run_answers_all_calls():
    eve = Eve(run(ContrastMatchConfig(mim_weight=1.0, **DECODER)))  # pyright: ignore[reportArgumentType]
    assert set(eve.calls) >= {"fill_mask", "reconstruct", "match", "explain"}
    assert len(eve.fill_mask(noise(0), "a [MASK] circle", top=2).guesses[0]) == 2
    assert eve.reconstruct(noise(0), TEXT).reconstructed.shape == (16, 16, 3)
    alone = [[eve.match(noise(row), text) for text in (TEXT, "a circle")] for row in range(2)]
    np.testing.assert_allclose(
        eve.match([noise(0), noise(1)], [TEXT, "a circle"]), alone, rtol=1e-4
    )
    assert eve.encode_image(noise(0)).shape == eve.encode_text(TEXT).shape == (1, 16)


def test_a_run_looks_through_the_texts_attention_to_images():
    """For images only, through the tower's; in the last layer the head reads only [CLS]."""
    vqa = Eve(run(VQAConfig()))
    images = Eve(run(ClassificationConfig()))
    heatmap = vqa.explain(noise(0, 20, 24), TEXT, word="blue")
    assert (heatmap.block, heatmap.heat[0].shape, heatmap.heat[0].max()) == (0, (20, 24), 1)
    assert vqa.explain(noise(0), TEXT, word="[CLS]", block=1).heat[0].max() == 1
    with pytest.raises(
        UserError, match='block 1: the attention of "blue" has no effect on the answer'
    ):
        vqa.explain(noise(0), TEXT, word="blue", block=1)
    assert images.explain(noise(0)).block == 1


@pytest.mark.parametrize("reads", ["image", "text", "both"])
def test_heads_are_as_wide_as_what_they_read(reads):
    task = run(ClassificationConfig(inputs=reads)).task
    assert task.get_submodule("class_head.0").in_features == (32 if reads == "both" else 16)
    for section in (
        VQAConfig(),
        NLVR2Config(head="concat"),
        NLVR2Config(head="paired"),
        NLVR2Config(head="compare"),
    ):
        assert heads_of(run(section).task).graphs()
