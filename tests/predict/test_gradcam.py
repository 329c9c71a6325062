"""Grad-CAM against weights that are moved one by one in a hand-written attention.

Letters: B batch, N all tokens, M keys, T text tokens, D width, H heads.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.model.attention import Attention, attention_mask, attention_weights
from eve_vl.model.backbone import Backbone
from eve_vl.model.encoder import Encoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.submodules import replace_submodules
from eve_vl.predict.gradcam import gradcam
from helpers.random_weights import randomize
from helpers.tiny_encoder import VOCAB, encoder

NUM_IMAGE = 17  # [CLS] and 16 patches
NUM_TOKENS = NUM_IMAGE + 5
STEP = 1e-5


def double_encoder(**changes: object) -> Encoder:
    """Return an encoder in double precision, in evaluation mode."""
    return encoder(seed=3, **changes).double()


def states(encoder: Backbone, batch_size: int = 1, seed: int = 4) -> Tensor:
    """Return the states of a batch whose first text is the longest, (B, N, D)."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch_size, 3, 16, 16, generator=rng, dtype=torch.float64)
    ids_BT = torch.randint(3, VOCAB, (batch_size, 5), generator=rng)
    lengths_B1 = torch.tensor([5, 2, 4][:batch_size])[:, None]
    text = encoder.text(ids_BT, torch.arange(5) >= lengths_B1)
    return encoder.encode(encoder.image(pixels), text).x_BND


def score_of(states_BND: Tensor) -> Tensor:
    """Return a number that depends only on the state of the first sample's text [CLS]."""
    cls_D = states_BND[0, NUM_IMAGE]
    return (cls_D * torch.linspace(-1, 1, len(cls_D), dtype=torch.float64)).sum()


class SlowAttention(torch.nn.Module):
    """Attention of one sample in loops over heads; the weight `moved` is changed by `step`."""

    def __init__(
        self,
        attention: Attention,
        moved: tuple[int, int, int] | None = None,
        step: float = 0.0,
    ):
        super().__init__()
        self.weights = dict(attention.named_parameters())
        self.num_heads = attention.num_heads
        self.moved = moved
        self.step = step
        self.weights_of_heads: list[Tensor] = []

    def forward_packed(
        self,
        x_ND: Tensor,
        rows: PackedTokens,
        read: None,
        bias: None,
    ) -> Tensor:
        assert read is None
        assert bias is None
        assert rows.shape == (1, len(x_ND))
        q, k, v = (x_ND @ self.weights["qkv.weight"].T).chunk(3, dim=1)
        q = q + self.weights["q_bias"]
        v = v + self.weights["v_bias"]
        heads = []
        width = q.shape[1] // self.num_heads
        for head in range(self.num_heads):
            columns = slice(head * width, (head + 1) * width)
            head_q = q[:, columns]
            head_k = k[:, columns]
            head_v = v[:, columns]
            weights_NN = (head_q @ head_k.T / width**0.5).softmax(1)
            self.weights_of_heads.append(weights_NN)
            if self.moved is not None and self.moved[0] == head:
                weights_NN = weights_NN.clone()
                weights_NN[self.moved[1:]] += self.step
            heads.append(weights_NN @ head_v)
        return torch.cat(heads, dim=1) @ self.weights["proj.weight"].T + self.weights["proj.bias"]


def test_explicit_attention_equals_the_fused_kernel():
    """With and without padding."""
    attention = Attention(16, 2)
    randomize(attention, seed=1)
    x_BND = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))
    for is_padding_BN in (None, torch.arange(7) >= torch.tensor([7, 3, 1])[:, None]):
        may_attend = None
        if is_padding_BN is not None:
            may_attend = ~is_padding_BN[:, None, None]
        q, k, v = attention.split_heads(x_BND)
        weights_BHNN = attention_weights(q, k, may_attend)
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
        torch.testing.assert_close(weights_BHNN @ v, fused)
        torch.testing.assert_close(weights_BHNN.sum(3), torch.ones(3, 2, 7))
        joined = attention.join_heads(weights_BHNN @ v)
        torch.testing.assert_close(joined, attention(x_BND, is_padding_BN))
    assert not weights_BHNN[1, :, :, 3:].any()


@pytest.mark.parametrize("block", [0, 1, 2])
@torch.no_grad()
def test_weight_times_gradient_equals_moving_each_weight(block):
    model = double_encoder()
    name = model.image_attention(at_pair=True)[0][block]
    attention: Any = model.get_submodule(name)
    cam_BNN, _ = gradcam(model, name, lambda twin: score_of(states(twin)))
    assert cam_BNN.shape == (1, NUM_TOKENS, NUM_TOKENS)

    def score_with(slow: SlowAttention) -> float:
        return score_of(states(replace_submodules(model, {name: slow}))).item()

    unmoved = SlowAttention(attention)
    assert score_with(unmoved) == pytest.approx(score_of(states(model)).item(), rel=1e-10)
    keys = (0, 1, 8, 16, NUM_IMAGE, NUM_TOKENS - 1)
    for query, key in itertools.product((0, NUM_IMAGE), keys):
        expected = 0.0
        for head in range(2):
            moved = (head, query, key)
            above = score_with(SlowAttention(attention, moved, STEP))
            below = score_with(SlowAttention(attention, moved, -STEP))
            gradient = (above - below) / (2 * STEP)
            weight = unmoved.weights_of_heads[head][query, key].item()
            expected += max(0.0, weight * gradient) / 2
        assert cam_BNN[0, query, key].item() == pytest.approx(expected, abs=1e-8)
    assert cam_BNN[0, NUM_IMAGE].max() > 1e-3


