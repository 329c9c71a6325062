"""States that are read alone equal those of a whole pass; batches that are split equal their parts.

Letters: B batch, M tokens that are read, N all tokens, D width.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from eve_vl.model.backbone import Backbone
from eve_vl.model.encoder import Encoder
from eve_vl.model.reference_moe import ReferenceMoE
from eve_vl.model.router import chosen_ME
from eve_vl.model.tokens import Tokens, index_tokens, join
from helpers.random_weights import randomize
from helpers.slow_experts import router_sums
from helpers.tiny_encoder import SIZES, VOCAB, encoder, model_config, pixels, text_batch

B = 3
NUM_IMAGE = 17
POLICIES = [
    ("modality", "moe"),
    ("shared", "shared"),
    ("moe", "modality"),
]
KINDS = ["image", "text", "pair", "pair without padding"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def published(routing: str) -> Encoder:
    module = Encoder(model_config(routing=routing, num_experts=8), SIZES, VOCAB)
    randomize(module, 0, std=0.4)
    return module.eval()


def inputs_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    ids, is_padding = text_batch()
    image = None if kind == "text" else model.image(pixels())
    if kind == "image":
        return image, None
    if kind == "pair without padding":
        return image, model.text(ids, None)
    return image, model.text(ids, is_padding)


def pair_of(model: Encoder, kind: str = "pair") -> tuple[Tokens, Tokens]:
    image, text = inputs_of(model, kind)
    assert image is not None
    assert text is not None
    return image, text


def token_counts(routers: list[list[Tensor]]) -> list[list[float]]:
    """Return the number of tokens that each router of each pass saw."""
    counts = []
    for pass_stats in routers:
        counts.append([router_sums(stats).num_tokens.item() for stats in pass_stats])
    return counts


def gradients(model: Encoder) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check gradients; networks that a whole pass runs for nothing may have none."""
    for name, gradient in expected.items():
        partial = actual.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(partial, gradient, rtol=1e-3, atol=1e-4, msg=name)


# States that are read alone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
@torch.no_grad()
def test_in_evaluation_cls_equals_that_of_encode_from_fewer_states(kind, shallow, deep):
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2)
    inputs = inputs_of(model, kind)
    cls_BD, routers = model.cls(*inputs)
    encoded = model.encode(*inputs)
    position = NUM_IMAGE if "pair" in kind else 0
    assert torch.equal(encoded.cls_BD, encoded.x_BND[:, position])
    torch.testing.assert_close(cls_BD, encoded.cls_BD, rtol=1e-4, atol=1e-5)
    if deep == "moe":
        (first, last) = token_counts(routers)[0]
        assert last == B  # one token of each sample
        assert token_counts(encoded.routers) == [[first, first]]
        assert first > B

    before_norm, _ = model.cls(*inputs, final_norm=False)
    torch.testing.assert_close(model.norm(before_norm), cls_BD)
    assert not torch.allclose(before_norm, cls_BD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("computes_all", [False, True], ids=["training", "inspection"])
def test_in_training_and_for_inspection_routers_see_all_tokens(kind, computes_all):
    """All tokens count in the balance loss, and any state may be inspected."""
    model = encoder().train(not computes_all)
    model.computes_all = computes_all
    inputs = inputs_of(model, kind)
    cls_BD, routers = model.cls(*inputs)
    encoded = model.encode(*inputs)
    # the norm of fewer rows rounds otherwise on some processors
    torch.testing.assert_close(cls_BD, encoded.cls_BD)
    assert token_counts(routers) == token_counts(encoded.routers)
    for stats, expected in zip(*routers, *encoded.routers, strict=True):
        torch.testing.assert_close(router_sums(stats).gate_E, router_sums(expected).gate_E)
        assert torch.equal(chosen_ME(stats), chosen_ME(expected))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
def test_text_tokens_that_are_read_alone_equal_those_of_a_whole_pass(shallow, deep, training):
    """States, gradients, and the tokens that routers see."""
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2).train(training)
    token_M = torch.tensor([1, 7, 8, 13])  # of three texts of six tokens

    def run(for_tokens) -> tuple[Tensor, list[list[float]], dict[str, Tensor]]:
        model.zero_grad()
        torch.manual_seed(1)
        states_MD, routers = for_tokens(model, *pair_of(model), token_M)
        states_MD.sin().sum().backward()
        return states_MD.detach(), token_counts(routers), gradients(model)

    states, counts, actual = run(Encoder.for_tokens)
    whole_states, whole_counts, expected = run(Backbone.for_tokens)
    torch.testing.assert_close(states, whole_states, rtol=1e-4, atol=1e-5)
    assert counts == whole_counts
    assert_gradients_close(actual, expected)


