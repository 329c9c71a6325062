"""benchmarks/equal_compute/per_modality: weights per modality against a loop over tokens, and against shared weights."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, config_from_dict, config_to_json
from eve_vl.model.feed_forward import ModalityFeedForward
from eve_vl.model.tokens import join
from eve_vl.run.flops import inspect_config
from eve_vl.tasks.task import build_backbone
from helpers.tiny_encoder import SIZES, VOCAB, encoder, inputs_of, slow_norm, text_batch
from helpers.twins import randomize, slow_ffn, tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
per_modality = importlib.import_module("equal_compute.per_modality")

KINDS = ["image", "text", "pair", "pair of kept patches"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def section(**changes: object) -> EveModelConfig:
    return per_modality.PerModalityConfig(
        **vars(tiny_config().model) | {"deep_ffn": "modality"} | changes
    )


def random_encoder() -> Any:
    model = build_backbone(section(), SIZES, VOCAB)
    assert type(model) is per_modality.PerModalityEncoder
    randomize(model, 0, std=0.4)
    return model.eval()


def slow_attention(block: Any, x: list[Tensor], is_text: list[bool]) -> list[Tensor]:
    """One token after the other: norm and projections of its modality; then each head's softmax over all tokens."""
    attn, D = block.attn, len(x[0])
    found = []
    for token, text in zip(x, is_text, strict=True):
        own = attn.text if text else attn.image
        q, k, v = own.qkv.weight.split(D)
        normed = slow_norm(own.norm, token)
        found.append(torch.stack([q @ normed + own.q_bias, k @ normed, v @ normed + own.v_bias]))
    q_NHd, k_NHd, v_NHd = torch.stack(found, dim=1).unflatten(2, (attn.num_heads, -1))
    joined = []
    for q_Hd in q_NHd:
        weights = [(k_NHd[:, h] @ q / math.sqrt(len(q))).softmax(0) for h, q in enumerate(q_Hd)]
        joined.append(torch.cat([weights_N @ v_NHd[:, h] for h, weights_N in enumerate(weights)]))
    return [attn.proj.weight @ token + attn.proj.bias for token in joined]


def slow_encode(model: Any, x_BND: Tensor, num_image: int, is_padding_BN: Tensor | None) -> Tensor:
    """One sample after the other without padding, one token after the other; 0 at padding."""
    outputs = torch.zeros_like(x_BND)
    for b, sample in enumerate(x_BND):
        real = [n for n in range(len(sample)) if is_padding_BN is None or not is_padding_BN[b, n]]
        is_text = [n >= num_image for n in real]
        x = [slow_norm(model.norm_pre, sample[n]) for n in real]
        for block in model.blocks:
            assert isinstance(block.ffn, ModalityFeedForward)
            branch = slow_attention(block, x, is_text)
            x = [token + block.scale1 * each for token, each in zip(x, branch, strict=True)]
            for number, text in enumerate(is_text):
                norm, net = (
                    (block.ffn.norm_text, block.ffn.text)
                    if text
                    else (block.ffn.norm_image, block.ffn.image)
                )
                x[number] = x[number] + block.scale2 * slow_ffn(
                    slow_norm(norm, x[number]), *net.parameters()
                )
        for n, token in zip(real, x, strict=True):
            outputs[b, n] = slow_norm(model.norm, token)
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_states_equal_a_loop_over_tokens(kind):
    """All states, and those that search and token prediction read."""
    model = random_encoder()
    image, text = inputs_of(model, kind)
    tokens = join(image, text)
    expected = slow_encode(model, tokens.x_BND, tokens.num_image, tokens.is_padding_BN)
    found = model.encode(image, text).x_BND
    if tokens.is_padding_BN is not None:
        found = found.masked_fill(tokens.is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    first = 0 if text is None else tokens.num_image
    torch.testing.assert_close(model.cls(image, text)[0], expected[:, first], rtol=1e-4, atol=1e-4)
    if text is not None:
        read = torch.tensor([1, 7, 13])
        states, _ = model.for_tokens(image, text, read)
        torch.testing.assert_close(
            states, expected[:, tokens.num_image :].flatten(0, 1)[read], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_in_both_modalities_give_the_shared_model(kind):
    """Also its gradients: those of the modalities add up."""
    shared: Any = encoder(deep_ffn="modality")
    model = random_encoder()
    weights = {}
    for name, tensor in shared.state_dict().items():
        own = re.sub(r"norm1(?=\.)", "attn.norm", name)
        names = [re.sub(r"attn\.(?!proj)", f"attn.{each}.", own) for each in ("image", "text")]
        weights |= dict.fromkeys(names, tensor)
    model.load_state_dict(weights)
    torch.manual_seed(1)
    image, text = inputs_of(shared, kind)
    torch.manual_seed(1)
    states = [shared.encode(image, text).x_BND, model.encode(*inputs_of(model, kind)).x_BND]
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)
    for each in states:
        (each * torch.linspace(-1, 1, each.numel()).view(each.shape)).sum().backward()
    attn, own = shared.blocks[0].attn, model.blocks[0].attn
    parts = [
        each.qkv.weight.grad for each in (own.image, own.text) if each.qkv.weight.grad is not None
    ]
    assert len(parts) == (2 if "pair" in kind else 1)
    torch.testing.assert_close(sum(parts), attn.qkv.weight.grad, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_other_modalitys_weights_have_no_effect_on_an_image_or_a_text():
    model = random_encoder()
    image, (ids, is_padding) = inputs_of(model, "image")[0], text_batch()
    before = model.cls(image, None)[0], model.cls(None, model.text(ids, is_padding))[0]
    for block in model.blocks:
        randomize(block.attn.text, 9)
    assert torch.equal(model.cls(image, None)[0], before[0])
    assert not torch.equal(model.cls(None, model.text(ids, is_padding))[0], before[1])


def test_parameters_are_counted_and_arithmetic_stays():
    config = tiny_config(model={"deep_ffn": "modality"})
    shared, own = inspect_config(config), inspect_config(replace(config, model=section()))
    D, depth = config.model.embed_dim, section().depth
    more = depth * (3 * D * D + 2 * D + 2 * D)  # a second qkv with biases of q and v, a second norm
    assert own.parameters == shared.parameters | {"blocks": shared.parameters["blocks"] + more}
    assert own.active_parameters == shared.active_parameters + more
    assert own.flops == shared.flops


def test_a_config_comes_back_from_its_file():
    config = replace(tiny_config(), model=section())
    again = config_from_dict(json.loads(config_to_json(config)), "config.json")
    assert again == config
    assert again.model.incompatible_fields(tiny_config().model) == ["name"]
