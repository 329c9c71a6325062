"""The model: embedding, layers, experts, backbones, heads and pixel decoder."""
