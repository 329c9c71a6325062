"""Dual encoder and co-attention against torch's attention, one pair at a time.

Letters: B batch, P tokens of an image, T text tokens, N tokens of either, M those that are attended
to, D width.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import DualEncoderConfig, TaskConfig
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens
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
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config
from helpers.tiny_encoder import torch_twin
from helpers.tiny_rows import CAPTIONS
from helpers.tiny_runs import ANSWERS, TEXT, noise
from helpers.tiny_towers import tiny_towers

VOCAB = 300
NUM_IMAGE = 17
LENGTHS = (6, 2, 4)
DECODER: dict[str, Any] = {
    "decoder_depth": 1,
    "decoder_dim": 16,
    "decoder_num_heads": 2,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def encoder() -> FusedDualEncoder:
    config = tiny_towers(ClassificationConfig())
    assert isinstance(config.model, M3aeModelConfig)
    encoder = FusedDualEncoder(config.model, config.input, VOCAB).eval()
    randomize(encoder, 1, std=0.4)
    return encoder


def three_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, ids and padding."""
    is_padding = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return torch.randn(3, 3, 16, 16), torch.randint(1, VOCAB, (3, max(LENGTHS))), is_padding


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def slow_tower(tower: Tower, x_ND: Tensor, num_image: int) -> Tensor:
    """Send one sequence without padding through the blocks."""
    rows = PackedTokens.of(Tokens(x_BND=x_ND[None], num_image=num_image), tower.num_heads)
    x_ND = tower.norm_pre(x_ND)
    for block in tower.blocks:
        x_ND, _ = block(x_ND, rows)
    return tower.norm(x_ND)


def slow_fusion(encoder: FusedDualEncoder, x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Send states of an image and a text through the co-attention.

    Both sides see the other as it was before the layer.
    """
    x_1ND = encoder.fusion.image_proj(x_ND)[None]
    y_1ND = encoder.fusion.text_proj(y_ND)[None]
    for block in encoder.fusion.blocks:
        new_x_1ND = slow_layer(block.get_submodule("image"), x_1ND, y_1ND)
        y_1ND = slow_layer(block.get_submodule("text"), y_1ND, x_1ND)
        x_1ND = new_x_1ND
    return x_1ND[0], y_1ND[0]


def slow_layer(layer: nn.Module, x_1ND: Tensor, other_1MD: Tensor) -> Tensor:
    """Section 3.1: to itself, add & norm; to the other, add & norm; GELU network, add & norm."""
    assert isinstance(layer, CoAttention)
    attended, _ = torch_twin(layer.attn)(x_1ND, x_1ND, x_1ND)
    x = F.layer_norm(x_1ND + attended, (16,), layer.norm1.weight, layer.norm1.bias, 1e-6)
    attended, _ = torch_twin(layer.cross)(x, other_1MD, other_1MD)
    x = F.layer_norm(x + attended, (16,), layer.norm2.weight, layer.norm2.bias, 1e-6)
    hidden = F.gelu(F.linear(x, layer.ffn.fc1.weight, layer.ffn.fc1.bias))
    branch = F.linear(hidden, layer.ffn.fc2.weight, layer.ffn.fc2.bias)
    return F.layer_norm(x + branch, (16,), layer.norm3.weight, layer.norm3.bias, 1e-6)


@torch.no_grad()
def test_pairs_equal_a_twin_by_torchs_attention_one_pair_at_a_time(encoder):
    pixels, ids, is_padding = three_pairs()
    image = encoder.image(pixels)
    text = encoder.text(ids, is_padding)
    encoded = encoder.encode(image, text)
    pooled, _ = encoder.cls(image, text)
    assert pooled.shape == (3, encoder.pair_dim) == (3, 32)
    places = torch.tensor([0, 1, 6, 15])
    states_of_places, _ = encoder.for_tokens(image, text, places)
    for b, length in enumerate(LENGTHS):
        image_embedding = encoder.image.embed(pixels[b : b + 1]).x_BND[0]
        text_embedding = encoder.text.embed(ids[b : b + 1, :length], None).x_BND[0]
        image_states = slow_tower(encoder.image, image_embedding, NUM_IMAGE)
        text_states = slow_tower(encoder.text, text_embedding, 0)
        assert_close(encoder.cls(image, None)[0][b], image_states[0])
        assert_close(encoder.encode(None, text).x_BND[b, :length], text_states)

        x_ND, y_ND = slow_fusion(encoder, image_states, text_states)
        assert_close(encoded.x_BND[b, : NUM_IMAGE + length], torch.cat([x_ND, y_ND]))
        text_pooled = encoder.fusion.text_pooler(y_ND[0])
        image_pooled = encoder.fusion.image_pooler(x_ND[0])
        assert_close(pooled[b], torch.cat([text_pooled, image_pooled]).tanh())
        assert_close(states_of_places[places // 6 == b], y_ND[places[places // 6 == b] % 6])


@torch.no_grad()
def test_dropped_patches_are_as_if_there_were_none(encoder):
    """The tower computes on the [CLS] and what is kept, each with its own position."""
    pixels, *_ = three_pairs()
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(3)])
    states = encoder.image(pixels, keep).x_BND
    embeddings = encoder.image.embed(pixels).x_BND
    for b in range(3):
        places = [0, *(1 + keep[b]).tolist()]
        expected = slow_tower(encoder.image, embeddings[b, places], len(places))
        assert_close(encoder.image.norm(states[b]), expected)


def predicted_pixels(task: MaskedSignalTask, first_word: int) -> Tensor:
    """Return what M3AE's pass of masked pixels predicts, (1, 12, 48)."""
    pixels = torch.linspace(-1, 1, 768).view(1, 3, 16, 16)
    order = torch.arange(16).view(1, 16)
    keep = order[:, :4]
    text = task.encoder.text(torch.tensor([[1, first_word, 8, 9]]), None)
    states = task.encoder.for_pixels(task.encoder.image(pixels, keep), text)
    return task.pixel_decoder(states, keep, order[:, 4:])


@pytest.mark.parametrize("tap", [0, 1, 2])
def test_words_reach_pixels_through_co_attention_below_the_tap_alone(tap):
    """At tap 0 the caption changes no bit; layers from the tap on get no gradient."""
    config = tiny_towers(MaskedSignalConfig(**DECODER), pixel_layer=tap)
    task = build_untrained(config, Sizes(vocab_size=VOCAB))
    assert isinstance(task, MaskedSignalTask)
    predicted = predicted_pixels(task, first_word=7)
    assert torch.equal(predicted, predicted_pixels(task, first_word=27)) == (tap == 0)
    predicted.square().sum().backward()
    for name, parameter in task.encoder.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.any())
        for number in range(2):
            if name.startswith(f"fusion.blocks.{number}.image"):
                assert has_gradient == (number < tap), name
        if name == "text.embed.words.weight":
            assert has_gradient == (tap > 0)


