"""The encoder against a slow twin, one sample at a time."""

import pytest
import torch

from eve_vl.model.tokens import join
from helpers.tiny_encoder import encoder, inputs_of, slow_encode, text_batch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["image", "text", "pair", "pair of kept patches"])
@pytest.mark.parametrize("shallow", ["modality", "shared"])
@torch.no_grad()
def test_encode_equals_the_slow_encoder(kind, shallow):
    model = encoder(shallow_ffn=shallow, num_deep_blocks=1)
    image, text = inputs_of(model, kind)
    tokens = join(image, text)
    encoded = model.encode(image, text)
    assert [len(stats) for stats in encoded.routers] == [1]
    assert encoded.num_image == tokens.num_image

    expected = slow_encode(model, tokens.x_BND, tokens.num_image, tokens.is_padding_BN)
    states = encoded.x_BND
    if tokens.is_padding_BN is not None:
        states = states.masked_fill(tokens.is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    cls_position = 0 if kind == "image" else tokens.num_image
    torch.testing.assert_close(encoded.cls_BD, expected[:, cls_position], rtol=1e-4, atol=1e-4)
    assert encoded.text_BTD.shape == (3, 0 if text is None else 6, 16)


def test_dropout_and_drop_path_are_off_in_evaluation():
    model = encoder(dropout=0.5, drop_path=0.5)
    inputs = inputs_of(model, "pair")
    ids, is_padding = text_batch()
    for training in (False, True):
        model.train(training)
        states = [model.encode(*inputs).x_BND for _ in range(2)]
        texts = [model.text(ids, is_padding).x_BND for _ in range(2)]
        assert torch.equal(*states) != training
        assert torch.equal(*texts) != training
