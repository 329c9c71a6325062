"""Relative positions and networks for pairs against loops over pairs of tokens.

Letters: B batch, N all tokens, L blocks, H heads, K kept patches, X biases.
"""

from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import InputConfig
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import PairFeedForward
from eve_vl.model.tokens import Tokens, index_tokens, join
from eve_vl.systems.vlmo.encoder import VlmoEncoder
from eve_vl.systems.vlmo.relative_positions import geometric_places, resize_distances, spline
from helpers.tiny_encoder import (
    LENGTHS,
    SIZES,
    VOCAB,
    encoder,
    pixels,
    slow_encode,
    text_batch,
)
from helpers.twins import randomize
from helpers.vlmo import slow_row, tiny_vlmo

# patches per side, tokens of the longest text in tiny_config
G = 4
LONGEST = 12
KINDS = ["image", "text", "pair", "kept patches", "pair of kept patches", "picked pairs"]


def vlmo_encoder(**changes: Any) -> VlmoEncoder:
    """A tiny encoder in evaluation mode with weights that all matter."""
    module = VlmoEncoder(tiny_vlmo(**changes), SIZES, VOCAB)
    randomize(module, 0, std=0.4)
    return module.eval()


def tokens_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    keep = torch.stack([torch.randperm(G * G)[:5] for _ in LENGTHS]) if "kept" in kind else None
    image = None if kind == "text" else model.image(pixels(), keep)
    text = model.text(*text_batch()) if kind == "text" or "pair" in kind else None
    if kind == "picked pairs":
        assert image is not None and text is not None
        return index_tokens(
            model.image(pixels(), torch.stack([torch.randperm(16)[:5] for _ in LENGTHS])),
            torch.tensor([2, 0, 2]),
        ), text
    return image, text


def slow_rows(tokens: Tokens, sample: int) -> list[list[int]]:
    """Token after token: which kind each is, then every pair of them."""
    kinds: list[tuple[Any, ...]] = []
    for place in range(tokens.x_BND.shape[1]):
        if place < tokens.num_image:
            number = (
                place - 1
                if tokens.patch_BK is None or place == 0
                else int(tokens.patch_BK[sample, place - 1])
            )
            kinds.append(("cls", "image") if place == 0 else ("patch", number))
        else:
            number = place - tokens.num_image
            kinds.append(("word", number) if number else ("cls", "text"))
    return [[slow_row(query, key) for key in kinds] for query in kinds]


