"""The [CLS] of a last block that computes no other states, and split batches.

Letters: B batch, N all tokens, D width.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from eve_vl.model.backbone import Backbone
from eve_vl.model.encoder import Encoder
from eve_vl.model.router import chosen_ME
from eve_vl.model.tokens import Tokens, index_tokens, join
from helpers.tiny_encoder import SIZES, VOCAB, encoder, model_config, pixels, text_batch
from helpers.twins import randomize, router_sums

B, NUM_IMAGE = 3, 17
POLICIES = [("modality", "moe"), ("shared", "shared"), ("moe", "modality")]
KINDS = ["image", "text", "pair", "pair without padding"]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def official(routing: str) -> Encoder:
    module = Encoder(model_config(routing=routing, num_experts=8), SIZES, VOCAB)
    randomize(module, 0, std=0.4)
    return module.eval()


def inputs_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    ids, is_padding = text_batch()
    image = model.image(pixels()) if kind != "text" else None
    return image, model.text(
        ids, is_padding if kind != "pair without padding" else None
    ) if kind != "image" else None


def counts(routers: list[list[Tensor]]) -> list[list[float]]:
    """Tokens that each router of each pass saw."""
    return [[router_sums(stats).num_tokens.item() for stats in one] for one in routers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
@torch.no_grad()
def test_in_evaluation_it_is_what_encode_gives_from_less(kind, shallow, deep):
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2)
    inputs = inputs_of(model, kind)
    cls_BD, routers = model.cls(*inputs)
    encoded = model.encode(*inputs)
    assert torch.equal(encoded.cls_BD, encoded.x_BND[:, NUM_IMAGE if "pair" in kind else 0])
    torch.testing.assert_close(cls_BD, encoded.cls_BD, rtol=1e-4, atol=1e-5)
    if deep == "moe":  # the last router saw one token of each sample
        assert [found[-1] for found in counts(routers)] == [B]
        assert (
            counts(encoded.routers)[0][0]
            == counts(encoded.routers)[0][-1]
            == counts(routers)[0][0]
            > B
        )
    before, _ = model.cls(*inputs, final_norm=False)
    torch.testing.assert_close(model.norm(before), cls_BD)
    assert not torch.allclose(before, cls_BD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("looks_inside", [False, True])
def test_in_training_and_for_those_who_look_inside_routers_see_all(kind, looks_inside):
    """All tokens count in the balance loss, and any state may be looked at."""
    model = encoder().train(not looks_inside)
    model.computes_all = looks_inside
    inputs = inputs_of(model, kind)
    cls_BD, routers = model.cls(*inputs)
    encoded = model.encode(*inputs)
    torch.testing.assert_close(
        cls_BD, encoded.cls_BD
    )  # the norm of fewer rows rounds otherwise on some processors
    assert counts(routers) == counts(encoded.routers)
    for found, expected in zip(*routers, *encoded.routers, strict=True):
        torch.testing.assert_close(router_sums(found).gate_E, router_sums(expected).gate_E)
        assert torch.equal(chosen_ME(found), chosen_ME(expected))


def test_the_gradient_of_one_state_is_the_same_either_way():
    model = encoder()
    gradients = []
    for compute in (
        lambda *given: model.cls(*given)[0],
        lambda *given: model.encode(*given).cls_BD,
    ):
        torch.manual_seed(1)
        model.zero_grad()
        compute(*inputs_of(model, "pair")).sin().sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    alone, among_all = gradients
    for name, gradient in among_all.items():
        torch.testing.assert_close(
            alone.get(name, torch.zeros_like(gradient)), gradient, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
def test_tokens_that_are_read_alone_are_what_they_are_among_all(shallow, deep, training):
    """With their gradients; in training the routers see the same."""
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2).train(training)
    token_M = torch.tensor([1, 7, 8, 13])  # of three texts of six tokens
    found = []
    for some in (model.for_tokens, partial(Backbone.for_tokens, model)):
        model.zero_grad()
        torch.manual_seed(1)
        image, text = inputs_of(model, "pair")
        assert text is not None
        states_MD, routers = some(image, text, token_M)
        states_MD.sin().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((states_MD.detach(), counts(routers), gradients))
    (alone, seen, gradients), (among_all, all_seen, expected) = found
    torch.testing.assert_close(alone, among_all, rtol=1e-4, atol=1e-5)
    assert seen == all_seen
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients.get(name, torch.zeros_like(gradient)), gradient, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("tile", [1, 4, 32])
@pytest.mark.parametrize("kind", ["text", "pair"])
@pytest.mark.parametrize(("shallow", "deep"), POLICIES)
def test_a_sample_has_the_state_of_a_batch_without_padding(shallow, deep, kind, tile, monkeypatch):
    """States, gradients and what the routers do: all samples at once, without padding, as one by one."""
    monkeypatch.setattr("eve_vl.model.packing.TILE", tile)
    model = encoder(shallow_ffn=shallow, deep_ffn=deep, num_deep_blocks=2).train()
    ids, is_padding = text_batch()
    images, found = pixels(), []
    assert is_padding.any()
    for groups in ([[0, 1, 2]], [[0], [1], [2]]):
        model.zero_grad()
        loss, states, sums = torch.zeros(()), [], []
        for group in groups:
            length = int((~is_padding[group]).sum(1).max())
            image = model.image(images[group]) if kind == "pair" else None
            text = model.text(
                ids[group, :length], is_padding[group, :length] if len(group) > 1 else None
            )
            encoded = model.encode(image, text)
            for row, b in enumerate(group):
                real_ND = encoded.x_BND[row, : encoded.num_image + int((~is_padding[b]).sum())]
                states.append(real_ND.detach())
                loss = loss + real_ND.sin().sum()
            sums.append(
                torch.stack([torch.zeros(2, 16), *(stats.detach() for stats in encoded.routers[0])])
            )
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((torch.cat(states), torch.stack(sums).sum(0), gradients))
    (states, sums, gradients), (alone, sums_alone, expected) = found
    torch.testing.assert_close(states, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums, sums_alone, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


# Parts of a batch, one by one


def test_only_where_tokens_compete_are_states_never_left_out():
    assert official("reference").computes_all
    assert not official("reference-dropless").computes_all
    assert not encoder().computes_all


@pytest.mark.parametrize("routing", ["reference", "reference-dropless"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_official_parts_are_passes_of_their_own(kind, routing):
    model = official(routing)
    image, text = inputs_of(model, kind)
    torch.manual_seed(5)
    encoded = model.encode(image, text, num_passes=3)
    torch.manual_seed(5)  # the draws of one pass follow on those of the one before
    parts = []
    for b in range(B):
        row = torch.tensor([b])
        parts.append(
            model.encode(
                *(None if tokens is None else index_tokens(tokens, row) for tokens in (image, text))
            )
        )
    assert torch.equal(encoded.x_BND, torch.cat([part.x_BND for part in parts]))
    assert encoded.num_image == join(image, text).num_image
    padding = join(image, text).is_padding_BN
    assert encoded.is_padding_BN is padding is None or torch.equal(encoded.is_padding_BN, padding)  # pyright: ignore
    assert counts(encoded.routers) == [counts(part.routers)[0] for part in parts]
    torch.manual_seed(5)
    cls_BD, routers = model.cls(image, text, num_passes=3)
    torch.testing.assert_close(cls_BD, encoded.cls_BD, rtol=1e-4, atol=1e-5)
    assert [len(one) for one in routers] == [2] * 3
    N = encoded.x_BND.shape[1]
    assert counts(routers) == [[N, N if routing == "reference" else 1]] * 3


@torch.no_grad()
def test_official_cls_before_the_final_norm_goes_by_passes_too():
    model = official("reference-dropless")
    inputs = inputs_of(model, "pair")
    before, _ = model.cls(*inputs, num_passes=3, final_norm=False)
    torch.testing.assert_close(model.norm(before), model.cls(*inputs, num_passes=3)[0])


def clear_choices(model: Encoder) -> Tensor:
    """States of a pair with itself, of one pass and of two, whose second choices are drawn alike."""
    for block in model.blocks[1:]:
        block.ffn.noise = None  # pyright: ignore
    image, text = inputs_of(model, "pair without padding")
    assert image is not None
    assert text is not None
    rows = torch.tensor([0, 0, 1, 1])
    both = index_tokens(image, rows), index_tokens(text, rows)
    return torch.stack([model.encode(*both).x_BND, model.encode(*both, num_passes=2).x_BND])


@torch.no_grad()
def test_passes_matter_only_where_tokens_are_dropped():
    one, two = clear_choices(official("reference"))
    assert not torch.allclose(one, two, rtol=1e-3, atol=1e-3)
    one, two = clear_choices(official("reference-dropless"))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_stable_routing_takes_all_parts_in_one_pass():
    model = encoder()
    inputs = inputs_of(model, "pair")
    one, three = model.encode(*inputs), model.encode(*inputs, num_passes=3)
    assert torch.equal(one.x_BND, three.x_BND)
    assert len(three.routers) == len(model.cls(*inputs, num_passes=3)[1]) == 1