# Padding


@dataclass
class Pass:
    """What a batch gives: states of its real tokens, sums of all routers, gradients."""

    states: Tensor
    router_sums: Tensor
    gradients: dict[str, Tensor]


def run_in_groups(
    model: Encoder,
    kind: str,
    images: Tensor,
    groups: list[list[int]],
) -> Pass:
    """Encode groups of three texts, each as long as its longest text."""
    torch.manual_seed(2)
    ids, is_padding = text_batch()
    lengths = (~is_padding).sum(1)
    model.zero_grad()
    states = []
    sums = torch.zeros(2, 4 * 4)
    for group in groups:
        T = int(lengths[group].max())
        text_padding = is_padding[group, :T] if len(group) > 1 else None
        image = model.image(images[group]) if kind == "pair" else None
        encoded = model.encode(image, model.text(ids[group, :T], text_padding))
        for row, sample in enumerate(group):
            states.append(encoded.x_BND[row, : encoded.num_image + lengths[sample]])
        for stats in encoded.routers[0]:
            sums = sums + stats.detach()
    all_states = torch.cat(states)
    all_states.sin().sum().backward()
    return Pass(all_states.detach(), sums, gradients(model))


@pytest.mark.parametrize("tile", [1, 4, 32])
@pytest.mark.parametrize("kind", ["text", "pair"])
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
def test_a_batch_with_padding_equals_its_samples_one_by_one(shallow, deep, kind, tile, monkeypatch):
    monkeypatch.setattr("eve_vl.model.packing.TILE", tile)
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2).train()
    images = pixels()
    batch = run_in_groups(model, kind, images, [[0, 1, 2]])
    single = run_in_groups(model, kind, images, [[0], [1], [2]])
    torch.testing.assert_close(batch.states, single.states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.router_sums, single.router_sums, rtol=1e-4, atol=1e-4)
    assert batch.gradients.keys() == single.gradients.keys()
    assert_gradients_close(batch.gradients, single.gradients)


# Parts of a batch, one by one


@pytest.mark.parametrize("routing", ["reference", "reference-dropless"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_parts_of_a_batch_equal_separate_passes_of_published_routing(kind, routing):
    model = published(routing)
    image, text = inputs_of(model, kind)
    torch.manual_seed(5)
    encoded = model.encode(image, text, num_passes=3)

    torch.manual_seed(5)  # the noise of one pass follows on that of the one before
    for b in range(B):
        row = torch.tensor([b])
        image_part = None if image is None else index_tokens(image, row)
        text_part = None if text is None else index_tokens(text, row)
        part = model.encode(image_part, text_part)
        assert torch.equal(encoded.x_BND[row], part.x_BND)
        assert token_counts(encoded.routers[b : b + 1]) == token_counts(part.routers)
    tokens = join(image, text)
    assert encoded.num_image == tokens.num_image
    if tokens.is_padding_BN is None:
        assert encoded.is_padding_BN is None
    else:
        assert encoded.is_padding_BN is not None
        assert torch.equal(encoded.is_padding_BN, tokens.is_padding_BN)

    for final_norm in (True, False):
        torch.manual_seed(5)
        cls_BD, routers = model.cls(image, text, num_passes=3, final_norm=final_norm)
        if not final_norm:
            cls_BD = model.norm(cls_BD)
        torch.testing.assert_close(cls_BD, encoded.cls_BD, rtol=1e-4, atol=1e-5)
        # tokens compete for room, so all states are computed, or only those that are read
        N = encoded.x_BND.shape[1]
        num_last = N if routing == "reference" else 1
        assert token_counts(routers) == [[N, num_last]] * 3


@pytest.mark.parametrize(
    ("routing", "is_equal"),
    [
        ("reference", False),
        ("reference-dropless", True),
        ("dropless", True),
    ],
)
@torch.no_grad()
def test_the_number_of_passes_matters_only_where_tokens_are_dropped(routing, is_equal):
    model = published(routing)
    for block in model.blocks:
        if isinstance(block.ffn, ReferenceMoE):
            block.ffn.noise = None
    image, text = pair_of(model, "pair without padding")
    rows = torch.tensor([0, 0, 1, 1])
    twice = index_tokens(image, rows), index_tokens(text, rows)
    single = model.encode(*twice).x_BND
    split = model.encode(*twice, num_passes=2)
    assert torch.allclose(single, split.x_BND, rtol=1e-3, atol=1e-3) == is_equal
    assert len(split.routers) == (1 if routing == "dropless" else 2)  # which takes all in one pass