def test_the_recipe_has_the_published_sizes():
    """Section 3.1: eleven blocks for images, twelve for texts, 2 × 6 layers of about 9.45M
    parameters, 113M in all."""
    with torch.device("meta"):
        task: Any = build_untrained(get_recipe("m3ae_base"), Sizes(vocab_size=50_265))

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    D = 768
    hidden = 3072
    norm = 2 * D
    attention = 4 * D * D + 3 * D
    network = 2 * D * hidden + hidden + D
    block = 2 * norm + attention + network + 2 * D
    layer = 2 * attention + network + 3 * norm
    assert round(layer / 1e6, 2) == 9.45
    assert round(12 * layer / 1e6) == 113
    encoder = task.encoder
    assert count(encoder.fusion.blocks) == 12 * layer
    assert count(encoder.fusion) == 12 * layer + 4 * (D * D + D)
    image_embedding = (D * D + D) + D + (1 + 324) * D + D
    assert count(encoder.image) == image_embedding + norm + 11 * block + norm
    text_embedding = 50_265 * D + norm + 64 * D + D
    assert count(encoder.text) == text_embedding + 12 * block + norm
    assert task.contrast.match_head.in_features == 1536


# What does not go together


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            MaskedSignalConfig(),
            r"task\.mlm_weight 1\.0 needs states of pairs, which model dual_enc",
        ),
        (ContrastMatchConfig(mlm_weight=0.0), r"task\.itm_weight 1\.0 needs"),
        (RetrievalConfig(), r"task\.itm_weight 1\.0 needs"),
        (VQAConfig(), r"task\.name vqa needs"),
        (NLVR2Config(), r"task\.name nlvr2 needs"),
        (PairConfig(), r"task\.name pair compares whole items and single modalities"),
        (ClassificationConfig(inputs="both"), r"task\.inputs both needs"),
    ],
)
def test_towers_that_nothing_joins_refuse_tasks_that_need_pairs(task, message):
    with pytest.raises(UserError, match=message):
        replace(tiny_config(), task=task, model=DualEncoderConfig())