def test_the_encoder_is_left_as_it_was():
    model = double_encoder()
    modules = dict(model.named_modules())
    before = states(model)
    gradcam(model, "blocks.1.attn", lambda twin: score_of(states(twin)))

    def fail(twin: Backbone) -> Tensor:
        states(twin)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gradcam(model, "blocks.1.attn", fail)
    assert torch.equal(states(model), before)
    assert dict(model.named_modules()) == modules
    for module in model.modules():
        assert not module._forward_hooks
    for parameter in model.parameters():
        assert parameter.grad is None


def test_padding_and_other_samples_get_nothing():
    """The score is of the second sample, which has two text tokens."""

    def score(twin: Backbone) -> Tensor:
        return score_of(states(twin, batch_size=3)[1:])

    cam_BNN, matters_BN = gradcam(double_encoder(), "blocks.1.attn", score)
    num_real = NUM_IMAGE + 2
    assert not cam_BNN[[0, 2]].any()
    assert not matters_BN[[0, 2]].any()
    assert not cam_BNN[1, :, num_real:].any()
    assert not cam_BNN[1, num_real:].any()
    assert matters_BN[1].tolist() == [True] * num_real + [False] * 3


def test_in_the_last_block_only_the_row_that_is_read_matters():
    """Parameters need no gradients."""
    model = double_encoder().requires_grad_(False)
    with torch.no_grad():
        cam_BNN, matters_BN = gradcam(model, "blocks.2.attn", lambda twin: score_of(states(twin)))
    assert matters_BN[0].nonzero().flatten().tolist() == [NUM_IMAGE]
    assert cam_BNN.max() > 0
    assert not cam_BNN.requires_grad


@pytest.mark.parametrize("block", [0, 2])
def test_passes_of_parts_of_a_batch_are_put_together(block):
    model = double_encoder(routing="reference-dropless")
    rng = torch.Generator().manual_seed(5)
    pixels = torch.randn(4, 3, 16, 16, generator=rng, dtype=torch.float64)
    ids_BT = torch.arange(20).view(4, 5) + 3
    is_padding_BT = torch.arange(5) >= torch.tensor([5, 2, 4, 5])[:, None]

    def cam_of(rows: slice, num_passes: int) -> tuple[Tensor, Tensor]:
        def score(twin: Any) -> Tensor:
            image = twin.image(pixels[rows])
            text = twin.text(ids_BT[rows], is_padding_BT[rows])
            return twin.encode(image, text, num_passes=num_passes).cls_BD.sin().sum()

        return gradcam(model, model.image_attention(at_pair=True)[0][block], score)

    first = cam_of(slice(0, 2), 1)
    second = cam_of(slice(2, 4), 1)
    expected = [torch.cat(halves) for halves in zip(first, second, strict=True)]
    torch.testing.assert_close(list(cam_of(slice(0, 4), 2)), expected)


@pytest.mark.parametrize(
    ("with_keys", "with_bias"),
    [
        (True, False),
        (False, True),
    ],
)
def test_cross_attention_and_biased_attention_are_supported(with_keys, with_bias):
    attention = Attention(16, 2)
    randomize(attention, seed=1)
    x_BND = torch.randn(2, 5, 16)
    keys_BMD = torch.randn(2, 7, 16) if with_keys else None
    num_keys = 7 if with_keys else 5
    bias_HNM = torch.randn(2, 5, num_keys) if with_bias else None
    is_padding_BM = torch.arange(num_keys) >= torch.tensor([4, 7])[:, None]

    def score(twin: Any) -> Tensor:
        attn = twin["attn"]
        mask = attention_mask(is_padding_BM, bias_HNM)
        return attn.join_heads(attn.attend(*attn.split_heads(x_BND, keys_BMD), mask)).sin().sum()

    cam_BNM, _ = gradcam(torch.nn.ModuleDict({"attn": attention}), "attn", score)
    q, k, v = attention.split_heads(x_BND, keys_BMD)
    scores_BHNM = q @ k.mT / 8**0.5
    if bias_HNM is not None:
        scores_BHNM = scores_BHNM + bias_HNM
    scores_BHNM = scores_BHNM.masked_fill(is_padding_BM[:, None, None], float("-inf"))
    weights_BHNM = scores_BHNM.softmax(3).detach().requires_grad_()
    attention.join_heads(weights_BHNM @ v).sin().sum().backward()
    assert weights_BHNM.grad is not None
    expected = (weights_BHNM.detach() * weights_BHNM.grad).relu().mean(1)
    torch.testing.assert_close(cam_BNM, expected, rtol=1e-4, atol=1e-5)


def test_threads_share_one_encoder():
    """Four threads at a time, next to plain passes, get the results of one after the other."""
    model = double_encoder()

    def results_of(number: int) -> tuple[Tensor, ...]:
        plain = states(model, seed=number).detach()
        name = f"blocks.{number % 3}.attn"
        return *gradcam(model, name, lambda twin: score_of(states(twin, seed=number))), plain

    expected = [results_of(number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(results_of, range(12)))
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
