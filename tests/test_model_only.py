"""One token's state alone is what that token's state is among all."""

import pytest
import torch
from twins import tiny_config

from eve_vl.model.embed import Tokens
from eve_vl.model.encoder import Encoder, initialize


@pytest.mark.parametrize("only", [0, 3, 5])
def test_one_token_alone_has_the_state_that_it_has_among_all(only: int):
    config = tiny_config().model
    encoder = Encoder(config, 50).eval()
    initialize(encoder, config)
    x_BND = torch.randn(4, 9, config.embed_dim, generator=torch.Generator().manual_seed(0))
    is_padding_BN = torch.zeros(4, 9, dtype=torch.bool)
    is_padding_BN[1, 7:] = True
    for padding in (None, is_padding_BN):
        tokens = Tokens(x_BND=x_BND, num_image=5, is_padding_BN=padding)
        alone = encoder.encode(tokens, only=only)
        torch.testing.assert_close(alone.x_BND[:, 0], encoder.encode(tokens).x_BND[:, only])
        assert alone.x_BND.shape[1] == 1
        assert [stats.num_tokens.item() for stats in alone.router][-1] == 4