@pytest.mark.parametrize(
    ("task", "modality"),
    [
        (MaskedSignalConfig(mim_weight=0.0), "text"),
        (MaskedSignalConfig(mlm_weight=0.0), "image_text"),
        (ClassificationConfig(inputs="text"), "image_text"),
        (RetrievalConfig(itm_weight=0.0, rerank=0), "image_text"),
    ],
)
def test_towers_that_nothing_joins_take_all_others(task, modality):
    config = tiny_config(data={"modality": "image_text"})
    data = replace(config.data, modality=modality)
    section = DualEncoderConfig()
    assert replace(config, task=task, model=section, data=data).model is section


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pixel_layer": 7}, "pixel_layer 7 is not between 0 and fusion_depth 6"),
        ({"towers": "bert"}, "towers 'bert' is not one of eve, clip_roberta, clip, siglip"),
        ({"towers": "clip"}, "towers clip have no co-attention: take model dual_encoder"),
        (
            {"text_dim": 120},
            "text_dim, text_num_heads and text_mlp_ratio have no effect with co-attention, .*",
        ),
    ],
)
def test_bad_values_of_the_model_are_refused(values, message):
    with pytest.raises(UserError, match=rf"^model\.{message}$"):
        replace(tiny_config(), model=replace(M3aeModelConfig(), **values))


def test_tasks_that_the_model_cannot_have_are_refused():
    with pytest.raises(UserError, match="pair compares whole items and single modalities"):
        tiny_towers(PairConfig())
    with pytest.raises(UserError, match="joint_masking masks both modalities"):
        tiny_towers(MaskedSignalConfig(joint_masking=True, **DECODER))


def test_bare_towers_encode_no_pairs():
    section = DualEncoderConfig(
        embed_dim=16,
        num_heads=2,
        image_depth=1,
        text_depth=1,
    )
    encoder = DualEncoder(section, tiny_config().input, VOCAB)
    pixels, ids, is_padding = three_pairs()
    with pytest.raises(UserError, match="give one of the two"):
        encoder.encode(encoder.image(pixels), encoder.text(ids, is_padding))


# Runs


def run_of(task: TaskConfig) -> LoadedRun:
    config = tiny_towers(task)
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    built = build_task(config, tokenizer, ANSWERS)
    randomize(built, seed=1, std=0.35)
    return LoadedRun(
        config=config, tokenizer=tokenizer, task=built.eval(), step=1, folder=config.out
    )


def test_a_pre_trained_run_answers_all_calls():
    eve = Eve(run_of(ContrastMatchConfig(mim_weight=1.0, **DECODER)))
    assert set(eve.calls) >= {"fill_mask", "reconstruct", "match", "explain"}
    assert len(eve.fill_mask(noise(0), "a [MASK] circle", top=2).guesses[0]) == 2
    assert eve.reconstruct(noise(0), TEXT).reconstructed.shape == (16, 16, 3)
    assert eve.encode_image(noise(0)).shape == eve.encode_text(TEXT).shape == (1, 16)
    texts = [TEXT, "a circle"]
    one_by_one = [[eve.match(noise(row), text) for text in texts] for row in range(2)]
    np.testing.assert_allclose(
        eve.match(
            [
                noise(0),
                noise(1),
            ],
            texts,
        ),
        one_by_one,
        rtol=1e-4,
    )


def test_heatmaps_are_of_the_texts_attention_to_the_image():
    """In the last layer the head reads only [CLS]; without a text it is the tower's attention."""
    vqa = Eve(run_of(VQAConfig()))
    heatmap = vqa.explain(noise(0, 20, 24), TEXT, word="blue")
    assert heatmap.block == 0
    assert heatmap.heat[0].shape == (20, 24)
    assert heatmap.heat[0].max() == 1
    assert vqa.explain(noise(0), TEXT, word="[CLS]", block=1).heat[0].max() == 1
    message = 'block 1: the attention of "blue" has no effect on the answer'
    with pytest.raises(UserError, match=message):
        vqa.explain(noise(0), TEXT, word="blue", block=1)
    classifier = Eve(run_of(ClassificationConfig()))
    assert classifier.explain(noise(0)).block == 1


@pytest.mark.parametrize(
    "section",
    [
        ClassificationConfig(inputs="both"),
        VQAConfig(),
        NLVR2Config(head="concat"),
        NLVR2Config(head="paired"),
        NLVR2Config(head="compare"),
    ],
)
def test_every_head_of_pairs_fits_the_states_of_both_sides(section):
    assert heads_of(run_of(section).task).graphs()
