"""Grad-CAM against weights that are moved one by one in a hand-written attention.

Letters: B batch, N all tokens, T text tokens, D width, H heads.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import EveModelConfig
from eve_vl.model.attention import Attention, attention_mask, attention_weights
from eve_vl.model.backbone import Backbone
from eve_vl.model.encoder import Encoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.submodules import replace_submodules
from eve_vl.predict.heatmap import gradcam
from helpers.twins import randomize, tiny_config

VOCAB = 30
NUM_IMAGE = 17  # [CLS] and 16 patches
STEP = 1e-5


def double_encoder() -> Encoder:
    """An encoder in double precision, in evaluation mode."""
    config = tiny_config()
    assert isinstance(config.model, EveModelConfig)
    encoder = Encoder(config.model, config.input, VOCAB)
    randomize(encoder, seed=3, std=0.35)
    return encoder.double().eval()


def states(encoder: Backbone, batch: int = 1, seed: int = 4) -> Tensor:
    """What an encoder makes of a batch whose first text is the longest, (B, N, D)."""
    rng = torch.Generator().manual_seed(seed)
    pixels_BCHW = torch.randn(batch, 3, 16, 16, generator=rng, dtype=torch.float64)
    ids_BT = torch.randint(3, VOCAB, (batch, 5), generator=rng)
    is_padding_BT = torch.arange(5) >= torch.tensor([5, 2, 4][:batch])[:, None]
    return encoder.encode(encoder.image(pixels_BCHW), encoder.text(ids_BT, is_padding_BT)).x_BND


def score_of(states_BND: Tensor) -> Tensor:
    """A number that depends only on the state of the first sample's text [CLS]."""
    return (
        states_BND[0, NUM_IMAGE] * torch.linspace(-1, 1, states_BND.shape[2], dtype=torch.float64)
    ).sum()


class SlowAttention(torch.nn.Module):
    """Attention of one sample in loops; one weight is moved by `step`."""

    def __init__(
        self, attention: Attention, moved: tuple[int, int, int] | None = None, step: float = 0.0
    ):
        super().__init__()
        self.weights, self.moved, self.step = dict(attention.named_parameters()), moved, step
        self.num_heads = attention.num_heads
        self.seen: list[Tensor] = []

    def forward_packed(self, x_ND: Tensor, rows: PackedTokens, read: None, bias: None) -> Tensor:
        assert read is None and bias is None and rows.shape == (1, len(x_ND))
        w_q, w_k, w_v = self.weights["qkv.weight"].chunk(3)
        q, k, v = (
            x_ND @ w_q.T + self.weights["q_bias"],
            x_ND @ w_k.T,
            x_ND @ w_v.T + self.weights["v_bias"],
        )
        d = q.shape[1] // self.num_heads
        heads = []
        for head in range(self.num_heads):
            own = slice(head * d, (head + 1) * d)
            weights_NN = (q[:, own] @ k[:, own].T / d**0.5).softmax(1)
            self.seen.append(weights_NN)
            if self.moved is not None and self.moved[0] == head:
                weights_NN = weights_NN.clone()
                weights_NN[self.moved[1:]] += self.step
            heads.append(weights_NN @ v[:, own])
        return torch.cat(heads, dim=1) @ self.weights["proj.weight"].T + self.weights["proj.bias"]


@pytest.mark.parametrize("with_padding", [False, True])
def test_explicit_attention_equals_the_fused_kernel(with_padding):
    attention = Attention(16, 2)
    randomize(attention, seed=1)
    x_BND = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))
    may_attend = (
        (torch.arange(7) < torch.tensor([7, 3, 1])[:, None])[:, None, None]
        if with_padding
        else None
    )
    q, k, v = attention.split_heads(x_BND)
    weights_BHNN = attention_weights(q, k, may_attend)
    torch.testing.assert_close(
        weights_BHNN @ v, F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
    )
    torch.testing.assert_close(weights_BHNN.sum(3), torch.ones(3, 2, 7))
    if with_padding:
        assert not weights_BHNN[1, :, :, 3:].any()
    torch.testing.assert_close(
        attention.join_heads(weights_BHNN @ v),
        attention(x_BND, None if may_attend is None else ~may_attend[:, 0, 0]),
    )


@pytest.mark.parametrize("block", [0, 1, 2])
def test_weight_times_gradient_equals_moving_each_weight(block):
    encoder = double_encoder()
    name = encoder.image_attention(at_pair=True)[0][block]
    attention = encoder.get_submodule(name)
    assert isinstance(attention, Attention)
    cam_BNN, _ = gradcam(encoder, name, lambda twin: score_of(states(twin)))
    assert cam_BNN.shape == (1, NUM_IMAGE + 5, NUM_IMAGE + 5)

    @torch.no_grad()
    def moved_score(moved: tuple[int, int, int], step: float) -> float:
        return score_of(
            states(replace_submodules(encoder, {name: SlowAttention(attention, moved, step)}))
        ).item()

    watching = SlowAttention(attention)
    with torch.no_grad():
        before = score_of(states(replace_submodules(encoder, {name: watching}))).item()
    keys = range(0, NUM_IMAGE + 5, 2)
    for query, key in itertools.product((0, NUM_IMAGE, NUM_IMAGE + 3), keys):
        expected = 0.0
        for head in range(2):
            moved = (head, query, key)
            gradient = (moved_score(moved, STEP) - moved_score(moved, -STEP)) / (2 * STEP)
            expected += max(0.0, watching.seen[head][query, key].item() * gradient) / 2
        assert cam_BNN[0, query, key].item() == pytest.approx(expected, abs=1e-8)
    assert score_of(states(encoder)).item() == pytest.approx(before, rel=1e-10)
    assert cam_BNN[0, NUM_IMAGE].max() > 1e-3


