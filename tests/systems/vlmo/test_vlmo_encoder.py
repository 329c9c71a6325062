"""Relative positions and networks for pairs against loops over pairs of tokens.

Letters: B batch, N all tokens, L blocks, H heads, K kept patches.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.config import InputConfig
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import PairFeedForward
from eve_vl.model.tokens import Tokens, index_tokens, join
from eve_vl.systems.vlmo.encoder import VlmoEncoder
from eve_vl.systems.vlmo.relative_positions import geometric_places, resize_distances, spline
from helpers.random_weights import randomize
from helpers.tiny_encoder import (
    LENGTHS,
    SIZES,
    VOCAB,
    pixels,
    slow_encode,
    text_batch,
)
from helpers.vlmo import slow_row, tiny_vlmo

L = 3
H = 2


def vlmo_encoder(**changes: Any) -> VlmoEncoder:
    """A tiny encoder in evaluation mode with weights that all matter."""
    module = VlmoEncoder(tiny_vlmo(**changes), SIZES, VOCAB)
    randomize(module, 0, std=0.4)
    return module.eval()


def tokens_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    """Return embedded images, texts, or both; some without most patches, or in another order."""
    keep = None
    if kind in ("kept patches", "pair of kept patches", "picked pairs"):
        keep = torch.stack([torch.randperm(16)[:5] for _ in LENGTHS])
    image = None
    text = None
    if kind != "text":
        image = model.image(pixels(), keep)
    if kind not in ("image", "kept patches"):
        text = model.text(*text_batch())
    if kind == "picked pairs":
        assert image is not None
        image = index_tokens(image, torch.tensor([2, 0, 2]))
    return image, text


def slow_rows(tokens: Tokens, sample: int) -> Tensor:
    """Return the row of the table for every pair of tokens, (N, N)."""
    kinds: list[tuple[Any, ...]] = []
    for place in range(tokens.x_BND.shape[1]):
        number = place - tokens.num_image
        if place == 0 and tokens.num_image:
            kinds.append(("cls", "image"))
        elif number == 0:
            kinds.append(("cls", "text"))
        elif number > 0:
            kinds.append(("word", number))
        elif tokens.patch_BK is None:
            kinds.append(("patch", place - 1))
        else:
            kinds.append(("patch", int(tokens.patch_BK[sample, place - 1])))
    return torch.tensor([[slow_row(query, key) for key in kinds] for query in kinds])


@pytest.mark.parametrize(
    ("query", "key", "row"),
    [
        (("patch", 0), ("patch", 0), 364),
        (("patch", 195), ("patch", 0), 728),
        (("patch", 0), ("patch", 195), 0),
        (("cls", "image"), ("patch", 3), 729),
        (("patch", 3), ("cls", "image"), 730),
        (("cls", "image"), ("cls", "image"), 731),
        (("word", 5), ("patch", 1), 732),
        (("cls", "text"), ("cls", "image"), 732),
        (("patch", 9), ("word", 2), 733),
        (("word", 195), ("word", 1), 734),
        (("word", 1), ("word", 195), 1122),
        (("cls", "text"), ("word", 1), 1123),
        (("word", 8), ("cls", "text"), 1124),
        (("cls", "text"), ("cls", "text"), 1125),
    ],
)
def test_slow_rows_of_the_published_size_are_where_the_paper_code_has_them(query, key, row):
    """14 patches per side and 196 tokens; worked out by hand."""
    assert slow_row(query, key, 14, 196) == row


def test_the_published_size_has_1126_rows():
    with torch.device("meta"):
        model = VlmoEncoder(tiny_vlmo(), InputConfig(image_size=224, text_length=196), VOCAB)
    assert model.relative is not None
    assert sum(len(part) for part in model.relative.parameters()) == 1126


@pytest.mark.parametrize(
    "kind", ["image", "text", "pair", "kept patches", "pair of kept patches", "picked pairs"]
)
@torch.no_grad()
def test_biases_and_states_equal_loops_over_pairs_of_tokens(kind):
    """Also with padding, texts shorter than the longest, and networks for pairs."""
    torch.manual_seed(0)
    model = vlmo_encoder()
    assert model.relative is not None
    image, text = tokens_of(model, kind)
    tokens = join(image, text)
    table = torch.cat(list(model.relative.parameters()))
    samples = range(len(LENGTHS))
    bias_BNNX = torch.stack([table[slow_rows(tokens, sample)] for sample in samples])
    bias_BLHNN = bias_BNNX.unflatten(3, (L, H)).permute(0, 3, 4, 1, 2)
    biases = model.relative(tokens)
    for block in range(L):
        for head in range(H):
            actual = biases[block, :, head].expand(3, -1, -1)
            assert torch.equal(actual, bias_BLHNN[:, block, head])

    states = slow_encode(model, tokens.x_BND, tokens.num_image, tokens.is_padding_BN, bias_BLHNN)
    encoded = model.encode(image, text).x_BND
    if tokens.is_padding_BN is not None:
        encoded = encoded.masked_fill(tokens.is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(encoded, states, rtol=1e-4, atol=1e-4)
    cls_place = 0 if text is None else tokens.num_image
    cls_BD, _ = model.cls(image, text)
    torch.testing.assert_close(cls_BD, states[:, cls_place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["image", "text"])
@torch.no_grad()
def test_an_image_or_a_text_has_two_contrasts(kind):
    """The first by its own networks, whatever those of pairs are; the second by these from the
    first block that has them."""
    model = vlmo_encoder(num_deep_blocks=2)
    assert model.num_contrasts == 2
    image, text = tokens_of(model, kind)
    (first_BD, second_BD), routers = model.for_contrast(image, text)
    assert routers == [[], []]
    torch.testing.assert_close(first_BD, model.cls(image, text)[0])
    for block in model.blocks[1:]:  # put the networks of pairs in the place of its own
        ffn = block.ffn
        assert isinstance(ffn, PairFeedForward)
        ffn.image = ffn.text = ffn.vl
        ffn.norm_image = ffn.norm_text = ffn.norm_vl
    torch.testing.assert_close(model.cls(image, text)[0], second_BD)
    assert (first_BD - second_BD).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["image", "text", "pair"])
@torch.no_grad()
def test_networks_of_pairs_change_pairs_alone_and_the_pooler_their_cls_alone(kind):
    model = vlmo_encoder(pooler=True)
    assert model.pooler is not None
    image, text = tokens_of(model, kind)
    before = model.encode(image, text).x_BND
    expected_BD = before[:, 0]
    if kind == "pair":
        expected_BD = model.pooler(before[:, 17]).tanh()
    torch.testing.assert_close(model.cls(image, text)[0], expected_BD, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        if ".vl." in name or "norm_vl" in name:
            parameter.add_(1.0)
    is_unchanged = torch.equal(model.encode(image, text).x_BND, before)
    assert is_unchanged == (kind != "pair")


# Resizing


def slow_spline(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Interpolate by a cubic spline, from its second derivatives.

    They join smoothly inside, and the third ones are equal on both sides of the outer knots.
    """
    n = len(x)
    at = min(max(at, x[0]), x[-1])
    h = np.diff(x)
    slopes = np.diff(y) / h
    A = np.zeros((n, n))
    b = np.zeros(n)
    for i in range(1, n - 1):
        A[i, i - 1 : i + 2] = h[i - 1] / 6, (h[i - 1] + h[i]) / 3, h[i] / 6
        b[i] = slopes[i] - slopes[i - 1]
    A[0, :3] = 1 / h[0], -1 / h[0] - 1 / h[1], 1 / h[1]
    A[-1, -3:] = 1 / h[-2], -1 / h[-2] - 1 / h[-1], 1 / h[-1]
    second = np.linalg.solve(A, b)
    i = min(int(np.searchsorted(x, at, side="right")) - 1, n - 2)
    left = at - x[i]
    right = x[i + 1] - at
    cubes = (second[i] * right**3 + second[i + 1] * left**3) / (6 * h[i])
    start = y[i] / h[i] - second[i] * h[i] / 6
    end = y[i + 1] / h[i] - second[i + 1] * h[i] / 6
    return float(cubes + start * right + end * left)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (5, 7),
        (14, 24),
        (6, 4),
    ],
)
def test_old_distances_lie_on_a_geometric_grid(old, new):
    """It ends where the new distances end; distances that shrink are hardly stretched."""
    places = geometric_places(old - 1, new - 1)
    np.testing.assert_allclose(places, -places[::-1])
    steps = np.diff(places[old - 1 :])
    assert (places[old - 1], steps[0]) == (0, 1)
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    if new > old:
        assert places[-1] == pytest.approx(new - 1, abs=1e-3)
    else:
        assert ratios[0] == pytest.approx(1.01, abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (5, 7),
        (6, 4),
    ],
)
def test_distances_are_resized_by_splines(old, new):
    places = geometric_places(old - 1, new - 1)
    num_old = 2 * old - 1
    num_new = 2 * new - 1
    bias = torch.randn(num_old * num_old, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_distances(bias, new).view(num_new, num_new, 2)
    for head in range(2):
        grid = bias[:, head].double().view(num_old, num_old).numpy()
        for column in (
            0,
            new - 2,
            new - 1,
            new,
            num_new - 1,
        ):
            along_rows = np.array([slow_spline(places, row, column - new + 1) for row in grid])
            expected = [slow_spline(places, along_rows, at) for at in range(-new + 1, new)]
            np.testing.assert_allclose(resized[:, column, head], expected, atol=1e-4)


def test_splines_repeat_what_they_go_through_and_cubics():
    places = geometric_places(6, 11)
    np.testing.assert_allclose(spline(places, places), np.eye(13), atol=1e-9)
    at = np.linspace(places[0], places[-1], 40)
    interpolated = spline(places, at) @ (places**3 - 2 * places)
    np.testing.assert_allclose(interpolated, at**3 - 2 * at, atol=1e-6)
    # of a grid of two patches per side there are three distances: a parabola
    three_places = geometric_places(1, 3)
    np.testing.assert_allclose(spline(three_places, np.array([0.5])) @ three_places**2, [0.25])


@torch.no_grad()
def test_a_larger_image_and_a_shorter_text_keep_what_they_can_of_the_table():
    before = vlmo_encoder()
    sizes = InputConfig(image_size=24, patch_size=4, text_length=9)
    after = VlmoEncoder(before.config, sizes, VOCAB)
    tensors, note = after.resized(before.state_dict())
    assert note == (
        "relative positions resized from 16 to 36 patches; relative positions of texts cut from "
        "12 to 9 tokens"
    )
    after.load_state_dict(tensors)
    after.eval()
    assert before.relative is not None
    assert after.relative is not None
    assert torch.equal(after.relative.image_bias[-3:], before.relative.image_bias[-3:])
    text = text_batch()
    states_before = before.encode(None, before.text(*text)).x_BND
    states_after = after.encode(None, after.text(*text)).x_BND
    assert torch.equal(states_before, states_after)
    assert before.resized(before.state_dict())[1] is None
    longer = before.resized(after.state_dict())[0]["relative.text_bias"]
    assert len(longer) == 18  # which no longer text fits: `transfer` refuses it
