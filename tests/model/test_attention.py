"""Attention of sequences and packed rows against torch's and slow loops.

Letters: B batch, N queries, M keys, S rows, D width, H heads, d width of a head.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from eve_vl.model import attention as attention_module
from eve_vl.model.attention import Attention, attention_mask
from eve_vl.model.packing import PackedTokens, ReadPositions, SequenceOrder
from eve_vl.model.tokens import Tokens
from helpers.random_weights import randomize
from helpers.tiny_encoder import torch_twin

B = 3
N = 5
M = 7
D = 16
H = 2
LENGTHS = (7, 3, 4)
IS_PADDING_BM = torch.arange(M) >= torch.tensor(LENGTHS)[:, None]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_attention() -> Attention:
    attention = Attention(D, H)
    randomize(attention, 1, std=0.4)
    return attention


@dataclass
class Inputs:
    """What attention reads; keys None: the tokens themselves. A bias is learned, too."""

    x_BND: Tensor
    keys_BMD: Tensor | None
    is_padding_BM: Tensor | None
    bias: Tensor | None
    """Added to the scores: (H, N, M) for all samples or (B, H, N, M)."""

    @property
    def source_BMD(self) -> Tensor:
        return self.x_BND if self.keys_BMD is None else self.keys_BMD

    @property
    def bias_BHNM(self) -> Tensor | None:
        return None if self.bias is None else self.bias.expand(B, -1, -1, -1)

    @property
    def trained(self) -> list[Tensor]:
        tensors = [self.x_BND, self.keys_BMD, self.bias]
        return [tensor for tensor in tensors if tensor is not None]

    def run(self, attention: Attention) -> Tensor:
        if self.bias is None:
            return attention(self.x_BND, self.is_padding_BM, keys_BMD=self.keys_BMD)
        q, k, v = attention.split_heads(self.x_BND, self.keys_BMD)
        mask = attention_mask(self.is_padding_BM, self.bias)
        return attention.join_heads(attention.attend(q, k, v, mask))


def random_inputs(*, keys: bool, padded: bool, bias: str | None) -> Inputs:
    num_keys = M if keys else N
    bias_shape = {
        "one": (H, N, num_keys),
        "each": (B, H, N, num_keys),
    }
    inputs = Inputs(torch.randn(B, N, D), None, None, None)
    if keys:
        inputs.keys_BMD = torch.randn(B, M, D)
    if padded:
        inputs.is_padding_BM = IS_PADDING_BM[:, :num_keys]
    if bias:
        inputs.bias = 2 * torch.randn(bias_shape[bias])
    for tensor in inputs.trained:
        tensor.requires_grad_()
    return inputs


def torch_named_gradients(attention: Attention) -> dict[str, Tensor | None]:
    """Return gradients by torch's names; that of the bias on k is 0."""
    assert attention.q_bias.grad is not None
    assert attention.v_bias.grad is not None
    return {
        "in_proj_weight": attention.qkv.weight.grad,
        "in_proj_bias": torch.cat([attention.q_bias.grad, torch.zeros(D), attention.v_bias.grad]),
        "out_proj.weight": attention.proj.weight.grad,
        "out_proj.bias": attention.proj.bias.grad,
    }


def slow_head(
    q_Nd: Tensor,
    k_Md: Tensor,
    v_Md: Tensor,
    bias_NM: Tensor,
) -> Tensor:
    """Attend with one head, query after query, key after key."""
    outputs = []
    for n, q_d in enumerate(q_Nd):
        weights = []
        for m, k_d in enumerate(k_Md):
            score = q_d @ k_d / math.sqrt(len(q_d)) + bias_NM[n, m]
            weights.append(score.exp())
        total = torch.stack(weights).sum()
        output_d = torch.zeros_like(q_d)
        for weight, v_d in zip(weights, v_Md, strict=True):
            output_d = output_d + weight / total * v_d
        outputs.append(output_d)
    return torch.stack(outputs)