def test_the_encoder_is_left_as_it_was():
    encoder = double_encoder()
    modules, before = dict(encoder.named_modules()), states(encoder)
    gradcam(encoder, "blocks.1.attn", lambda twin: score_of(states(twin)))
    with pytest.raises(ZeroDivisionError):
        gradcam(encoder, "blocks.1.attn", lambda twin: score_of(states(twin)) / (1 // 0))
    assert torch.equal(states(encoder), before)
    assert dict(encoder.named_modules()) == modules
    assert not any(module._forward_hooks for module in encoder.modules())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_works_where_gradients_are_off():
    encoder = double_encoder().requires_grad_(False)
    with torch.no_grad():
        cam_BNN, _ = gradcam(encoder, "blocks.0.attn", lambda twin: score_of(states(twin)))
    assert cam_BNN.max() > 0
    assert not cam_BNN.requires_grad


def test_padding_gets_nothing_and_samples_do_not_meet():
    cam_BNN, matters_BN = gradcam(
        double_encoder(), "blocks.1.attn", lambda twin: score_of(states(twin, batch=3)[1:])
    )
    assert not cam_BNN[0].any()
    assert not cam_BNN[2].any()
    assert not matters_BN[0].any()
    real = NUM_IMAGE + 2
    assert not cam_BNN[1, :, real:].any()
    assert not cam_BNN[1, real:].any()
    assert not matters_BN[1, real:].any()
    assert matters_BN[1, :real].all()


def test_in_the_last_block_only_the_row_that_is_read_matters():
    _, matters_BN = gradcam(double_encoder(), "blocks.2.attn", lambda twin: score_of(states(twin)))
    assert matters_BN[0].nonzero().flatten().tolist() == [NUM_IMAGE]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_parts_of_a_batch_that_go_one_by_one_are_put_together(block):
    config = tiny_config(model={"routing": "reference-dropless"})
    assert isinstance(config.model, EveModelConfig)
    encoder = Encoder(config.model, config.input, VOCAB)
    randomize(encoder, seed=3, std=0.35)
    encoder.double().eval()
    pixels_BCHW = torch.randn(
        4, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    ids_BT, is_padding_BT = (
        torch.arange(20).view(4, 5) + 3,
        torch.arange(5) >= torch.tensor([5, 2, 4, 5])[:, None],
    )

    def look(rows: slice, num_passes: int) -> tuple[Tensor, Tensor]:
        def score(twin: Encoder) -> Tensor:
            image, text = (
                twin.image(pixels_BCHW[rows]),
                twin.text(ids_BT[rows], is_padding_BT[rows]),
            )
            return twin.encode(image, text, num_passes=num_passes).cls_BD.sin().sum()

        return gradcam(encoder, encoder.image_attention(at_pair=True)[0][block], score)

    halves = [look(slice(start, start + 2), 1) for start in (0, 2)]
    for found, expected in zip(look(slice(0, 4), 2), zip(*halves, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_to_other_keys_and_with_a_bias_is_watched_too(keys, bias):
    attention = Attention(16, 2)
    randomize(attention, seed=1)
    x_BND, keys_BMD, bias_HNM = (
        torch.randn(2, 5, 16),
        torch.randn(2, 7, 16),
        torch.randn(2, 5, 7 if keys else 5),
    )
    is_padding_BM = torch.arange(7 if keys else 5) >= torch.tensor([4, 7])[:, None]
    holder = torch.nn.ModuleDict({"attn": attention})
    other_BMD = keys_BMD if keys else None

    def score(twin: torch.nn.ModuleDict) -> Tensor:
        attn: Any = twin["attn"]
        mask = attention_mask(is_padding_BM, bias_HNM if bias else None)
        return attn.join_heads(attn.attend(*attn.split_heads(x_BND, other_BMD), mask)).sin().sum()

    cam_BNM, _ = gradcam(holder, "attn", score)
    q, k, v = attention.split_heads(x_BND, other_BMD)
    scores_BHNM = q @ k.mT / 8**0.5 + (bias_HNM if bias else 0)
    weights_BHNM = (
        scores_BHNM.masked_fill(is_padding_BM[:, None, None], float("-inf"))
        .softmax(3)
        .detach()
        .requires_grad_()
    )
    attention.join_heads(weights_BHNM @ v).sin().sum().backward()
    assert weights_BHNM.grad is not None
    torch.testing.assert_close(
        cam_BNM, (weights_BHNM.detach() * weights_BHNM.grad).relu().mean(1), rtol=1e-4, atol=1e-5
    )


def test_threads_look_at_one_encoder_at_once():
    """Eight threads at a time, next to plain uses, get the results of one after the other."""
    encoder = double_encoder()
    jobs = [(f"blocks.{number % 3}.attn", number) for number in range(24)]

    def look(job: tuple[str, int]) -> tuple[Tensor, Tensor, Tensor]:
        name, seed = job
        plain = states(encoder, seed=seed).detach()
        return *gradcam(encoder, name, lambda twin: score_of(states(twin, seed=seed))), plain

    one_by_one = [look(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(look, jobs))
    for found, expected in zip(at_once, one_by_one, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
