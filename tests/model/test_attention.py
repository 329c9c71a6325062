"""The one attention, with a bias on the scores and keys from elsewhere, against torch's and slow loops.

Letters: B batch, N queries, M keys, D width, H heads, d width of a head.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from eve_vl.model import attention as module
from eve_vl.model.attention import Attention, attend
from eve_vl.model.packing import PackedTokens, ReadPositions, SequenceOrder
from eve_vl.model.tokens import Tokens
from helpers.tiny_encoder import torch_twin
from helpers.twins import randomize

B, N, M, D, H = 3, 5, 7, 16, 2
LENGTHS = (7, 3, 4)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_equals_a_loop_over_heads_and_queries(dtype):
    """bfloat16 on CPU takes another path than torch's fused kernel when there is something to train."""
    shape = (2, 2, 5, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float32).to(dtype).requires_grad_() for _ in range(3))
    may_attend = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None, :]
    expected = torch.zeros(shape)
    for b in range(2):
        for h in range(2):
            for n in range(5):
                scores = [q[b, h, n].float() @ k[b, h, m].float() / math.sqrt(4) for m in range(5)]
                exponentials = [
                    s.exp() if may_attend[b, 0, 0, m] else torch.zeros(())
                    for m, s in enumerate(scores)
                ]
                weights = [e / torch.stack(exponentials).sum() for e in exponentials]
                expected[b, h, n] = sum(w * v[b, h, m].float() for m, w in enumerate(weights))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    output = attend(q, k, v, may_attend)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        torch.testing.assert_close(attend(q, k, v, may_attend), output)
    upstream = torch.randn(shape)
    found = torch.autograd.grad((output.float() * upstream).sum(), (q, k, v))
    exact = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=2 * tolerance, atol=2 * tolerance)


def random_attention() -> Attention:
    attention = Attention(D, H)
    randomize(attention, 1, std=0.4)
    return attention


def gradients(attention: Attention) -> dict[str, Tensor]:
    """By torch's names, without that of the bias on k."""
    assert attention.q_bias.grad is not None
    assert attention.v_bias.grad is not None
    return {
        "in_proj_weight": attention.qkv.weight.grad,
        "in_proj_bias": torch.cat([attention.q_bias.grad, torch.zeros(D), attention.v_bias.grad]),
        "out_proj.weight": attention.proj.weight.grad,
        "out_proj.bias": attention.proj.bias.grad,
    }  # pyright: ignore[reportReturnType]


def arguments(*, keys: bool, padded: bool, bias: str | None) -> dict[str, Tensor | None]:
    """Queries; what they attend to; which of it is padding; what is added to the scores, for all samples alike or not."""
    num_keys = M if keys else N
    shape = {"alike": (H, N, num_keys), "each": (B, H, N, num_keys)}
    return {
        "x_BND": torch.randn(B, N, D, requires_grad=True),
        "is_padding_BM": torch.arange(num_keys) >= torch.tensor(LENGTHS)[:, None]
        if padded
        else None,
        "keys_BMD": torch.randn(B, M, D, requires_grad=True) if keys else None,
        "bias_HNM": 2 * torch.randn(shape[bias]) if bias else None,
    }


def attended(attention: Attention, *, bias_HNM: Tensor | None, **given: Any) -> Tensor:
    """What attention makes of its arguments, with something added to the scores."""
    if bias_HNM is None:
        return attention(**given)
    heads = attention.split_heads(given["x_BND"], given["keys_BMD"])
    return attention.join_heads(
        attention.attend(*heads, module.attention_mask(given["is_padding_BM"], bias_HNM))
    )