def test_rows_of_the_published_size_are_where_the_paper_code_has_them():
    """14 patches per side and 196 tokens: 1,126 rows; a few by hand."""
    for query, key, row in [
        *(
            (("patch", 0), ("patch", 0), 364),
            (("patch", 195), ("patch", 0), 728),
            (("patch", 0), ("patch", 195), 0),
        ),
        *(
            (("cls", "image"), ("patch", 3), 729),
            (("patch", 3), ("cls", "image"), 730),
            (("cls", "image"),) * 2 + (731,),
        ),
        *(
            (("word", 5), ("patch", 1), 732),
            (("cls", "text"), ("cls", "image"), 732),
            (("patch", 9), ("word", 2), 733),
        ),
        *(
            (("word", 195), ("word", 1), 734),
            (("word", 1), ("word", 195), 1122),
            (("cls", "text"), ("word", 1), 1123),
        ),
        *((("word", 8), ("cls", "text"), 1124), (("cls", "text"),) * 2 + (1125,)),
    ]:
        assert slow_row(query, key, 14, 196) == row
    with torch.device("meta"):
        model = VlmoEncoder(tiny_vlmo(), InputConfig(image_size=224, text_length=196), VOCAB)
    assert model.relative is not None
    assert sum(len(part) for part in model.relative.parameters()) == 1126


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_biases_and_states_equal_loops_over_pairs_of_tokens(kind):
    """Padding, texts shorter than the longest, dropped and picked patches; the whole encoder with
    networks for pairs."""
    torch.manual_seed(0)
    model = vlmo_encoder()
    assert model.relative is not None
    image, text = tokens_of(model, kind)
    tokens = join(image, text)
    table = torch.cat(list(model.relative.parameters()))
    L = 3
    H = 2
    biases = model.relative(tokens)
    expected = torch.stack(
        [table[torch.tensor(slow_rows(tokens, sample))] for sample in range(len(LENGTHS))]
    )
    for block in range(L):
        for head in range(H):
            assert torch.equal(
                biases[block, :, head].expand(3, -1, -1), expected[..., block * H + head]
            )
    bias_BLHNN = expected.unflatten(3, (L, H)).permute(0, 3, 4, 1, 2)
    states = slow_encode(model, tokens.x_BND, tokens.num_image, tokens.is_padding_BN, bias_BLHNN)
    encoded = model.encode(image, text).x_BND
    if tokens.is_padding_BN is not None:
        encoded = encoded.masked_fill(tokens.is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(encoded, states, rtol=1e-4, atol=1e-4)
    read = tokens.num_image if text is not None else 0
    torch.testing.assert_close(model.cls(image, text)[0], states[:, read], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["image", "text"])
@torch.no_grad()
def test_the_two_contrasts_of_a_image_or_a_text_alone(kind):
    """The first by its own networks, whatever those of pairs are; the second by these from the
    first block that has them."""
    model = vlmo_encoder(num_deep_blocks=2)
    image, text = tokens_of(model, kind)
    (own_BD, vl_BD), routers = model.for_contrast(image, text)
    assert (model.num_contrasts, routers) == (2, [[], []])
    torch.testing.assert_close(own_BD, model.cls(image, text)[0])
    for block in model.blocks[1:]:  # put the networks of pairs in the place of its own
        ffn = block.ffn
        assert isinstance(ffn, PairFeedForward)
        ffn.image = ffn.text = ffn.vl
        ffn.norm_image = ffn.norm_text = ffn.norm_vl
    torch.testing.assert_close(model.cls(image, text)[0], vl_BD)
    assert (own_BD - vl_BD).abs().max() > 0.1
    model = encoder()
    assert (model.num_contrasts, len(model.for_contrast(*tokens_of(model, kind))[0])) == (1, 1)


@torch.no_grad()
def test_networks_of_pairs_change_pairs_alone_and_the_pooler_their_cls_alone():
    model = vlmo_encoder(pooler=True)
    assert model.pooler is not None
    kinds = {kind: tokens_of(model, kind) for kind in ("image", "text", "pair")}
    before = {kind: model.encode(*tokens).x_BND for kind, tokens in kinds.items()}
    for kind, tokens in kinds.items():
        state_BD = before[kind][:, 17 if kind == "pair" else 0]
        pooled = (
            (state_BD @ model.pooler.weight.T + model.pooler.bias).tanh()
            if kind == "pair"
            else state_BD
        )
        torch.testing.assert_close(model.cls(*tokens)[0], pooled, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        if ".vl." in name or "norm_vl" in name:
            parameter.add_(1.0)
    for kind, tokens in kinds.items():
        assert torch.equal(model.encode(*tokens).x_BND, before[kind]) == (kind != "pair")


# Resizing


def slow_spline(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """By the second derivatives: they join smoothly inside, and the third ones are equal on both
    sides of the outer knots."""
    n = len(x)
    at = min(max(at, x[0]), x[-1])
    h = np.diff(x)
    A = np.zeros((len(x), len(x)))
    b = np.zeros(len(x))
    for i in range(1, n - 1):
        A[i, i - 1 : i + 2] = h[i - 1] / 6, (h[i - 1] + h[i]) / 3, h[i] / 6
        b[i] = (y[i + 1] - y[i]) / h[i] - (y[i] - y[i - 1]) / h[i - 1]
    A[0, :3] = 1 / h[0], -1 / h[0] - 1 / h[1], 1 / h[1]
    A[-1, -3:] = 1 / h[-2], -1 / h[-2] - 1 / h[-1], 1 / h[-1]
    second = np.linalg.solve(A, b)
    i = min(int(np.searchsorted(x, at, side="right")) - 1, n - 2)
    distance = at - x[i]
    right = x[i + 1] - at
    cubes = (second[i] * right**3 + second[i + 1] * distance**3) / (6 * h[i])
    lines = (y[i] / h[i] - second[i] * h[i] / 6) * right + (
        y[i + 1] / h[i] - second[i + 1] * h[i] / 6
    ) * distance
    return float(cubes + lines)


@pytest.mark.parametrize(("old", "new"), [(5, 7), (14, 24), (6, 4)])
def test_distances_are_resized_by_splines_on_a_geometric_grid(old, new):
    places = geometric_places(old - 1, new - 1)
    steps = np.diff(places[old - 1 :])
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    np.testing.assert_allclose(places, -places[::-1])
    assert (places[old - 1], steps[0]) == (0, 1)
    assert (
        ratios[0] == pytest.approx(1.01, abs=1e-5)
        if new < old
        else places[-1] == pytest.approx(new - 1, abs=1e-3)
    )
    size = 2 * old - 1
    bias = torch.randn(size * size, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_distances(bias, new).view(2 * new - 1, 2 * new - 1, 2)
    wanted = range(-new + 1, new)
    for head in range(2):
        grid = bias[:, head].double().view(size, size).numpy()
        some = [-new + 1, -2, 0, 1, new - 1]  # columns that are looked at
        along = np.array([[slow_spline(places, row, at) for at in some] for row in grid])
        expected = [[slow_spline(places, column, at) for column in along.T] for at in wanted]
        np.testing.assert_allclose(
            resized[:, [at + new - 1 for at in some], head], expected, atol=1e-4
        )


def test_splines_repeat_what_they_go_through_and_cubics():
    places = geometric_places(6, 11)
    np.testing.assert_allclose(spline(places, places), np.eye(13), atol=1e-9)
    at = np.linspace(places[0], places[-1], 40)
    np.testing.assert_allclose(
        spline(places, at) @ (places**3 - 2 * places), at**3 - 2 * at, atol=1e-6
    )
    two = geometric_places(
        1, 3
    )  # of a grid of two patches per side there are three distances: a parabola
    np.testing.assert_allclose(spline(two, np.array([0.5])) @ two**2, [0.25])


@torch.no_grad()
def test_a_larger_image_and_a_shorter_text_keep_what_they_can_of_the_table():
    before = vlmo_encoder()
    after = VlmoEncoder(
        before.config, InputConfig(image_size=24, patch_size=4, text_length=9), VOCAB
    )
    tensors, note = after.resized(before.state_dict())
    assert note == (
        "relative positions resized from 16 to 36 patches; relative positions of texts cut from "
        "12 to 9 tokens"
    )
    after.load_state_dict(tensors)
    after.eval()
    assert torch.equal(after.relative.image_bias[-3:], before.relative.image_bias[-3:])  # pyright: ignore
    ids, is_padding = text_batch()
    states_before, states_after = (
        model.encode(None, model.text(ids, is_padding)).x_BND for model in (before, after)
    )
    assert torch.equal(states_before, states_after)
    assert before.resized(before.state_dict())[1] is None
    longer = before.resized(after.state_dict())[0]["relative.text_bias"]
    assert len(longer) == 18  # which no longer text fits: `transfer` refuses it