def slow_attention(attention: Attention, inputs: Inputs) -> Tensor:
    """Attend sample by sample and head by head, padding cut off."""
    w_q, w_k, w_v = attention.qkv.weight.split(D)
    outputs = []
    for b in range(B):
        num_keys = inputs.source_BMD.shape[1]
        is_real = torch.ones(num_keys, dtype=torch.bool)
        if inputs.is_padding_BM is not None:
            is_real = ~inputs.is_padding_BM[b]
        bias_HNM = torch.zeros(H, N, num_keys)
        if inputs.bias_BHNM is not None:
            bias_HNM = inputs.bias_BHNM[b]
        source_MD = inputs.source_BMD[b, is_real]
        q_ND = inputs.x_BND[b] @ w_q.T + attention.q_bias
        k_MD = source_MD @ w_k.T
        v_MD = source_MD @ w_v.T + attention.v_bias
        heads = []
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            bias_NM = bias_HNM[h][:, is_real]
            heads.append(slow_head(q_ND[:, part], k_MD[:, part], v_MD[:, part], bias_NM))
        joined_ND = torch.cat(heads, dim=1)
        outputs.append(joined_ND @ attention.proj.weight.T + attention.proj.bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("bias", [None, "one", "each"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_forward_and_backward_equal_torchs(keys, padded, bias):
    attention = random_attention()
    inputs = random_inputs(keys=keys, padded=padded, bias=bias)
    twin = torch_twin(attention)
    padding_mask = None
    if inputs.is_padding_BM is not None:
        padding_mask = torch.zeros_like(inputs.is_padding_BM, dtype=torch.float32)
        padding_mask.masked_fill_(inputs.is_padding_BM, -torch.inf)
    bias_mask = None
    if inputs.bias_BHNM is not None:
        bias_mask = inputs.bias_BHNM.flatten(0, 1)
    sources = (inputs.source_BMD, inputs.source_BMD)
    masks = {"key_padding_mask": padding_mask, "attn_mask": bias_mask}
    expected, _ = twin(inputs.x_BND, *sources, **masks, need_weights=False)
    output = inputs.run(attention)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(B, N, D)
    names = [name for name, _ in twin.named_parameters()]
    trained = [*inputs.trained, *twin.parameters()]
    expected_gradients = list(torch.autograd.grad((expected * upstream).sum(), trained))
    (output * upstream).sum().backward()
    for tensor in inputs.trained:
        torch.testing.assert_close(tensor.grad, expected_gradients.pop(0), rtol=1e-4, atol=1e-5)
    twin_gradients = dict(zip(names, expected_gradients, strict=True))
    twin_gradients["in_proj_bias"][D : 2 * D] = 0  # that of k, which is 0 but for rounding
    for name, gradient in torch_named_gradients(attention).items():
        torch.testing.assert_close(gradient, twin_gradients[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [None, "one", "each"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_bfloat16_stays_close_to_the_loop_forward_and_backward(keys, padded, bias, monkeypatch):
    """On a CPU it takes the explicit form in training, else the fused kernel."""
    num_explicit = 0
    attention_weights = attention_module.attention_weights

    def counted(*args: Tensor | None) -> Tensor:
        nonlocal num_explicit
        num_explicit += 1
        return attention_weights(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(attention_module, "attention_weights", counted)
    attention = random_attention()
    inputs = random_inputs(keys=keys, padded=padded, bias=bias)
    expected = slow_attention(attention, inputs)
    atol = 0.03 * expected.abs().max().item()
    with torch.autocast("cpu", torch.bfloat16):
        output = inputs.run(attention)
        assert num_explicit == 1
        with torch.no_grad():
            fused = inputs.run(attention)
        assert num_explicit == 1
    assert output.dtype == fused.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(fused.float(), expected, rtol=0, atol=atol)

    upstream = torch.randn(B, N, D)
    trained = [*inputs.trained, *attention.parameters()]
    gradients = torch.autograd.grad((output.float() * upstream).sum(), trained)
    exact = torch.autograd.grad((expected * upstream).sum(), trained)
    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        assert (gradient - exact_gradient).norm() < 0.03 * exact_gradient.norm()


def test_a_float32_bias_works_with_bfloat16_weights():
    """As in a model that is held in bfloat16: both forms return its type."""
    attention = random_attention().bfloat16()
    inputs = random_inputs(keys=False, padded=False, bias="one")
    inputs.x_BND = torch.randn(B, N, D).bfloat16()
    explicit = inputs.run(attention)
    with torch.no_grad():
        fused = inputs.run(attention)
    assert explicit.dtype == fused.dtype == torch.bfloat16
    assert (explicit - fused).norm() < 0.03 * fused.norm()


# By lengths, as on a GPU


def packed_rows(*, packs: bool) -> tuple[Tensor, PackedTokens]:
    x_BMD = torch.randn(B, M, D)
    tokens = Tokens(x_BND=x_BMD, num_image=2, is_padding_BN=IS_PADDING_BM)
    return x_BMD, PackedTokens.of(tokens, H, packs=packs)


def slow_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    longest: int,
    longest_keys: int,
) -> Tensor:
    """torch's `varlen_attn`, a CUDA kernel, as a loop over sequences; some may be empty."""
    assert starts is key_starts
    assert starts.dtype == torch.int32
    assert (starts[0], starts[-1]) == (0, len(q))
    lengths = starts.diff().tolist()
    assert longest == longest_keys
    assert min(lengths) >= 0
    assert max(lengths) <= longest
    outputs = []
    parts = zip(
        q.split(lengths),
        k.split(lengths),
        v.split(lengths),
        strict=True,
    )
    for q_NHd, k_NHd, v_NHd in parts:
        scores_HNN = torch.einsum("nhd,mhd->hnm", q_NHd, k_NHd) / math.sqrt(q.shape[2])
        out_HNd = scores_HNN.softmax(-1) @ v_NHd.transpose(0, 1)
        outputs.append(out_HNd.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("packs", [True, False], ids=["few rows of padding", "all padding"])
@pytest.mark.parametrize(
    "reads",
    [None, torch.tensor([0, 4, 9])],
    ids=["all rows", "some rows"],
)
def test_attention_by_lengths_equals_attention_by_a_mask(packs, reads, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen)
    attention = random_attention()
    x_BMD, rows = packed_rows(packs=packs)
    read = None if reads is None else ReadPositions(row_M=reads, is_image=False)
    is_real = torch.ones(len(rows.token_S), dtype=torch.bool)
    if rows.is_real_S is not None:
        is_real = rows.is_real_S
    if reads is not None:
        is_real = is_real[reads]
    upstream = torch.randn(len(is_real), D) * is_real[:, None]

    def run(*, by_lengths: bool) -> dict[str, Tensor | None]:
        monkeypatch.setattr(attention_module, "can_use_varlen", lambda *_: by_lengths)
        x_SD = rows.pack(x_BMD).requires_grad_()
        output = attention.forward_packed(x_SD, rows, read)
        attention.zero_grad()
        (output * upstream).sum().backward()
        gradients = torch_named_gradients(attention)
        return {
            "output": output[is_real],
            "x": x_SD.grad,
            **gradients,
        }

    expected = run(by_lengths=False)
    for name, value in run(by_lengths=True).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_on_cuda_attention_by_lengths_is_flash_in_half_precision(monkeypatch):
    """On a pretended GPU, whose tensors have no values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    _, rows = packed_rows(packs=False)
    S = B * M
    with FakeTensorMode():
        row_S = torch.empty(S, dtype=torch.long, device="cuda")
        start = torch.empty(2 * B + 1, dtype=torch.int32, device="cuda")
        order = SequenceOrder(row_S=row_S, place_S=row_S, start=start)
        vars(rows)["by_sequence"] = order
        qkv_SX = torch.empty(S, 3 * D, device="cuda", dtype=torch.bfloat16)
        output = attention_module.varlen_attention(qkv_SX, rows, H)
        assert (output.shape, output.dtype) == ((S, D), torch.bfloat16)
        assert output.device.type == "cuda"
        assert attention_module.can_use_varlen(qkv_SX, rows, H)
        assert not attention_module.can_use_varlen(qkv_SX.float(), rows, H)
        heads_of_4 = 2 * H
        assert not attention_module.can_use_varlen(qkv_SX, rows, heads_of_4)
        unpadded = replace(rows, is_padding_BN=None)
        assert not attention_module.can_use_varlen(qkv_SX, unpadded, H)