def with_gradient(given: dict[str, Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in given.values() if tensor is not None and tensor.requires_grad]


@pytest.mark.parametrize("bias", [None, "alike", "each"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_forward_and_backward_equal_torchs(keys, padded, bias):
    attention, given = random_attention(), arguments(keys=keys, padded=padded, bias=bias)
    twin, x_BND, keys_BMD = torch_twin(attention), given["x_BND"], given["keys_BMD"]
    assert x_BND is not None
    source_BMD = x_BND if keys_BMD is None else keys_BMD
    mask, bias_HNM = given["is_padding_BM"], given["bias_HNM"]
    added = None if bias_HNM is None else bias_HNM.expand(B, -1, -1, -1).flatten(0, 1)
    minus_infinity = (
        None if mask is None else torch.zeros(mask.shape).masked_fill(mask, float("-inf"))
    )
    expected, _ = twin(
        x_BND,
        source_BMD,
        source_BMD,
        key_padding_mask=minus_infinity,
        attn_mask=added,
        need_weights=False,
    )
    found = attended(attention, **given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(B, N, D)
    inputs = with_gradient(given)
    expected_gradients = torch.autograd.grad(
        (expected * upstream).sum(), [*inputs, *twin.parameters()]
    )
    (found * upstream).sum().backward()
    names = [name for name, _ in twin.named_parameters()]
    for tensor, gradient in zip(inputs, expected_gradients, strict=False):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=1e-5)
    by_name = dict(zip(names, expected_gradients[len(inputs) :], strict=True))
    for name, gradient in gradients(attention).items():
        torch.testing.assert_close(
            gradient, by_name[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def slow_attention(attention: Attention, given: dict[str, Tensor | None]) -> Tensor:
    """Query after query, key after key, padding left out."""
    x_BND, mask, keys_BMD, bias_HNM = (
        given[name] for name in ("x_BND", "is_padding_BM", "keys_BMD", "bias_HNM")
    )
    assert x_BND is not None
    source_BMD = x_BND if keys_BMD is None else keys_BMD
    w_q, w_k, w_v = attention.qkv.weight.split(D)
    rows = []
    for b in range(B):
        real = [m for m in range(source_BMD.shape[1]) if mask is None or not mask[b, m]]
        for n in range(N):
            heads = []
            for h in range(H):
                own = slice(h * D // H, (h + 1) * D // H)
                q = (w_q @ x_BND[b, n] + attention.q_bias)[own]
                scores = [q @ (w_k @ source_BMD[b, m])[own] / math.sqrt(D / H) for m in real]
                if bias_HNM is not None:
                    added = bias_HNM[b] if bias_HNM.ndim == 4 else bias_HNM
                    scores = [score + added[h, n, m] for score, m in zip(scores, real, strict=True)]
                exponentials = [score.exp() for score in scores]
                values = [(w_v @ source_BMD[b, m] + attention.v_bias)[own] for m in real]
                total = torch.stack(exponentials).sum()
                heads.append(
                    sum(e / total * value for e, value in zip(exponentials, values, strict=True))
                )
            rows.append(attention.proj.weight @ torch.cat(heads) + attention.proj.bias)
    return torch.stack(rows).view(B, N, D)


@pytest.mark.parametrize("bias", [None, "alike", "each"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_bfloat16_stays_close_to_the_loop_forward_and_backward(keys, padded, bias, monkeypatch):
    """On a CPU it goes by the explicit form where there is something to train, else by the fused kernel."""
    calls, explicit = [], module.attention_weights
    monkeypatch.setattr(
        module, "attention_weights", lambda *given: calls.append(1) or explicit(*given)
    )
    attention, given = random_attention(), arguments(keys=keys, padded=padded, bias=bias)
    expected = slow_attention(attention, given)
    with torch.autocast("cpu", torch.bfloat16):
        found = attended(attention, **given)
    assert found.dtype == torch.bfloat16
    assert calls == [1]
    torch.testing.assert_close(
        found.float(), expected, rtol=0, atol=0.03 * expected.abs().max().item()
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused = attended(attention, **given)
    assert calls == [1]
    torch.testing.assert_close(
        fused.float(), expected, rtol=0, atol=0.03 * expected.abs().max().item()
    )
    upstream, wanted = torch.randn(B, N, D), [*with_gradient(given), *attention.parameters()]
    exact = torch.autograd.grad((expected * upstream).sum(), wanted)
    for a, b in zip(
        torch.autograd.grad((found.float() * upstream).sum(), wanted), exact, strict=True
    ):
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_a_learned_bias_gets_its_gradient(keys, padded, dtype):
    """Relative positions are learnt: what is added to a score has the gradient of the score, and none at padding."""
    attention = random_attention()
    for kind in ("alike", "each"):
        given = arguments(keys=keys, padded=padded, bias=kind)
        bias_HNM = given["bias_HNM"]
        assert bias_HNM is not None
        bias_HNM.requires_grad_()
        upstream = torch.randn(B, N, D)
        (exact,) = torch.autograd.grad(
            (slow_attention(attention, given) * upstream).sum(), bias_HNM
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = attended(attention, **given)
        (gradient,) = torch.autograd.grad((found.float() * upstream).sum(), bias_HNM)
        assert (gradient - exact).norm() < (1e-4 if dtype == torch.float32 else 0.03) * exact.norm()
        mask = given["is_padding_BM"]
        if mask is not None and kind == "each":
            assert not gradient.masked_select(mask[:, None, None, :]).any()


def test_a_float32_bias_goes_with_bfloat16_weights():
    """As in a model that is held in bfloat16: both forms return its type."""
    attention, given = (
        random_attention().bfloat16(),
        arguments(keys=False, padded=False, bias="alike"),
    )
    given["x_BND"] = torch.randn(B, N, D).bfloat16()
    explicit = attended(attention, **given)
    with torch.no_grad():
        fused = attended(attention, **given)
    assert explicit.dtype == fused.dtype == torch.bfloat16
    assert (explicit - fused).norm() < 0.03 * fused.norm()


@torch.no_grad()
def test_what_padding_holds_changes_nothing():
    attention, given = random_attention(), arguments(keys=True, padded=True, bias="alike")
    keys_BMD, mask = given["keys_BMD"], given["is_padding_BM"]
    assert keys_BMD is not None
    assert mask is not None
    other = given | {
        "keys_BMD": torch.where(mask[:, :, None], torch.full_like(keys_BMD, 1e3), keys_BMD)
    }
    torch.testing.assert_close(attended(attention, **given), attended(attention, **other))


# By lengths, as on a GPU


def slow_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, longest: int, most: int
) -> Tensor:
    """torch's `varlen_attn`, whose kernel is of CUDA: a loop over sequences, of which some may be empty."""
    assert (
        starts.dtype == torch.int32 and starts is ends and starts[0] == 0 and starts[-1] == len(q)
    )
    assert longest == most and starts.diff().min() >= 0 and starts.diff().max() <= longest
    parts = [(x.split(starts.diff().tolist()) for x in (q, k, v))]
    out = [
        (torch.einsum("nhd,mhd->hnm", a, b) / math.sqrt(a.shape[2])).softmax(-1) @ c.transpose(0, 1)
        for of_kind in parts
        for a, b, c in zip(*of_kind, strict=True)
    ]
    return torch.cat([x.transpose(0, 1) for x in out])


@pytest.mark.parametrize("packs", [True, False], ids=["few rows of padding", "all padding"])
@pytest.mark.parametrize("reads", [None, torch.tensor([0, 4, 9])], ids=["all rows", "some rows"])
def test_attention_by_lengths_equals_that_by_a_mask(packs, reads, monkeypatch):
    attention, x_BMD = random_attention(), torch.randn(B, M, D)
    is_padding_BM = torch.arange(M) >= torch.tensor(LENGTHS)[:, None]
    rows = PackedTokens.of(
        Tokens(x_BND=x_BMD, num_image=2, is_padding_BN=is_padding_BM), H, packs=packs
    )
    read = None if reads is None else ReadPositions(row_M=reads, is_image=False)
    is_real = (
        torch.ones(len(rows.token_S), dtype=torch.bool)
        if rows.is_real_S is None
        else rows.is_real_S
    )
    is_read = is_real if reads is None else is_real[reads]
    upstream, found = torch.randn(len(is_read), D) * is_read[:, None], {}
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen)
    for by_lengths in (True, False):
        monkeypatch.setattr(module, "can_use_varlen", lambda *_, by_lengths=by_lengths: by_lengths)
        x_SD = rows.pack(x_BMD).requires_grad_()
        out = attention.forward_packed(x_SD, rows, read)
        attention.zero_grad()
        (out * upstream).sum().backward()
        found[by_lengths] = {"out": out[is_read], "x": x_SD.grad, **gradients(attention)}
    for name, by_lengths in found[True].items():
        torch.testing.assert_close(by_lengths, found[False][name], rtol=1e-5, atol=1e-5, msg=name)


def test_on_cuda_attention_by_lengths_is_flash_of_halves(monkeypatch):
    """On a pretended GPU, whose tensors have no values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    is_padding_BM, S = torch.arange(M) >= torch.tensor(LENGTHS)[:, None], B * M
    rows = PackedTokens.of(
        Tokens(x_BND=torch.randn(B, M, D), num_image=2, is_padding_BN=is_padding_BM), H, packs=False
    )
    with FakeTensorMode():
        order_S, starts = (
            torch.empty(n, dtype=kind, device="cuda")
            for n, kind in ((S, torch.long), (2 * B + 1, torch.int32))
        )
        vars(rows)["by_sequence"] = SequenceOrder(row_S=order_S, place_S=order_S, start=starts)
        qkv_SX = torch.empty(S, 3 * D, device="cuda", dtype=torch.bfloat16)
        out = module.varlen_attention(qkv_SX, rows, H)
        assert (out.shape, out.dtype, out.device.type) == ((S, D), torch.bfloat16, "cuda")
        assert module.can_use_varlen(qkv_SX, rows, H)
        for given in (
            (qkv_SX.float(), rows, H),
            (qkv_SX, rows, 2 * H),
            (qkv_SX, replace(rows, is_padding_BN=None), H),
        ):
            assert not module.can_use_varlen(*given)  # in float32, of heads of 4, without padding
